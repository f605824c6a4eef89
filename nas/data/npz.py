"""Samples of any kind in one NPZ file of NumPy: sensor windows, images, volumes, spectra."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.config.schema import checked
from nas.data.splits import Arrays, Part
from nas.errors import UserError

Array = NDArray[Any]
_KEYS = ("x", "y", "x_test", "y_test", "groups")


@checked("data")
@dataclass(frozen=True)
class NpzFile:
    """Source over an NPZ file; what its targets mean is for the task to say.

    The file holds ``x`` ``(N, C, *S)`` with one to three axes S, and ``y`` ``(N, ...)``. It may
    hold ``x_test`` and ``y_test``, else a test part is split off; and ``groups`` ``(N,)``, numbers
    or texts: no group, such as a subject or a recording, is in two of the parts.

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
        found = _read(path)
        parts = [("x", "y"), ("x_test", "y_test")]
        pairs = [_pair(found, names, path) for names in parts if set(names) & found.keys()]
        shapes = [tuple(pair[0].shape[1:]) for pair in pairs]
        ranks = {(pair[1].ndim, *pair[1].shape[1:]) for pair in pairs}
        if len({*shapes}) > 1 or len(ranks) > 1:
            raise _wrong(path, "samples or targets of the test part have another shape than others")
        x, y = (torch.cat(tensors) for tensors in zip(*pairs, strict=True))
        sizes = [len(pair[0]) for pair in pairs]
        names: tuple[Part, ...] = ("train", "test")
        given = dict(zip(names, torch.split(torch.arange(len(x)), sizes), strict=False))
        return Arrays(x, y, (), given, None, 1.0, _groups(found, sizes, path))


def _read(path: Path) -> dict[str, Array]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise _wrong(path, "holds one array: save x and y with numpy.savez")
        with file:
            if missing := [name for name in ("x", "y") if name not in file.files]:
                raise _wrong(path, f"lacks {missing[0]!r}, it holds {', '.join(file.files)}")
            return {name: file[name] for name in _KEYS if name in file.files}
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


def _pair(found: dict[str, Array], names: tuple[str, str], path: Path) -> tuple[Tensor, Tensor]:
    """Samples, uint8 or float32, and targets, int64 or float64."""
    if missing := [name for name in names if name not in found]:
        raise _wrong(path, f"lacks {missing[0]!r}")
    x, y = (found[name] for name in names)
    for name, array in zip(names, (x, y), strict=True):
        if array.dtype.kind not in "biuf":
            raise _wrong(path, f"{name} is of {array.dtype}: it must be numbers")
    if not 3 <= x.ndim <= 5 or not x.size:
        raise _wrong(
            path, f"{names[0]} is {x.shape}: it must be (N, C, *S) with one to three axes S"
        )
    if y.ndim < 1 or len(x) != len(y):
        raise _wrong(path, f"{names[0]} has {len(x)} rows and {names[1]} is {y.shape}")
    with np.errstate(over="ignore"):
        kept = x if x.dtype == np.uint8 else x.astype(np.float32)
    if kept is not x and not (finite := np.isfinite(kept.reshape(len(x), -1)).all(1)).all():
        raise _wrong(path, f"{names[0]} is no finite number in row {int(finite.argmin())}")
    targets = y.astype(np.float64 if y.dtype.kind == "f" else np.int64)
    return torch.from_numpy(kept), torch.from_numpy(targets)


def _groups(found: dict[str, Array], sizes: list[int], path: Path) -> Tensor | None:
    groups = found.get("groups")
    if groups is None:
        return None
    if groups.shape != (sizes[0],):
        raise _wrong(path, f"groups is {groups.shape}: it must be ({sizes[0]},), one for each row")
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise _wrong(path, f"all rows are of one group ({names[0]}): no other part can be made")
    own = torch.from_numpy(numbers.reshape(-1).astype(np.int64))
    return torch.cat([own, torch.full((sum(sizes[1:]),), -1)])


def _wrong(path: Path, why: str) -> UserError:
    return UserError(f"data.path={path}: {why}.")
