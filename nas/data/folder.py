"""A user's own images: one folder per class, any size, decoded once into memory."""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch

from nas.config.folders import HINT, class_names, existing_folder, part_folders, subfolders
from nas.config.schema import Count, Finite, Name, checked, violation
from nas.data.pixels import Decoded, Pixels, common_range, decode, read_picture
from nas.data.splits import Arrays, Levels, Part
from nas.data.tables import Array, complete, read_table, targets_of, wrong
from nas.errors import UserError

_LOG = logging.getLogger(__name__)
_NAMED = 20  # unreadable files named in one message
Channels = Literal[1, 3]
Unreadable = Literal["skip", "refuse"]
Sample = tuple[str, int]  # (path, class)


@checked("data")
@dataclass(frozen=True)
class ImageFolder:
    """Source over ``root/<class>/*.png`` or ``root/{train,val,test}/<class>/*.png``.

    Images are scaled and centre-cropped to ``size x size``, so that their proportions are kept.
    A lone ``val`` folder beside ``train`` is the test part; beside ``train`` and ``test`` it is
    the val part. Hidden files and folders are passed over. Of several frames or pages in a file
    the first is taken.

    With `labels`, files may lie anywhere below `root`, and only those that the table names are
    read; train, val or test as the first folder of a name is its part.

    Args:
        root: the folder.
        size: height and width of the images made, in pixels.
        channels: 3 for colour, 1 for grey.
        unreadable: "skip" files that cannot be decoded, naming them in the log, or "refuse" them.
        value_range: the values that mean black and white in images of more than 8 bits a channel;
            None: what their format says, else the data set, see `nas.data.pixels.common_range`.
        labels: CSV file: names of image files below `root`, then a column for each target: classes,
            a number, or 0 and 1 for each label. None: folders are classes.

    Raises:
        UserError: an option out of range; when called, a folder that cannot be used.
    """

    root: str | None
    size: Count = 32
    channels: Channels = 3
    unreadable: Unreadable = "skip"
    value_range: Levels | None = None
    labels: Name | None = None

    def __post_init__(self) -> None:
        if self.value_range is not None:
            object.__setattr__(self, "value_range", _black_and_white(self.value_range))

    def __call__(self) -> Arrays:
        root = existing_folder(self.root, HINT)
        if self.labels:
            samples, part_of, targets, classes = _listed(root, Path(self.labels).expanduser())
        else:
            samples, part_of, targets, classes = _by_folder(root)
        decoded = decode(samples, self.size, self.channels)
        failures = decoded.failures
        self._report(root, samples, failures)
        pixels, value_range = self._bright(decoded, len(samples) - len(failures))

        good = [i for i in range(len(samples)) if i not in failures]
        kept = np.array([part_of[i] for i in good])
        parts = [*dict.fromkeys(["train", *part_of])]
        given = {cast(Part, part): torch.from_numpy(np.flatnonzero(kept == part)) for part in parts}
        for part, indices in given.items():
            if not len(indices):
                where = root / part if len(parts) > 1 else root
                raise UserError(f"{where} holds no readable image: add some or remove it.")
        pixels = pixels[good] if failures else pixels
        chosen = torch.from_numpy(targets)[good]
        return Arrays(torch.from_numpy(pixels), chosen, classes, given, value_range)

    def _bright(self, decoded: Decoded, images: int) -> tuple[Pixels, Levels | None]:
        """Pixels with 0 for black and 255 for white, and what they were where no format says."""
        if decoded.backgrounds:
            black = sum(name == "black" for name in decoded.backgrounds.values())
            _LOG.warning(
                "%d of %d images have transparent parts and are put on white, %d of them, drawn in "
                "light colours, on black",
                len(decoded.backgrounds),
                images,
                black,
            )
        if not decoded.deep:
            return decoded.pixels, None
        found = self.value_range or common_range(decoded.deep.values(), images)
        pixels = decoded.pixels.astype(np.float32)
        for i, picture in decoded.deep.items():
            pixels[i] = picture.bright(found)
        _LOG.warning(
            "%d of %d images have more than 8 bits a channel: %s",
            len(decoded.deep),
            images,
            "black and white are what their format says (floating point: 0 and 1)"
            if found is None
            else f"{found[0]:g} is black and {found[1]:g} is white (data.value_range)",
        )
        return pixels, found

    def _report(self, root: Path, samples: Sequence[str], failures: dict[int, str]) -> None:
        if not failures:
            return
        names = [f"{os.path.relpath(samples[i], root)} ({why})" for i, why in failures.items()]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        listed = ", ".join(names[:_NAMED]) + more
        what = f"{len(names)} of {len(samples)} images in {root} cannot be read"
        if self.unreadable == "refuse":
            raise UserError(f"{what}: {listed}; mend them, or pass data.unreadable=skip.")
        _LOG.warning("%s and are skipped: %s", what, listed)


Found = tuple[list[str], list[str], Array, tuple[str, ...]]  # paths, parts, targets, names


def _by_folder(root: Path) -> Found:
    """Every image below the folder of its class."""
    folders = part_folders(root)
    classes = class_names(folders["train"])
    found = {part: list_images(path, classes) for part, path in folders.items()}
    samples = [sample for own in found.values() for sample in own]
    part_of = [part for part, own in found.items() for _ in own]
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return [path for path, _ in samples], part_of, labels, tuple(classes)


def _listed(root: Path, file: Path) -> Found:
    """The images that a table names, and what it says of them."""
    table = read_table(file, "labels")
    first, *names = table.columns
    if not names:
        raise wrong(file, "has one column: give names of files, and then targets", "labels")
    images = complete(table, first, file, "labels").astype(str).tolist()
    (targets,), classes = targets_of([(file, table)], names, "labels", "labels")
    if len(set(images)) < len(images):
        raise wrong(file, f"names {Counter(images).most_common(1)[0][0]!r} twice", "labels")
    if missing := [name for name in images if not (root / name).is_file()]:
        why = f"names {missing[0]!r}, which is no file in data.root={root}"
        raise wrong(file, f"{why} ({len(missing)} of {len(images)} are not there)", "labels")
    parts = [name.split("/")[0] for name in images]
    part_of = [part if part in get_args(Part) else "train" for part in parts]
    if {"val"} == set(part_of) - {"train"}:
        part_of = ["test" if part == "val" else part for part in part_of]
    if targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.ndim > 1 or targets.dtype.kind == "f":
        classes = tuple(names)
    return [str(root / name) for name in images], part_of, targets, classes


def read_image(path: str, size: int, channels: int, value_range: Levels | None = None) -> Pixels:
    """One image ``(C, size, size)`` with values 0..255, as a data set of this file alone has it.

    Args:
        value_range: black and white in a file of more than 8 bits a channel; None: found out.
    """
    picture = read_picture(path, size, channels)
    known = not picture.deep or value_range is not None
    pixels = picture.bright(value_range if known else common_range([picture], 1))
    return np.repeat(pixels, channels, 0) if picture.deep else pixels


def _black_and_white(value: Any) -> Levels:
    numbers = list(value) if isinstance(value, Sequence) else value
    if violation(numbers, tuple[Finite, Finite]) or numbers[0] == numbers[1]:
        raise UserError(
            f"data.value_range={value!r} is not possible: give the two values that mean black and "
            "white, such as [0,4095]."
        )
    return float(numbers[0]), float(numbers[1])


def list_images(root: Path, classes: Sequence[str]) -> list[Sample]:
    """Every image file below ``root/<class>``, sorted; UserError if there is none."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    unknown = sorted(set(subfolders(root)) - set(classes))
    if unknown:
        raise UserError(
            f"{root} has the class folder {unknown[0]!r} that the training images do not have: "
            f"their classes are {', '.join(classes)}."
        )

    endings = (*IMG_EXTENSIONS, ".gif")

    def is_image(path: str) -> bool:
        name = os.path.basename(path)
        return name.lower().endswith(endings) and not name.startswith(".")

    positions = {name: position for position, name in enumerate(classes)}
    samples = make_dataset(str(root), positions, is_valid_file=is_image, allow_empty=True)
    if not samples:
        raise UserError(
            f"data.root: the class folders in {root} hold no image: add files ending in "
            f"{', '.join(endings)}."
        )
    return cast(list[Sample], samples)
