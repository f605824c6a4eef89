"""Run directories -> values: whatever lies below a folder, also what failed or cannot be read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.reading import read_json
from nas.run import RunDir, find_runs

SCHEMA = 1
STATUSES = ("finished", "failed", "interrupted")


@dataclass(frozen=True)
class Run:
    """One run directory as the report sees it.

    `status` is "finished", "failed" or "interrupted" as the run wrote it, "incomplete" without a
    result.json, "unreadable" where it cannot be understood; `message` then says why.
    """

    path: Path
    name: str  # path below the folder reported on
    status: str
    message: str = ""
    seed: int | None = None
    space: str = ""
    data: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arch: Mapping[str, Any] = field(default_factory=dict)
    arch_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parts: tuple[Mapping[str, Any], ...] = ()  # of the network, see `nas.anatomy.Part`

    def obstacle(self, cost: str, metric: str) -> str:
        """Why this run has no place in a figure of these two, or "" where it has one."""
        if self.status != "finished":
            return self.message or "no message"
        wanted = {cost: self.costs.get(cost), metric: self.metrics.get(metric)}
        for name, value in wanted.items():
            if value is None:
                return f"has no {name}"
            if not math.isfinite(value):
                return f"{name} is {value}"
        if self.costs[cost] <= 0:
            return f"{cost} is {self.costs[cost]}, and the cost axis is logarithmic"
        return ""


def gather(folder: Path) -> tuple[Run, ...]:
    """All runs at or below `folder`, in the order of their paths.

    Raises:
        UserError: no such folder, or no run below it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder that your runs lie in")
    runs = tuple(_read(run, folder) for run in find_runs(folder))
    if not runs:
        raise UserError(
            f"no run below {folder}: no result.json and no config.yaml there. "
            "Give the folder that `nas search` wrote to"
        )
    return runs


def differing(runs: Iterable[Run]) -> tuple[str, ...]:
    """Names of the overrides that are not the same in all these runs, the seed left out."""
    tables = [run.overrides for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: {repr(table.get(name)) for table in tables} for name in names}
    return tuple(name for name in names if name != "seed" and len(values[name]) > 1)


def settings(run: Run, names: Sequence[str]) -> str:
    """What sets this run apart, `strength=0.5 tau=1`: the last part of each override's name."""
    short = [name.rsplit(".", 1)[-1] for name in names]
    shown = short if len(set(short)) == len(short) else names
    pairs = zip(shown, names, strict=True)
    return " ".join(f"{key}={run.overrides[name]}" for key, name in pairs if name in run.overrides)


def text_of(path: Path) -> str:
    """The path with "?" for what is no UTF-8: file names are bytes, a report is text."""
    return path.as_posix().encode(errors="replace").decode()


def _read(run: RunDir, folder: Path) -> Run:
    name = text_of(run.path.relative_to(folder))
    try:
        if not run.result.exists():
            message = "no result.json: it still runs, or was stopped (resume=true goes on)"
            return Run(run.path, name, "incomplete", message)
        fields = _fields(read_json(run.result, finite=False))
    except (OSError, ValueError, OverflowError) as error:
        return Run(run.path, name, "unreadable", f"result.json: {error}")
    return Run(run.path, name, **fields)


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"is a {type(record).__name__}, not an object")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"schema {record.get('schema')!r}, this version of nas reads {SCHEMA}")
    if record.get("status") not in STATUSES:
        raise ValueError(f"status {record.get('status')!r}, not one of {', '.join(STATUSES)}")
    seed = record.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise ValueError(f"seed {seed!r} is not a whole number")
    texts = ("status", "message", "space", "data", "arch_hash")
    return {
        "seed": seed,
        **{name: str(record.get(name) or "") for name in texts},
        **{name: _table(record, name) for name in ("overrides", "arch")},
        **{name: _numbers(record, name) for name in ("metrics", "costs", "budgets", "seconds")},
        "parts": _parts(record),
    }


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = record.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{name} is a {type(table).__name__}, not an object")
    return table


def _parts(record: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The pieces of the network; none where the run wrote none, or other ones than are drawn."""
    kinds = {"name": str, "option": str, "channels": int | None, "size": list, "costs": dict}
    parts = record.get("parts") or []
    if not isinstance(parts, list):
        return ()
    for part in parts:
        fits = isinstance(part, dict) and all(isinstance(part.get(k), v) for k, v in kinds.items())
        if not fits or not all(isinstance(c, int | float) for c in part["costs"].values()):
            return ()
    return tuple(parts)


def _numbers(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers of one table; null counts as not measured. Exact counts stay whole numbers."""
    table = {key: value for key, value in _table(record, name).items() if value is not None}
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}.{key} is {value!r}, not a number")
        float(value)  # OverflowError for a count that no axis can show
    return table
