"""Folders of data, looked at from outside, so that a wrong one is refused at once."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from nas.errors import UserError

HINT = "a folder with one subfolder of images per class"
# Of data sets that come by name: samples to train with, and classes.
KNOWN = {
    "nas.data.digits": (1_797, 10),
    "nas.data.fashion_mnist": (60_000, 10),
    "nas.data.cifar10": (50_000, 10),
}


def check_images(root: str | Path | None) -> None:
    """Refuse a folder that holds no folders of classes.

    Raises:
        UserError: it is not set, no folder, or holds fewer than two folders of classes.
    """
    class_names(part_folders(existing_folder(root, HINT))["train"])


def check_batch(data: Mapping[str, Any]) -> None:
    """Refuse a batch larger than the part that trains can be, as far as it is known without data.

    Args:
        data: the node of the configuration, its values checked.

    Raises:
        UserError: with the largest part that is possible.
    """
    batch, limit = data.get("batch_size"), data.get("limit")
    shares = {part: data.get(f"{part}_fraction") or 0.0 for part in ("test", "val")}
    if batch is None or (known := _training_samples(data, batch, shares)) is None:
        return
    most, classes, parts = known
    for part, share in shares.items():
        if part == "val" and limit is not None:
            most = min(most, limit)
        if share and part not in parts:  # of each class that share, rounded, but one at least
            most -= int(max(most * share - classes / 2, min(classes, most)))
    if batch > most:
        fitting = max((2**power for power in range(1, 20) if 2**power <= 0.8 * most), default=0)
        remedy = f"data.batch_size={fitting} or less" if fitting else "a larger data.limit"
        raise UserError(
            f"data.batch_size={batch} is larger than the train split, of at most {most} images: "
            f"pass {remedy}, or give more images."
        )


def _training_samples(
    data: Mapping[str, Any], batch: int, shares: Mapping[str, float]
) -> tuple[int, int, set[str]] | None:
    """Samples to train with, and classes, and parts that are there; None: not known."""
    target = data["_target_"]
    if target in KNOWN:
        return *KNOWN[target], set()
    if target != "nas.data.image_folder" or data.get("labels") is not None:
        return None
    folders = part_folders(Path(str(data["root"])).expanduser())
    names = class_names(folders["train"])
    # A folder may hold millions: as many are counted as leave a batch when the shares are taken.
    enough = int((batch + 2) / prod(1 - share for share in shares.values())) + 4 * len(names)
    files = (file for name in names for file in _files(folders["train"] / name))
    return sum(1 for _ in islice(files, enough)), len(names), set(folders)


def _files(folder: Path) -> Iterator[str]:
    """Every file below a folder that is not hidden."""
    for _, _, names in os.walk(folder, followlinks=True):
        yield from (name for name in names if not name.startswith("."))


def existing_folder(root: str | Path | None, hint: str) -> Path:
    """`root` as a path.

    Raises:
        UserError: it is not set or no folder; `hint` says what the folder should hold.
    """
    if not root:
        raise UserError(f"data.root is not set: pass data.root=FOLDER, {hint}.")
    path = Path(str(root)).expanduser()  # `data.root=2024` arrives as a number
    if not path.is_dir():
        raise UserError(
            f"data.root={root} is not a folder (looked at {path.absolute()}): "
            f"pass data.root=FOLDER, {hint}."
        )
    return path


def part_folders(root: Path, holds: Callable[[Path], object] | None = None) -> dict[str, Path]:
    """The folder of each part that `root` comes in; `root` itself when it is not divided.

    Args:
        root: the folder.
        holds: what tells that a folder called train is a part; None: that it has folders in it.
    """
    train = root / "train"
    if not train.is_dir() or not (holds or subfolders)(train):  # a class may be called so, too
        return {"train": root}
    there = {part: root / part for part in ("train", "val", "test") if (root / part).is_dir()}
    if "val" in there and "test" not in there:
        there["test"] = there.pop("val")
    return there


def class_names(root: Path) -> list[str]:
    """Sorted names of the class folders in `root`; UserError unless there are two or more."""
    names = subfolders(root)
    if len(names) < 2:
        found = f"only one class folder, {names[0]!r}" if names else "no class folder"
        raise UserError(
            f"data.root: {root} holds {found}, and at least two are needed: put the images into "
            f"one folder per class."
        )
    return names


def files_below(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Every file below a folder whose name ends so, in any case, sorted; hidden ones are left."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def subfolders(root: Path) -> list[str]:
    """Sorted names of the folders in `root`, but of hidden ones."""
    folders = (path.name for path in root.iterdir() if path.is_dir())
    return sorted(name for name in folders if not name.startswith((".", "__")))  # __MACOSX
