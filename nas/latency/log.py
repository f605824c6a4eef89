"""The file of measurements that grows while measuring, and whether they can be trusted.

It has one JSON object a line, so that an interruption loses none.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.artifacts.files import naming
from nas.artifacts.reading import TABLE, parse_json, read_text
from nas.errors import UserError, is_full

SCHEMA = 1
_FREE = ("date",)  # may differ when measuring goes on
REPEAT = 0.03  # largest difference between the first half of the time and the second
LOAD = 0.75  # of the cores, before the start: more than the profile before this one takes


class Row(NamedTuple):
    """Calls of one thing in one round.

    Attributes:
        of: planned number of calls in all rounds.
        ns: nanoseconds of each.
        reference: nanoseconds of `nas.latency.measure.reference_kernel` just before and after; may
            be empty.
    """

    name: str
    of: int
    ns: list[int]
    reference: list[int]


class MeasurementLog:
    """Times in nanoseconds of named things, in a file that grows.

    The first line says what is measured, on which machine, and how; the others are of `Row`.

    Args:
        about: for the first line; JSON values.

    Raises:
        UserError: the file is of other measurements, or cannot be read or written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[str, list[Row]] = {}
        self.references: list[int] = []  # every time of the reference kernel, in order
        lines = self._read()
        if len(lines) == 1 and isinstance(lines[0], dict) and lines[0].keys() == {"schema", *about}:
            lines = []  # nothing was measured: what is mended now, e.g. a command, may differ
        if lines:
            self._check(lines[0], about)
            for line in lines[1:]:
                self._keep(self._row(line))
        # Only whole lines: a kill may leave half of one.
        self._write([{"schema": SCHEMA, **about}] if not lines else [], keep=bool(lines))

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of a round to the file."""
        for row in rows:
            self._keep(row)
        self._write([row._asdict() for row in rows])

    def calls(self, name: str) -> list[int]:
        """Every time measured of `name`."""
        return [ns for row in self.rows.get(name, []) for ns in row.ns]

    def normalized_times(self, name: str, part: slice = slice(None)) -> list[float]:
        """Every time measured of `name`, divided by how slow the machine was at that moment.

        The reference kernel tells that: where others share a processor, or it changes its clock,
        things measured minutes apart would not be comparable otherwise. The least of the kernel's
        times around a row counts: it is so short that a disturbance doubles it.

        Args:
            part: of the rounds.
        """
        one = float(np.percentile(self.references, 20)) if self.references else 1.0
        return [
            ns * (one / min(row.reference) if row.reference else 1.0)
            for row in self.rows.get(name, [])[part]
            for ns in row.ns
        ]

    def done(self, name: str) -> bool:
        """Whether `name` has been called as often as was planned."""
        rows = self.rows.get(name, [])
        return bool(rows) and len(self.calls(name)) >= rows[-1].of

    def _read(self) -> list[Any]:
        if not self.path.exists():
            return []
        try:
            text = read_text(self.path, TABLE)
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                os.truncate(self.path, len(whole.encode()))
            return [parse_json(line) for line in whole.splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} holds no measurements that can be read ({error}): remove it, or "
                "choose another out=FILE"
            ) from None

    def _check(self, found: Any, about: Mapping[str, Any]) -> None:
        wanted = {"schema": SCHEMA, **json.loads(json.dumps(about))}
        found = found if isinstance(found, dict) else {}
        for key in wanted.keys() - set(_FREE):
            if found.get(key) != wanted[key]:
                raise UserError(
                    f"{self.path} holds measurements with {key}={found.get(key)!r}, and now it is "
                    f"{wanted[key]!r}: choose another out=FILE, or remove that file"
                )

    def _row(self, line: Any) -> Row:
        try:
            times = ([int(n) for n in line[key]] for key in ("ns", "reference"))
            return Row(line["name"], int(line["of"]), *times)
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{self.path} is damaged: a line must hold {', '.join(Row._fields)}, got {line!r}"
            ) from None

    def _keep(self, row: Row) -> None:
        self.rows.setdefault(row.name, []).append(row)
        self.references += row.reference

    def _write(self, lines: Sequence[Mapping[str, Any]], keep: bool = True) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with naming(self.path), self.path.open("a" if keep else "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); choose another out=FILE"
            ) from None


def measurement_quality(
    references: Sequence[int], load_before: float | None, repeats: Sequence[float]
) -> dict[str, Any]:
    """Judge whether the measurements can be trusted, and give every reason against it.

    A machine that changes its speed is no reason, as long as the same figures come out.

    Args:
        references: nanoseconds of the reference kernel, in the order they were measured.
        load_before: see `nas.latency.runtimes.machine_load`.
        repeats: of each thing measured, its time in the first half over that in the second.
    """
    reasons = []
    facts: dict[str, Any] = {"load_before": load_before}
    if references:
        every = np.asarray(references, dtype=np.float64)
        low = [np.percentile(part, 20) for part in np.array_split(every, 10) if len(part)]
        facts["spread"] = float(np.median(every) / every.min())
        facts["drift"] = float(max(low) / min(low))
    if repeats:
        facts["repeat"] = float(np.median(np.abs(np.asarray(repeats) - 1)))
        if facts["repeat"] > REPEAT:
            reasons.append(f"measured twice, figures differ by {facts['repeat']:.1%}")
    if load_before is not None and load_before > LOAD:
        reasons.append(f"{load_before:.0%} of the cores were busy before the start")
    return {"trusted": not reasons, "reasons": reasons, **facts}


def quality_text(quality: Mapping[str, Any]) -> str:
    """One line for people."""
    if quality.get("counted"):
        return "instructions are counted in QEMU: each time the same figures"
    if quality["trusted"]:
        repeat = quality.get("repeat")
        agree = "" if repeat is None else f": measured twice, figures agree to {repeat:.1%}"
        return f"the machine was quiet{agree}"
    return (
        f"not to be trusted: {'; '.join(quality['reasons'])}. Measure again while nothing else runs"
    )
