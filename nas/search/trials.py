"""Trials: scored architectures, one line of JSON each, so that none is scored twice."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, log
from pathlib import Path
from typing import Any

from nas.arch import Arch
from nas.artifacts.files import csv_table, is_main, naming, write_atomic
from nas.artifacts.reading import TABLE, parse_json, read_bytes
from nas.errors import UserError
from nas.pareto import non_dominated, thinned
from nas.quantities import error_of

SCHEMA = 1
_SPLITS = ("val_", "test_", "raw_val_")  # how the metrics of a split are named


@dataclass(frozen=True)
class Rung:
    """The scores of a network after so many epochs, where its training paused."""

    epochs: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One architecture with its scores.

    `metrics` is empty where scoring failed (a loss that became NaN); `message` then says why.
    """

    arch: Arch
    metrics: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # wall clock
    cpu_seconds: float = 0.0  # of the process that scored it: comparable on a shared machine
    message: str | None = None
    rungs: tuple[Rung, ...] = ()  # of successive halving; `metrics` are those of the last

    @property
    def epochs(self) -> int:
        """Epochs of training, where networks are trained for different times; else 0."""
        return self.rungs[-1].epochs if self.rungs else 0

    def value(self, name: str) -> float:
        """The metric of a split by `nas.quantities.error_of`, else the figure: to be minimised.

        Infinite where scoring failed.

        Raises:
            UserError: no such metric or cost, naming those there are.
        """
        if not self.metrics:
            return inf
        known = {**self.costs, **self.metrics}
        if name not in known:
            raise UserError(f"trials have no {name!r}, only {sorted(known)}")
        judged = name.startswith(_SPLITS) or name.endswith("_score")
        return error_of(name, known[name]) if judged else known[name]

    def to_json(self) -> str:
        """One line."""
        record: dict[str, Any] = {
            "schema": SCHEMA,
            "hash": self.arch.hash,
            "space": self.arch.space,
            "choices": dict(self.arch.choices),
            "metrics": dict(self.metrics),
            "costs": dict(self.costs),
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "message": self.message,
        }
        if self.rungs:
            record["rungs"] = [{"epochs": r.epochs, "metrics": dict(r.metrics)} for r in self.rungs]
        return json.dumps(record, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Trial":
        """The inverse of `to_json`.

        Raises:
            ValueError: not such a line.
        """
        raw = parse_json(line)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise ValueError(f"not a trial of schema {SCHEMA}")
        known = {"schema": 1, "space": raw["space"], "choices": raw["choices"]}
        arch = Arch.from_json(json.dumps(known), "a trial")
        message = raw["message"]
        if message is not None and not isinstance(message, str):
            raise ValueError(f"message={message!r} is no text")
        rungs = tuple(
            Rung(round(_number(rung["epochs"])), _numbers(rung["metrics"]))
            for rung in raw.get("rungs", ())
        )
        scores = _numbers(raw["metrics"]), _numbers(raw["costs"])
        seconds = _number(raw["seconds"]), _number(raw["cpu_seconds"])
        return cls(arch, *scores, *seconds, message, rungs)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")
    return value


def _numbers(table: Any) -> dict[str, float]:
    if not isinstance(table, dict):
        raise ValueError(f"{table!r} is no object of numbers")
    return {name: _number(value) for name, value in table.items()}


class TrialLog:
    """``trials.jsonl``: appended to and synced trial by trial, so that kill -9 loses none.

    An incomplete last line, left by a killed run, is cut off, and that trial is scored again.

    Args:
        path: the file; missing is empty.

    Raises:
        UserError: a line before the last one cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn = False
        self.known: dict[str, Trial] = {}
        for trial in self._read():
            self.known[trial.arch.hash] = trial

    def __len__(self) -> int:
        return len(self.known)

    def get(self, arch: Arch) -> Trial | None:
        """The trial of `arch`; None where there is none."""
        return self.known.get(arch.hash)

    def append(self, trial: Trial) -> None:
        """Add a line, on the first rank; on return it is on the disk."""
        self.known[trial.arch.hash] = trial
        if not is_main():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path):
            if self._torn:  # only who writes may cut: a reader may look while another run writes
                os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)
                self._torn = False
            with self.path.open("a", encoding="utf-8") as file:
                file.write(trial.to_json() + "\n")
                file.flush()
                os.fsync(file.fileno())

    def sort(self, batches: Mapping[str, int]) -> None:
        """Bring the lines into the order in which one worker would have written them.

        Lines of other searches stay in front.

        Args:
            batches: hash -> number of the batch it was asked for in, in the order of asking.
        """
        places = {key: place for place, key in enumerate(batches)}

        def order(trial: Trial) -> tuple[int, int, int]:
            key = trial.arch.hash
            return batches.get(key, -1), len(trial.rungs), places.get(key, -1)

        lines = list(self._read())
        if (ordered := sorted(lines, key=order)) != lines:
            write_atomic(self.path, "".join(trial.to_json() + "\n" for trial in ordered))

    def _read(self) -> Iterator[Trial]:
        if not self.path.exists():
            return
        try:
            content = read_bytes(self.path, TABLE)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the trials in {self.path}: {error}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode("utf-8", "replace").splitlines(), start=1):
            try:
                yield Trial.from_json(line)
            except (ValueError, KeyError, TypeError, UserError) as error:
                raise UserError(
                    f"{self.path}, line {number} is no trial ({error}): remove the line, and what "
                    "it stood for is scored again"
                ) from None
        self._torn = len(whole) < len(content)


def comparable(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were scored; under successive halving, those of them trained longest."""
    scored = [trial for trial in trials if trial.metrics]
    longest = max((trial.epochs for trial in scored), default=0)
    return [trial for trial in scored if trial.epochs == longest]


def front_of(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """The trials that no other `comparable` one dominates, in the order given."""
    scored = comparable(trials)
    points = [[trial.value(name) for name in objectives] for trial in scored]
    kept: Sequence[bool] = list(non_dominated(points)) if points else []
    return [trial for trial, on_it in zip(scored, kept, strict=True) if on_it]


def thinned_front(trials: Sequence[Trial], objectives: Sequence[str], size: int) -> list[Trial]:
    """At most `size` trials of the front, the cheapest first.

    Of a front of more trials those that hold the most hypervolume of score and log cost, see
    `nas.pareto.thinned`.

    Args:
        objectives: the score and the cost.

    Raises:
        UserError: `size` below 1.
    """
    if size < 1:
        raise UserError(f"front={size} must be at least 1")
    score, cost = objectives
    front = front_of(trials, objectives)
    points = [[t.value(score), log(max(t.value(cost), 1e-300))] for t in front]
    return [front[i] for i in thinned(points, size)] if points else []


def table_of(trials: Sequence[Trial], objectives: Sequence[str]) -> str:
    """The trials as CSV, one row each, with a column that says which are on the front."""
    on_front = {trial.arch.hash for trial in front_of(trials, objectives)}
    rows: list[dict[str, Any]] = [
        {
            "hash": trial.arch.hash,
            **dict(trial.arch.choices),
            **trial.costs,
            **trial.metrics,
            "seconds": trial.seconds,
            "cpu_seconds": trial.cpu_seconds,
            **({"epochs": trial.epochs} if trial.epochs else {}),
            "front": int(trial.arch.hash in on_front),
        }
        for trial in trials
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_table(names, ([row.get(name, "") for name in names] for row in rows))
