"""The measurements as they are made: one JSON object a line, so that an interruption loses none."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas.errors import UserError, is_full
from nas.reading import TABLE, parse_json, read_text
from nas.run import naming

SCHEMA = 1
_FREE = ("date",)  # may differ when measuring goes on


class Row(NamedTuple):
    """Calls of one thing in one round.

    Attributes:
        of: how many calls there shall be in all.
        ns: nanoseconds of each.
        reference: of a kernel that always does the same work, just before and after; see
            `nas.latency.machine.reference_kernel`. Empty: nothing is known.
    """

    name: str
    of: int
    ns: list[int]
    reference: list[int]


class MeasurementLog:
    """Times in nanoseconds of named things, in a file that grows.

    The first line says what is measured, on what, and how; the others are rows, see `Row`.

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
        if lines:
            self._check(lines[0], about)
            for line in lines[1:]:
                self._keep(self._row(line))
        # Only whole lines: a kill may leave half of one.
        self._write([{"schema": SCHEMA, **about}] if not lines else [], keep=bool(lines))

    def add(self, rows: Sequence[Row]) -> None:
        """Append the calls of a round."""
        for row in rows:
            self._keep(row)
        self._write([row._asdict() for row in rows])

    def calls(self, name: str) -> list[int]:
        """Every time measured of `name`."""
        return [ns for row in self.rows.get(name, []) for ns in row.ns]

    def steady(self, name: str, part: slice = slice(None)) -> list[float]:
        """The same, as if the machine were always at one pace.

        The reference kernel tells how fast it was just then: where others share a processor, or it
        changes its clock, things measured minutes apart would not be comparable. Of the kernel's
        times around a row the least counts: it is so short that a disturbance doubles it.

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
