"""Folders of data, looked at from outside, so that a wrong one is refused at once."""

from collections.abc import Callable
from pathlib import Path

from nas.errors import UserError

HINT = "a folder with one subfolder of images per class"


def check_images(root: str | Path | None) -> None:
    """Refuse a folder that holds no folders of classes.

    Raises:
        UserError: it is not set, no folder, or holds fewer than two folders of classes.
    """
    class_names(part_folders(existing_folder(root, HINT))["train"])


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
