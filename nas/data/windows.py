"""Windows of sensor channels, cut out of tables of rows in time order: CSV, Parquet or NPZ."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from nas.config.folders import files_below, part_folders
from nas.config.schema import Count, Name, Whole, checked
from nas.data.splits import Arrays, Part
from nas.data.tables import (
    COLUMNS,
    ENDINGS,
    Array,
    Columns,
    column,
    complete,
    read_table,
    targets_of,
    wrong,
)
from nas.errors import UserError

_LOG = logging.getLogger(__name__)
_STRETCHES = 20  # of a lone file: each is in one part
Mixed = Literal["auto", "majority", "last", "mean", "drop", "refuse"]
Piece = tuple[Array, Array, list[str]]  # samples, targets, groups of the windows of a run


@checked("data")
@dataclass(frozen=True)
class Windows:
    """Source over tables with a column for each channel and a row for each point in time.

    A window is `length` rows of one run: rows that follow each other in a file and have one group
    and one segment. Rows left over at the end of a run are not used. All windows of a group are in
    one part: without a group column each file of a part is a group, and a lone file is cut into
    stretches of time that are groups, so that no row is in two parts.

    Args:
        path: a CSV or Parquet file, or an NPZ file with an array ``(rows,)`` for each column; or a
            folder of such files, or of folders train, test and maybe val of such files.
        length: rows of a window.
        hop: rows from the start of a window to that of the next; None: `length`.
        channels: columns to read; None: all columns of numbers that are nothing else here.
        target: columns of labels or numbers; with `horizon` the channels to forecast, None for all.
        mixed: what a window gets whose rows have several targets: that of most rows ("majority",
            of equals the first in order), of the "last" row, or the "mean" of numbers; or "drop"
            such windows, or "refuse" them. "auto": the mean of floating point, else the majority.
        group: column of subjects, devices, ...
        segment: column that ends a run where its value changes, such as the number of a recording.
        missing: "refuse" missing values of channels, or "fill" them on a line between those before
            and after them in the run.
        horizon: the targets are that many rows behind the window; 0: they are its own.

    Raises:
        UserError: when called, tables that cannot be used.
    """

    path: str | None
    length: Count = 128
    hop: Count | None = None
    channels: Columns = None
    target: Columns = None
    mixed: Mixed = "auto"
    group: Name | None = None
    segment: Name | None = None
    missing: Literal["refuse", "fill"] = "refuse"
    horizon: Whole = 0

    def __call__(self) -> Arrays:
        if not self.path:
            raise UserError(f"data.path is not set: pass data.path=FILE or FOLDER, {COLUMNS}.")
        if self.target is None and not self.horizon:
            raise UserError(
                "data.target is not set: pass data.target=COLUMN, of labels or numbers, or "
                "data.horizon=ROWS to forecast the channels."
            )
        files = _files(Path(str(self.path)).expanduser())
        tables = [(part, path, read_table(path)) for part, paths in files.items() for path in paths]
        channels, names = self._columns(*tables[0][1:])
        targets, classes = targets_of(
            [table[1:] for table in tables], [] if self.horizon else names, "target"
        )
        if classes and self.mixed == "mean":
            raise UserError("data.mixed=mean is for numbers, and data.target has texts: majority.")
        found: dict[Part, list[Piece]] = {part: [] for part in files}
        for (part, path, table), own in zip(tables, targets, strict=True):
            x = np.stack([_numbers(table, name, path) for name in channels], 1)
            for rows, group in self._runs(table, path, alone=len(files[part]) == 1):
                filled = self._filled(x[rows], rows, channels, path)
                found[part].append(self._cut(filled, own[rows], len(names), group, path))
        return self._joined(found, tuple(names), classes)

    def _columns(self, path: Path, table: Any) -> tuple[list[str], list[str]]:
        """Names of the channels, first those to forecast, and of the targets."""
        targets, other = _listed(self.target), [*_listed(self.group), *_listed(self.segment)]
        taken = {*other, *(() if self.horizon else targets)}
        numbers = [str(name) for name in table.select_dtypes("number").columns]
        channels = _listed(self.channels) or [name for name in numbers if name not in taken]
        if not channels:
            raise wrong(path, "has no column of numbers beside those of targets and groups")
        if both := taken & set(channels):
            raise UserError(
                f"data.channels names {min(both)!r}, which is no channel: leave it out."
            )
        if self.channels is None:
            _LOG.info("data.channels=[%s]", ",".join(channels))
        if not self.horizon:
            return channels, targets
        targets = targets or channels
        return [*targets, *(name for name in channels if name not in targets)], targets

    def _runs(self, table: Any, path: Path, alone: bool) -> list[tuple[slice, str]]:
        """Rows that follow each other, and their group."""
        rows, span = len(table), self.length + self.horizon
        borders = np.zeros(rows, dtype=bool)
        borders[:1] = True
        groups = np.full(rows, str(path), dtype=object)
        if self.group is not None:
            groups = _marks(table, self.group, path)
        elif alone:
            stretches = min(_STRETCHES, max(3, rows // (2 * span)))
            numbers = np.arange(rows) * stretches // max(rows, 1)
            groups = np.array([f"{path} {number}" for number in numbers], dtype=object)
        marks = [groups]
        if self.segment is not None:
            marks.append(_marks(table, self.segment, path))
        for mark in marks:
            borders[1:] |= mark[1:] != mark[:-1]
        starts = [*np.flatnonzero(borders).tolist(), rows]
        return [(slice(a, b), str(groups[a])) for a, b in pairwise(starts) if b - a >= span]

    def _filled(self, x: Array, rows: slice, channels: Sequence[str], path: Path) -> Array:
        """The channels of a run ``(rows, C)`` without missing values."""
        for c in np.flatnonzero(~np.isfinite(x).all(0)).tolist():
            known = np.isfinite(x[:, c])
            row = rows.start + int(known.argmin())
            if np.isinf(x[:, c]).any():
                raise wrong(
                    path, f"column {channels[c]!r} is infinite or above 3e38, near row {row}"
                )
            if self.missing == "refuse":
                why = f"column {channels[c]!r} has no value in row {row}: pass data.missing=fill"
                raise wrong(path, f"{why}, or leave such rows out")
            if not known.any():
                raise wrong(path, f"column {channels[c]!r} has no value in the run from row {row}")
            places = np.arange(len(x))
            x[:, c] = np.interp(places, places[known], x[known, c])
        return x

    def _cut(self, x: Array, y: Array, count: int, group: str, path: Path) -> Piece:
        """The windows of a run: samples ``(N, C, length)``, and their targets."""
        step = self.hop or self.length
        samples = sliding_window_view(x[: len(x) - self.horizon], self.length, axis=0)[::step]
        if self.horizon:
            ahead = sliding_window_view(x[self.length :, :count], self.horizon, axis=0)[::step]
            return samples, ahead.swapaxes(1, 2), [group] * len(samples)
        spans = sliding_window_view(y, self.length, axis=0)[::step]
        same = (spans == spans[..., :1]).all((1, 2))
        if self.mixed == "refuse" and not same.all():
            row = int(same.argmin()) * step
            raise wrong(
                path,
                f"a window of group {group} has several targets (window from row "
                f"{row} of its run): pass data.mixed=majority, last, mean or drop",
            )
        if self.mixed == "majority" and y.dtype.kind == "f":
            raise UserError("data.mixed=majority is for labels, and data.target has numbers: mean.")
        if self.mixed == "drop":
            samples, spans = samples[same], spans[same]
        rule = self.mixed
        if rule == "auto":
            rule = "mean" if y.dtype.kind == "f" else "majority"
        return samples, _RULES[rule](spans), [group] * len(samples)

    def _joined(
        self, found: dict[Part, list[Piece]], names: tuple[str, ...], classes: tuple[str, ...]
    ) -> Arrays:
        sizes = {part: sum(len(x) for x, _, _ in own) for part, own in found.items()}
        for part, size in sizes.items():
            if not size:
                raise UserError(
                    f"data.path={self.path}: no window of data.length={self.length} rows"
                    + (f" and data.horizon={self.horizon}" if self.horizon else "")
                    + f" is in one run of the {part} part: pass a smaller data.length, or look at "
                    "data.segment and data.group."
                )
        groups = {part: {g for *_, names in own for g in names} for part, own in found.items()}
        for part in list(groups)[1:]:
            if both := groups["train"] & groups[part]:
                raise UserError(
                    f"data.group={self.group}: {min(both)!r} is in train and in {part}: move it."
                )
        pieces = [piece for own in found.values() for piece in own]
        x, y = (np.concatenate([piece[i] for piece in pieces]) for i in (0, 1))
        _, numbers = np.unique([g for *_, names in pieces for g in names], return_inverse=True)
        parts = torch.split(torch.arange(len(x)), list(sizes.values()))
        if y.ndim == 2 and y.shape[1] == 1:
            y = y[:, 0]
        return Arrays(
            torch.from_numpy(x),
            torch.from_numpy(y),
            names if y.ndim > 1 or y.dtype.kind == "f" else classes,
            dict(zip(sizes, parts, strict=True)),
            largest=1,
            groups=torch.from_numpy(numbers.reshape(-1)),
        )


def _majority(spans: Array) -> Array:
    """The value of most rows ``(N, K)``; of equals the least."""
    values, places = np.unique(spans, return_inverse=True)
    places = places.reshape(spans.shape)
    counts = np.stack([(places == k).sum(-1) for k in range(len(values))], -1)
    chosen: Array = values[counts.argmax(-1)]
    return chosen


def _last(spans: Array) -> Array:
    return spans[..., -1]


_RULES: dict[str, Callable[[Array], Array]] = {
    "majority": _majority,
    "last": _last,
    "mean": lambda spans: cast(Array, spans.mean(-1)),
    "drop": _last,  # as all are the same
    "refuse": _last,
}


def _marks(table: Any, name: str, path: Path) -> Array:
    """A column as texts that are compared."""
    return cast(Array, complete(table, name, path).astype(str).to_numpy(dtype=object))


def _numbers(table: Any, name: str, path: Path) -> Array:
    """A channel ``(rows,)`` as float32."""
    values = column(table, name, path)
    if values.dtype.kind not in "biuf":
        raise wrong(path, f"column {name!r} holds {values.iloc[0]!r}: a channel must be numbers")
    with np.errstate(over="ignore"):
        return cast(Array, values.to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32))


def _listed(names: Columns) -> list[str]:
    return [] if names is None else [names] if isinstance(names, str) else [*map(str, names)]


def _files(path: Path) -> dict[Part, list[Path]]:
    """The tables of each part."""
    if not path.is_dir():
        return {"train": [path]}
    tables_in = partial(files_below, endings=ENDINGS)
    parts = part_folders(path, tables_in)
    found = {part: tables_in(folder) for part, folder in parts.items()}
    for part, folder in parts.items():
        if not found[part]:
            raise UserError(f"data.path: {folder} holds no table: add some, {COLUMNS}.")
    return cast(dict[Part, list[Path]], found)
