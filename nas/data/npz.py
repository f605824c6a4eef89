"""Samples of any kind as arrays or tensors, or in one NPZ file: windows, images, spectra."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure

from nas.config.schema import checked
from nas.data.splits import Arrays, Part
from nas.errors import UserError
from nas.inputs import Inputs, shapes_of

Array = NDArray[Any]
Wrong = Callable[[str], UserError]  # what is wrong -> the error
KEYS = ("x", "y", "x_test", "y_test", "groups")


@checked("data")
@dataclass(frozen=True)
class NpzFile:
    """Source over an NPZ file with arrays as `arrays_of` takes them.

    Args:
        path: the file; `numpy.savez` writes it.

    Raises:
        UserError: when called, a file that cannot be used.
    """

    path: str | None

    def __call__(self) -> Arrays:
        if not self.path:
            raise UserError("data.path is not set: pass data.path=FILE.npz, with arrays x and y.")
        path = Path(str(self.path)).expanduser()
        return arrays_of(_read(path), wrong=partial(_wrong, path))


def arrays_of(
    found: Mapping[str, Any],
    classes: tuple[str, ...] = (),
    wrong: Wrong = lambda why: UserError(f"data: {why}."),
) -> Arrays:
    """Arrays or tensors as a data set; what its targets mean is for the task to say.

    ``x`` is ``(N, C, *S)`` with up to three axes S, and ``y`` ``(N, ...)``. There may be ``x_test``
    and ``y_test``, else a test part is split off; and ``groups`` ``(N,)``, numbers or texts: no
    group, such as a subject or a recording, is in two of the parts.

    For networks of several inputs, ``x`` is a tuple or a dict of arrays ``(N, ...)``. These are not
    normalised; whole numbers of 32 and 64 bits stay such.

    Args:
        found: by name.
        classes: names of the outputs; (): for the task to say.
        wrong: makes the error of what is wrong.

    Raises:
        UserError: they cannot be used.
    """
    arrays = {name: _plain(found[name]) for name in KEYS if found.get(name) is not None}
    pairs = [_pair(arrays, "x", "y", wrong)]
    if {"x_test", "y_test"} & arrays.keys():
        pairs.append(_pair(arrays, "x_test", "y_test", wrong))
    shapes = [(shapes_of(x), tree_structure(x), y.shape[1:]) for x, y in pairs]
    if shapes[0] != shapes[-1]:
        raise wrong("samples or targets of the test part have another shape than others")
    x = tree_map(lambda *parts: torch.cat(parts), *(x for x, _ in pairs))
    y, sizes = torch.cat([y for _, y in pairs]), [len(y) for _, y in pairs]
    names: tuple[Part, ...] = ("train", "test")
    given = dict(zip(names, torch.split(torch.arange(len(y)), sizes), strict=False))
    groups = _groups(arrays.get("groups"), sizes, wrong)
    return Arrays(x, y, classes, given, None, 1.0, groups, normalised=isinstance(x, Tensor))


def _plain(value: Any) -> Any:
    """Tensors and lists as arrays of NumPy."""
    if isinstance(value, tuple | Mapping):
        return tree_map(_plain, value, is_leaf=lambda leaf: leaf is not value)
    return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)


def _read(path: Path) -> dict[str, Array]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise _wrong(path, "holds one array: save x and y with numpy.savez")
        with file:
            if missing := [name for name in ("x", "y") if name not in file.files]:
                raise _wrong(path, f"lacks {missing[0]!r}, it holds {', '.join(file.files)}")
            return {name: file[name] for name in KEYS if name in file.files}
    except FileNotFoundError:
        raise _wrong(path, "is no file: pass data.path=FILE.npz") from None
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        if "allow_pickle" in str(error):
            why = "holds Python objects, or is no NPZ file: save arrays of numbers"
        else:
            why = f"cannot be read ({' '.join(str(error).split())})"
        raise _wrong(path, why) from None


def _pair(arrays: Mapping[str, Any], x: str, y: str, wrong: Wrong) -> tuple[Inputs, Tensor]:
    """Samples, uint8 or float32, and targets, int64 or float64."""
    if missing := [name for name in (x, y) if name not in arrays]:
        raise wrong(f"lacks {missing[0]!r}")
    samples, targets = arrays[x], arrays[y]
    several = not isinstance(samples, np.ndarray)
    if several and not tree_leaves(samples):
        raise wrong(f"{x} holds no array")
    for name, array in ((x, samples), (y, targets)):
        for leaf in tree_leaves(array):
            if leaf.dtype.kind not in "biuf":
                raise wrong(f"{name} is of {leaf.dtype}: it must be numbers")
    for leaf in tree_leaves(samples):
        if not leaf.size or leaf.ndim < 1 or not (several or 2 <= leaf.ndim <= 5):
            raise wrong(f"{x} is {leaf.shape}: it must be (N, C, *S) with up to three axes S")
        if targets.ndim < 1 or len(leaf) != len(targets):
            raise wrong(f"{x} has {len(leaf)} rows and {y} is {targets.shape}")
    read: Inputs = tree_map(lambda leaf: _samples(x, leaf, several, wrong), samples)
    kind = np.float64 if targets.dtype.kind == "f" else np.int64
    return read, torch.from_numpy(targets.astype(kind))


def _samples(name: str, array: Array, several: bool, wrong: Wrong) -> Tensor:
    if several and array.dtype.kind in "iu" and array.dtype.itemsize >= 4:
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype == np.uint8 and not several:
        return torch.from_numpy(array)
    with np.errstate(over="ignore"):
        kept = array.astype(np.float32)
    if not (finite := np.isfinite(kept.reshape(len(kept), -1)).all(1)).all():
        raise wrong(f"{name} is no finite number in row {int(finite.argmin())}")
    return torch.from_numpy(kept)


def _groups(groups: Array | None, sizes: list[int], wrong: Wrong) -> Tensor | None:
    if groups is None:
        return None
    if groups.shape != (sizes[0],):
        raise wrong(f"groups is {groups.shape}: it must be ({sizes[0]},), one for each row")
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise wrong(f"all rows are of one group ({names[0]}): no other part can be made")
    own = torch.from_numpy(numbers.reshape(-1).astype(np.int64))
    return torch.cat([own, torch.full((sum(sizes[1:]),), -1)])


def _wrong(path: Path, why: str) -> UserError:
    return UserError(f"data.path={path}: {why}.")
