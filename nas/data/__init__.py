"""Data sets: read by a source, split into train (weights), val (alpha) and test, served in batches.

To add a data set, write one function in this module and one file in ``configs/data``:

1. a source, a function that reads the data and returns `Arrays`: pixels, labels, the names of the
   classes, and the parts that the data comes in ("train" alone if it is not divided);
2. the data set, a function that returns ``DataModule(source, **options)``. It takes the options of
   every data set as ``**options: Unpack[DataOptions]``, and before them those of its own;
3. a YAML file of the data set's name, with ``_target_: nas.data.<function>``,
   ``_partial_: true`` and the values of its options.

``nas search data=<name>`` then takes it, and so do the tests of data. A function in a package of
your own works as well: a configuration may name anything that can be imported.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor

from nas.config.folders import existing_folder
from nas.config.schema import Count, Name, Positive, Whole
from nas.data.datamodule import DataModule, DataOptions
from nas.data.folder import Channels, ImageFolder, Unreadable
from nas.data.machine import MachineSounds
from nas.data.npz import NpzFile
from nas.data.sound import Silent, SoundFolder
from nas.data.splits import Arrays, Levels, Part, Source
from nas.data.tables import Columns
from nas.data.windows import Mixed, Windows
from nas.errors import UserError

__all__ = [
    "Arrays",
    "DataModule",
    "DataOptions",
    "Part",
    "Source",
    "arrays",
    "cifar10",
    "digits",
    "fashion_mnist",
    "image_folder",
    "machine_sounds",
    "sound_folder",
    "windows",
]


def digits(**options: Unpack[DataOptions]) -> DataModule:
    """scikit-learn's 1,797 grey 8 x 8 handwritten digits; nothing to download."""
    return DataModule(_read_digits, **options)


def fashion_mnist(
    root: str | None = "data", download: bool = True, **options: Unpack[DataOptions]
) -> DataModule:
    """Fashion-MNIST: 60,000 + 10,000 grey 28 x 28 images of clothing in 10 classes."""
    source = partial(_read_torchvision, "FashionMNIST", root, download)
    return DataModule(source, auto_augment="crop_flip", **options)


def cifar10(
    root: str | None = "data", download: bool = True, **options: Unpack[DataOptions]
) -> DataModule:
    """CIFAR-10: 50,000 + 10,000 colour 32 x 32 photographs in 10 classes."""
    source = partial(_read_torchvision, "CIFAR10", root, download)
    return DataModule(source, auto_augment="crop_flip", **options)


def image_folder(
    root: str | None = None,
    size: Count = 32,
    channels: Channels = 3,
    unreadable: Unreadable = "skip",
    value_range: Levels | None = None,
    labels: Name | None = None,
    **options: Unpack[DataOptions],
) -> DataModule:
    """A user's own images, by folder or by a table; see `ImageFolder`."""
    source = ImageFolder(root, size, channels, unreadable, value_range, labels)
    # Colour images are mostly photographs; grey ones as often are signs, which have a direction.
    return DataModule(source, auto_augment="crop_flip" if channels == 3 else "none", **options)


def arrays(path: str | None = None, **options: Unpack[DataOptions]) -> DataModule:
    """Samples and targets of any kind in an NPZ file, see `NpzFile`."""
    return DataModule(NpzFile(path), **options)


def sound_folder(
    root: str | None = None,
    rate: Count = 16000,
    seconds: Positive = 1.0,
    resample: bool = False,
    silent: Silent = "refuse",
    words: Sequence[Name] | None = None,
    silence: bool = False,
    speaker: Name | None = None,
    **options: Unpack[DataOptions],
) -> DataModule:
    """Sounds, one folder per class, see `SoundFolder`."""
    source = SoundFolder(root, rate, seconds, resample, silent, words, silence, speaker)
    return DataModule(source, **options)


def machine_sounds(
    root: str | None = None,
    rate: Count = 16000,
    mels: Count = 128,
    window: Count = 1024,
    hop: Count = 512,
    frames: Count = 5,
    step: Count = 5,
    **options: Unpack[DataOptions],
) -> DataModule:
    """Sounds of a machine, normal and anomalous, see `MachineSounds`."""
    return DataModule(MachineSounds(root, rate, mels, window, hop, frames, step), **options)


def windows(
    path: str | None = None,
    length: Count = 128,
    hop: Count | None = None,
    channels: Columns = None,
    target: Columns = None,
    mixed: Mixed = "auto",
    group: Name | None = None,
    segment: Name | None = None,
    missing: Literal["refuse", "fill"] = "refuse",
    horizon: Whole = 0,
    **options: Unpack[DataOptions],
) -> DataModule:
    """Windows of sensor channels from tables, see `Windows`."""
    source = Windows(path, length, hop, channels, target, mixed, group, segment, missing, horizon)
    return DataModule(source, **options)


def _read_digits() -> Arrays:
    # The file alone: importing scikit-learn takes longer than all else before the first step.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    table = np.loadtxt(Path(package.origin).parent / "datasets/data/digits.csv.gz", delimiter=",")
    levels = table[:, :-1].reshape(-1, 8, 8) * (255 / 16)  # the set has grey levels 0..16
    pixels = torch.from_numpy(levels.round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(table[:, -1]).long()
    classes = tuple(map(str, range(10)))
    return Arrays(pixels, labels, classes, {"train": torch.arange(len(labels))})


def _read_torchvision(kind: str, root: str | None, download: bool) -> Arrays:
    from torchvision import datasets

    hint = f"the folder that holds {kind}"
    path = Path(str(root)).expanduser() if root and download else existing_folder(root, hint)
    make = partial(getattr(datasets, kind), str(path), download=download)
    train, test = (_made(make, train, kind, path, download) for train in (True, False))
    pixels = torch.cat([_channels_first(train.data), _channels_first(test.data)])
    labels = torch.cat([torch.as_tensor(train.targets), torch.as_tensor(test.targets)]).long()
    given = torch.split(torch.arange(len(labels)), [len(train.data), len(test.data)])
    return Arrays(pixels, labels, tuple(train.classes), {"train": given[0], "test": given[1]})


def _made(make: Callable[..., Any], train: bool, kind: str, path: Path, download: bool) -> Any:
    try:
        return make(train=train)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if download:
            advice = (
                "get it on a machine with network access and pass data.root=FOLDER, the folder "
                "that holds it"
            )
        else:
            advice = "pass data.root=FOLDER, the folder that holds it, or data.download=true"
        verb = "downloaded to" if download else "found in"
        raise UserError(f"{kind} could not be {verb} {path} ({reason}): {advice}.") from error


def _channels_first(pixels: Any) -> Tensor:
    """``(N, H, W)`` or ``(N, H, W, C)``, array or tensor -> uint8 ``(N, C, H, W)``."""
    tensor = torch.as_tensor(pixels)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()
