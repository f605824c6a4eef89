"""Whole networks measured elsewhere: a CSV file, one network a line, and its columns of numbers.

Columns named after decisions hold the option taken; a column `arch_str` holds a cell of
NAS-Bench-201 instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from nas.artifacts.reading import read_csv
from nas.errors import UserError
from nas.latency.predict import Array
from nas.spaces import nas_bench_201 as cell

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
CELL = "arch_str"
_SHOWN = 10  # faults in one message

Choices = tuple[str, ...]  # the option of each decision, as text

# Operations that a runtime may not run, by name, so that it can be stored. All but "nothing" are
# for the cells of NAS-Bench-201 only.
LEFT_OUT: dict[str, Callable[[Choices], Sequence[bool]] | None] = {
    "nothing": None,
    "unreachable": cell.reaching,  # all but those that reach the output are left out
    "dead": cell.live,  # and those too that the input does not reach
}


@dataclass(frozen=True)
class MeasuredNetworks:
    """A table of networks and their latencies.

    Args:
        options: decision name -> its options, as text.
        choices: of each network, in the order of `options`.
        seconds: of each network.
    """

    options: Mapping[str, tuple[str, ...]]
    choices: tuple[Choices, ...]
    seconds: tuple[float, ...]

    def subset(self, indices: Sequence[int]) -> "MeasuredNetworks":
        """Only these networks."""
        return MeasuredNetworks(
            self.options,
            tuple(self.choices[i] for i in indices),
            tuple(self.seconds[i] for i in indices),
        )


def read_networks(
    path: Path,
    column: str,
    unit: str = "ms",
    options: Mapping[str, Sequence[object]] | None = None,
) -> MeasuredNetworks:
    """Read the networks and their latencies.

    Args:
        column: the one with the latencies.
        unit: of that column: s, ms or us.
        options: the decisions of the space and their options. Without them every column but
            `column` is a decision, and its options are those that occur.

    Raises:
        UserError: the file cannot be read or lacks a column; or lines with a fault, each named:
            no number, not above 0, an option missing or unknown, an architecture seen before.
    """
    if unit not in SECONDS:
        raise UserError(f"unit={unit!r} must be one of {list(SECONDS)}")
    header, lines = _lines(path)
    names = _decisions(path, header, column, options)
    seconds, choices, faults = [], [], []
    seen: dict[Choices, int] = {}
    for number, fields in lines:
        try:
            row = _row(header, fields)
            taken = _choices(row, names)
            value = _latency(row[column]) * SECONDS[unit]
            if taken in seen:
                raise UserError(f"the same architecture as line {seen[taken]}")
        except UserError as error:
            faults.append(f"line {number}: {error}")
            continue
        seen[taken] = number
        choices.append(taken)
        seconds.append(value)
    _refuse(path, faults)
    if not choices:
        raise UserError(f"{path} has no line below its header")
    found = {
        name: known or tuple(sorted({taken[i] for taken in choices}))
        for i, (name, known) in enumerate(names.items())
    }
    return MeasuredNetworks(found, tuple(choices), tuple(seconds))


def edge_names() -> list[str]:
    """The decisions of a NAS-Bench-201 cell."""
    return [f"{source}->{to}" for source, to in cell.EDGES]


def _lines(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        lines = read_csv(Path(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the table {path}: {error}") from None
    header = [name.strip() for name in lines[0][1]] if lines else []
    return header, lines[1:]


def _decisions(
    path: Path,
    header: Sequence[str],
    column: str,
    options: Mapping[str, Sequence[object]] | None,
) -> dict[str, tuple[str, ...]]:
    """Decision name -> its options; none where they are to be taken from the table."""
    if options is not None:
        names = {name: tuple(map(str, known)) for name, known in options.items()}
    elif CELL in header:
        names = dict.fromkeys(edge_names(), cell.OPS)
    else:
        names = {name: () for name in header if name != column}
    needed = [] if CELL in header and list(names) == edge_names() else list(names)
    missing = [name for name in (column, *needed) if name not in header]
    twice = sorted({name for name in header if header.count(name) > 1})
    if missing or twice or not names:
        raise UserError(
            f"{path}: its header lacks {missing} and has {twice} twice; it must name the column "
            f"{column!r} and each decision once, or {CELL!r} for a NAS-Bench-201 cell. "
            f"It has {list(header)}"
        )
    return names


def _row(header: Sequence[str], fields: Sequence[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise UserError(f"{len(fields)} fields, the header has {len(header)}")
    return {name: value.strip() for name, value in zip(header, fields, strict=True)}


def _choices(row: Mapping[str, str], names: Mapping[str, tuple[str, ...]]) -> Choices:
    if CELL in row and list(names) == edge_names():
        return cell.parse(row[CELL])
    for name, known in names.items():
        if not row[name] or (known and row[name] not in known):
            wanted = f"must be one of {list(known)}" if known else "is missing"
            raise UserError(f"option {row[name]!r} of {name!r} {wanted}")
    return tuple(row[name] for name in names)


def _latency(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"latency {text!r} is {'no number' if text else 'missing'}") from None
    if not (isfinite(value) and value > 0):
        raise UserError(f"latency {text} must be above 0 and finite")
    return value


def _refuse(path: Path, faults: Sequence[str]) -> None:
    if faults:
        more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        shown = "\n".join(faults[:_SHOWN])
        raise UserError(
            f"{path}: {len(faults)} lines are faulty; mend or delete them:\n{shown}{more}"
        )


@dataclass(frozen=True)
class Encoding:
    """Options taken -> numbers.

    Args:
        options: decision name -> its options.
        basis: "onehot": decision x option ``(P,)``; "counts": how often each option is taken,
            wherever ``(O,)``.
        left_out: one of `LEFT_OUT`; operations that are left out have zeros only.

    Raises:
        UserError: decisions without options, or an omission that does not know these decisions.
    """

    options: Mapping[str, tuple[str, ...]]
    basis: Literal["onehot", "counts"]
    left_out: Literal["nothing", "unreachable", "dead"] = "nothing"

    def __post_init__(self) -> None:
        if not self.options or not all(self.options.values()):
            raise UserError(f"decisions without options: {dict(self.options)}")
        if self.left_out != "nothing" and list(self.options) != edge_names():
            raise UserError(
                f"left_out={self.left_out!r} is for the decisions {edge_names()}, not for "
                f"{list(self.options)}: choose left_out='nothing'"
            )

    @property
    def columns(self) -> int:
        """How many numbers a network has."""
        every = [option for known in self.options.values() for option in known]
        return len(every if self.basis == "onehot" else set(every))

    def __call__(self, choices: Sequence[Choices]) -> Array:
        """``(n, P)`` or ``(n, O)``."""
        onehot = _onehot(tuple(self.options.items()), self.left_out, tuple(choices))
        if self.basis == "onehot":
            return onehot
        every = [option for known in self.options.values() for option in known]
        distinct = list(dict.fromkeys(every))
        sums = [[float(option == other) for other in distinct] for option in every]
        counts: Array = onehot @ np.array(sums)
        return counts


@lru_cache(maxsize=16)  # one table is encoded for many models
def _onehot(
    options: tuple[tuple[str, tuple[str, ...]], ...], left_out: str, choices: tuple[Choices, ...]
) -> Array:
    """``(n, P)``: 1 where a decision takes an option that runs."""
    places = {pair: i for i, pair in enumerate((d, o) for d, known in options for o in known)}
    out = np.zeros((len(choices), len(places)))
    runs = LEFT_OUT[left_out]
    for row, taken in zip(out, choices, strict=True):
        present = runs(taken) if runs else (True,) * len(taken)
        for (name, known), option, here in zip(options, taken, present, strict=True):
            if option not in known:
                raise UserError(f"option {option!r} of {name!r} must be one of {list(known)}")
            row[places[name, option]] = here
    out.flags.writeable = False
    return out
