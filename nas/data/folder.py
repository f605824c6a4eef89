"""A user's own images: one folder per class, any size, decoded once into memory."""

import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from nas.data.checks import folder, one_of, whole_number
from nas.data.images import Images, Part
from nas.errors import UserError

_LOG = logging.getLogger(__name__)
_HINT = "a folder with one subfolder of images per class"
_NAMED = 20  # unreadable files named in one message
# What the endings stand for. Pillow goes by the content: a "photo.png" of PostScript would be given
# to Ghostscript, a program that runs what is in it.
_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_CHUNK = 64  # files per task: with one file each, starting tasks costs as much as small JPEGs

T = TypeVar("T")
Sample = tuple[str, int]  # (path, class)


@dataclass(frozen=True)
class ImageFolder:
    """Source over ``root/<class>/*.png`` or ``root/{train,val,test}/<class>/*.png``.

    Images are scaled and centre-cropped to ``size x size``, so that their proportions are kept.
    A lone ``val`` folder beside ``train`` is the test part; beside ``train`` and ``test`` it is
    the val part. Hidden files and folders are passed over.

    Args:
        root: the folder.
        size: height and width of the images made, in pixels.
        channels: 3 for colour, 1 for grey.
        unreadable: "skip" files that cannot be decoded, naming them in the log, or "refuse" them.

    Raises:
        UserError: an option out of range; when called, a folder that cannot be used.
    """

    root: str | None
    size: int = 32
    channels: int = 3
    unreadable: str = "skip"

    def __post_init__(self) -> None:
        whole_number("size", self.size, 1)
        one_of("channels", self.channels, (1, 3))
        one_of("unreadable", self.unreadable, ("skip", "refuse"))

    def __call__(self) -> Images:
        root = folder(self.root, _HINT)
        folders = part_folders(root)
        classes = class_names(folders["train"])
        samples: list[Sample] = []
        part_of: list[str] = []
        for part, path in folders.items():
            found = list_images(path, classes)
            samples += found
            part_of += [part] * len(found)
        self._check_memory(len(samples))
        pixels, failures = decode(samples, self.size, self.channels)
        self._report(root, samples, failures)

        good = [i for i in range(len(samples)) if i not in failures]
        kept = np.array([part_of[i] for i in good])
        given = {part: torch.from_numpy(np.flatnonzero(kept == part)) for part in folders}
        for part, indices in given.items():
            if not len(indices):
                raise UserError(f"{folders[part]} holds no readable image: add some or remove it.")
        labels = torch.tensor([samples[i][1] for i in good], dtype=torch.int64)
        pixels = pixels[good] if failures else pixels
        return Images(torch.from_numpy(pixels), labels, tuple(classes), given)

    def _report(self, root: Path, samples: Sequence[Sample], failures: dict[int, str]) -> None:
        if not failures:
            return
        names = [f"{os.path.relpath(samples[i][0], root)} ({why})" for i, why in failures.items()]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = ", ".join(names[:_NAMED]) + more
        what = f"{len(names)} of {len(samples)} images in {root} cannot be read"
        if self.unreadable == "refuse":
            raise UserError(f"{what}: {listed}; mend them, or pass data.unreadable=skip.")
        _LOG.warning("%s and are skipped: %s", what, listed)

    def _check_memory(self, images: int) -> None:
        # Left to itself, the system would kill the process minutes later without a word.
        needed = images * self.channels * self.size**2
        if hasattr(os, "sysconf"):
            present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if needed > present:
                raise UserError(
                    f"{images} images of data.size={self.size} take {needed / 1e9:.1f} GB of "
                    f"memory and this machine has {present / 1e9:.1f} GB: lower data.size."
                )


def part_folders(root: Path) -> dict[Part, Path]:
    """The folder of each part that `root` comes in; `root` itself when it is not divided."""
    train = root / "train"
    if not train.is_dir() or not _subfolders(train):  # a class may be called "train", too
        return {"train": root}
    there = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "val" in there and "test" not in there:
        there["test"] = there.pop("val")
    return cast(dict[Part, Path], there)


def class_names(root: Path) -> list[str]:
    """Sorted names of the class folders in `root`; UserError unless there are two or more."""
    names = _subfolders(root)
    if len(names) < 2:
        found = f"only one class folder, {names[0]!r}" if names else "no class folder"
        raise UserError(
            f"data.root: {root} holds {found}, and at least two are needed: put the images into "
            f"one folder per class."
        )
    return names


def list_images(root: Path, classes: Sequence[str]) -> list[Sample]:
    """Every image file below ``root/<class>``, sorted; UserError if there is none."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    unknown = sorted(set(_subfolders(root)) - set(classes))
    if unknown:
        raise UserError(
            f"{root} has the class folder {unknown[0]!r} that the training images do not have: "
            f"their classes are {', '.join(classes)}."
        )

    def is_image(path: str) -> bool:
        name = os.path.basename(path)
        return name.lower().endswith(IMG_EXTENSIONS) and not name.startswith(".")

    positions = {name: position for position, name in enumerate(classes)}
    samples = make_dataset(str(root), positions, is_valid_file=is_image, allow_empty=True)
    if not samples:
        raise UserError(
            f"data.root: the class folders in {root} hold no image: add files ending in "
            f"{', '.join(IMG_EXTENSIONS)}."
        )
    return cast(list[Sample], samples)


def decode(
    samples: Sequence[Sample], size: int, channels: int
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Pixels ``(N, C, size, size)``, and why for each position that could not be read."""
    pixels = np.empty((len(samples), channels, size, size), np.uint8)
    chunks = [range(len(samples))[at : at + _CHUNK] for at in range(0, len(samples), _CHUNK)]

    def fill(chunk: range) -> list[tuple[int, str]]:
        return list(_fill(pixels, samples, chunk))

    failures: dict[int, str] = {}
    # torch's number of threads is what keeps parallel runs from crowding each other out.
    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        with warnings.catch_warnings():
            # A small file may hold an image that fills the memory: Pillow warns, and goes on.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            for failed in _with_bar(pool.map(fill, chunks), len(chunks)):
                failures.update(failed)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the images still queued
    return pixels, failures


def _with_bar(steps: Iterable[T], total: int) -> Iterable[T]:
    console = Console(stderr=True)
    shown = console.is_terminal
    return track(steps, "reading images", total, console=console, transient=True, disable=not shown)


def _fill(
    pixels: NDArray[np.uint8], samples: Sequence[Sample], chunk: range
) -> Iterator[tuple[int, str]]:
    for i in chunk:
        try:
            pixels[i] = read_image(samples[i][0], pixels.shape[-1], pixels.shape[1])
        except Exception as error:  # a decoder may raise anything on a broken file
            yield i, str(error).splitlines()[0] if str(error) else type(error).__name__


def read_image(path: str, size: int, channels: int) -> NDArray[np.uint8]:
    """One image ``(C, size, size)``: upright, scaled and centre-cropped."""
    mode = "RGB" if channels == 3 else "L"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no plain file")
    with Image.open(path, formats=_FORMATS) as file:
        file.draft(mode, (size, size))  # a large JPEG is decoded at a fraction of its size
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):  # `convert` would clip 16 bits instead of scaling them
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR)
        array = np.asarray(image, dtype=np.uint8)
    return array.reshape(size, size, channels).transpose(2, 0, 1)


def _subfolders(root: Path) -> list[str]:
    folders = (path.name for path in root.iterdir() if path.is_dir())
    return sorted(name for name in folders if not name.startswith((".", "__")))  # __MACOSX
