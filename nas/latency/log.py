"""The measurements as they are made: one JSON object a line, so that an interruption loses none."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import UserError

SCHEMA = 1
REFERENCE = (
    "reference"  # a kernel that does the same work in every round, see `nas.latency.machine`
)
_FREE = ("date",)  # may differ when measuring goes on


class MeasurementLog:
    """Times in nanoseconds of named things, in a file that grows.

    The first line says what is measured, on what, and how; the others ``{"name", "of", "ns"}``
    are calls of one round, `of` how many there shall be in all.

    Args:
        about: for the first line; JSON values.

    Raises:
        UserError: the file is of other measurements, or cannot be read or written.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self.rounds: dict[str, list[list[int]]] = {}
        self._at: dict[str, list[int]] = {}  # of each row in `rounds`, the round it belongs to
        self.target: dict[str, int] = {}
        lines = self._read()
        if lines:
            self._check(lines[0], about)
            for line in lines[1:]:
                self._keep(line)
        # Only whole lines: a kill may leave half of one.
        self._write([{"schema": SCHEMA, **about}] if not lines else [], keep=bool(lines))

    def add(self, rows: Sequence[tuple[str, int, list[int]]]) -> None:
        """Append calls ``(name, how many in all, nanoseconds)``."""
        lines = [{"name": name, "of": of, "ns": ns} for name, of, ns in rows]
        for line in lines:
            self._keep(line)
        self._write(lines)

    def calls(self, name: str) -> list[int]:
        """Every time measured of `name`."""
        return [ns for row in self.rounds.get(name, []) for ns in row]

    def steady(self, name: str) -> list[float]:
        """The same, as if the machine had always been as fast as in its best round.

        How fast it was in a round, the reference kernel tells: where others share a processor,
        units and whole networks that are measured minutes apart would not be comparable.
        """
        pace = [float(np.percentile(row, 20)) for row in self.rounds.get(REFERENCE, [])]
        best = min(pace, default=1.0)
        pace.append(best)  # of a round that was cut short nothing is known
        rows = zip(self.rounds.get(name, []), self._at.get(name, []), strict=True)
        return [ns * best / pace[at] for row, at in rows for ns in row]

    def done(self, name: str) -> bool:
        """Whether `name` has been called as often as was planned."""
        return name in self.target and len(self.calls(name)) >= self.target[name]

    def _read(self) -> list[Any]:
        if not self.path.exists():
            return []
        try:
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            if whole != text:
                self.path.write_text(whole, encoding="utf-8")
            return [json.loads(line) for line in whole.splitlines()]
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

    def _keep(self, line: Any) -> None:
        try:
            name, of, ns = line["name"], int(line["of"]), [int(n) for n in line["ns"]]
        except (TypeError, KeyError, ValueError):
            raise UserError(
                f"{self.path} is damaged: a line must hold name, of and ns, got {line!r}"[:300]
            ) from None
        self.target[name] = of
        # A round ends with the reference.
        self._at.setdefault(name, []).append(len(self.rounds.get(REFERENCE, [])))
        self.rounds.setdefault(name, []).append(ns)

    def _write(self, lines: Sequence[Mapping[str, Any]], keep: bool = True) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a" if keep else "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path} ({error.strerror}); choose another out=FILE"
            ) from None
