"""Read the runs below folders, also those that failed or cannot be read."""

import json
import math
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.artifacts import RunDir, find_runs
from nas.artifacts.reading import read_config, read_json
from nas.config.model import SPACE
from nas.config.saved import needs_trust
from nas.errors import UserError
from nas.quantities import primary_metrics
from nas.report.summary import BlockSummary, read_blocks
from nas.report.templates import metric_text

SCHEMA = 1
BEST = "*"  # the mark of the best
ABOUT_BEST = f"{BEST} best of its search by validation; the run's own files are copies of its files"
STATUSES = ("finished", "failed", "interrupted")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of one run directory, as far as a report shows it.

    `status` is "finished", "failed" or "interrupted" as the run wrote it, "incomplete" without a
    result.json, "unreadable" where that file is damaged; `message` gives the reason.
    Records are compared by identity, so that they can be keys.
    """

    path: Path
    name: str  # path below the folder reported on
    status: str
    message: str = ""
    primary: str = "test_acc"  # the metric that networks of its task are judged by
    seed: int | None = None
    search: str = ""  # its option of `search`; of a network taken out of a run, that of the run
    space: str = ""
    data: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    arch: Mapping[str, Any] = field(default_factory=dict)
    arch_hash: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    trained: bool = True  # else the weights are the supernet's as they are
    best: bool = False  # of its search, by validation: the search's run has copies of its files
    blocks: tuple[BlockSummary, ...] = ()

    def exclusion_reason(self, cost: str, metric: str) -> str:
        """Why a figure of this cost and metric cannot show the run; "" if it can."""
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

    @property
    def settings(self) -> str:
        """All its overrides, as on the command line."""
        return " ".join(f"{name}={value}" for name, value in self.overrides.items())

    @cached_property
    def folder(self) -> str:
        """The run's path relative to the working folder, absolute if it lies elsewhere."""
        return _told(self.path)

    def figure(self, metric: str) -> str:
        """How good its network is by a metric, and whether it was trained at all."""
        text = metric_text(metric, self.metrics.get(metric))
        return text if self.trained or text == "-" else f"{text} (not trained)"

    @property
    def marked(self) -> str:
        """Its name, with the mark of the best."""
        return f"{self.name} {BEST}" if self.best else self.name

    @property
    def load_command(self) -> str:
        """The Python expression that loads the network."""
        return load_words(self.path, json.dumps(self.folder, ensure_ascii=False))

    @cached_property
    def trust(self) -> str:
        """What commands need besides its folder."""
        return " trust=true" if needs_trust(RunDir(self.path)) else ""

    def commands(self) -> list[tuple[str, str]]:
        """What a user may do next with the network: (command, its effect)."""
        folder = shlex.quote(self.folder)
        weights = "the trained network" if self.trained else "with the supernet's weights"
        found = [
            (f"network = {self.load_command}", f"in Python: {weights}"),
            (f"nas export {folder}{self.trust}", "files that deploy"),
            (f"nas finetune arch={folder}/arch.json", "train it, longer or on other data"),
        ]
        # Of a network of a front, the run around it has the search.
        outer = RunDir(self.path.parent.parent)
        search = outer if outer.front == self.path.parent else RunDir(self.path)
        if search.checkpoint.is_file():
            taken = f"nas extract {shlex.quote(_told(search.path))}{self.trust}"
            extract = f"{taken} front=8 fine_tune=true"
            found.append((extract, "others of the same search"))
        return found


def load_words(path: Path, folder: str) -> str:
    """The Python expression that loads the network of a run.

    Args:
        path: of its folder.
        folder: the same, as Python writes it.
    """
    try:
        made_of = SPACE in read_config(RunDir(path).config)
    except (OSError, ValueError):
        made_of = False
    return f"nas.load({folder}{', model=your_network' * made_of})"


@dataclass(frozen=True)
class Sweep:
    """A folder of runs and its label in tables and figures."""

    label: str
    folder: Path
    runs: tuple[RunRecord, ...]


def labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Label -> folder: the folders' names, or their paths where names repeat.

    Raises:
        UserError: no folder, or one given twice.
    """
    if not folders:
        raise UserError("no folder to report on; give one, or several to overlay them")
    unique = list(dict.fromkeys(Path(os.path.normpath(folder)) for folder in folders))
    if len(unique) < len(folders):
        raise UserError(f"a folder is given twice: {', '.join(map(str, folders))}")
    names = [folder.resolve().name for folder in unique]
    if len(set(names)) < len(names):
        names = [folder.as_posix() for folder in unique]
    return dict(zip(names, unique, strict=True))


def by_search(sweep: Sweep, cost: str, metric: str, prefix: str = "") -> list[Sweep]:
    """The sweep, or where several searches have runs to show, one for each of them.

    Runs of no such search, which failed say, are left with the first.

    Args:
        prefix: of the label of each search.
    """
    shown = [run for run in sweep.runs if not run.exclusion_reason(cost, metric)]
    groups: dict[str, list[RunRecord]] = {run.search: [] for run in shown}
    if len(groups) < 2:
        return [sweep]
    for run in sweep.runs:
        groups.get(run.search, next(iter(groups.values()))).append(run)
    return [
        Sweep(f"{prefix}{search or 'other'}", sweep.folder, tuple(runs))
        for search, runs in groups.items()
    ]


def collect(folder: Path) -> tuple[RunRecord, ...]:
    """All runs at or below `folder`, in the order of their paths.

    A run whose own files are copies of a network of its front is there as that network only, which
    is marked as the best.

    Raises:
        UserError: no such folder, or no run below it.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder that your runs lie in")
    runs: dict[Path, RunRecord] = {}
    for run in (_read(found, folder) for found in find_runs(folder)):  # the outer ones first
        outer = next((runs[path].search for path in run.path.parents if path in runs), "")
        runs[run.path] = replace(run, search=run.search or outer)
    if not runs:
        raise UserError(
            f"no run below {folder}: no result.json and no config.yaml there. "
            "Give the folder that `nas search` wrote to"
        )
    copied = {path: found for path, run in runs.items() if (found := _copied(run, runs))}
    best = set(copied.values())
    return tuple(
        replace(run, best=path in best) for path, run in runs.items() if path not in copied
    )


def primary_of(sweeps: Iterable[Sweep]) -> str:
    """The metric that the networks of these sweeps are judged by: that of the first finished."""
    runs = (run for sweep in sweeps for run in sweep.runs if run.status == "finished")
    return next((run.primary for run in runs), RunRecord.primary)


def differing(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    """Names of the overrides that differ between these runs, the seed left out."""
    tables = [run.overrides for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    values = {name: {repr(table.get(name)) for table in tables} for name in names}
    return tuple(name for name in names if name != "seed" and len(values[name]) > 1)


def settings(run: RunRecord, names: Sequence[str]) -> str:
    """The run's overrides of these names: `strength=0.5 tau=1`."""
    short = short_names(names)
    given = [(short[name], run.overrides[name]) for name in names if name in run.overrides]
    return " ".join(f"{name}={value}" for name, value in given)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Key of an override -> its last part; the whole key, where two end alike."""
    short = {name: name.rsplit(".", 1)[-1] for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _told(folder: Path) -> str:
    path, here = folder.resolve(), Path.cwd()
    return as_text(path.relative_to(here) if path.is_relative_to(here) else path)


def as_text(path: Path) -> str:
    """The path with "?" for bytes that are no UTF-8: file names are bytes, a report is text."""
    return path.as_posix().encode(errors="replace").decode()


def _copied(run: RunRecord, runs: Mapping[Path, RunRecord]) -> Path | None:
    """The network of its front that the run's own files are copies of; None: it has none."""
    path = RunDir(run.path).front / run.arch_hash
    return path if path in runs and runs[path].status == "finished" else None


def _read(run: RunDir, folder: Path) -> RunRecord:
    name = as_text(run.path.relative_to(folder))
    try:
        if not run.result.exists():
            message = "no result.json: it still runs, or was stopped (resume=true goes on)"
            return RunRecord(run.path, name, "incomplete", message)
        fields = _fields(read_json(run.result, finite=False))
    except (OSError, ValueError, OverflowError) as error:
        return RunRecord(run.path, name, "unreadable", f"result.json: {error}")
    return RunRecord(run.path, name, **fields)


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
    texts = ("status", "message", "search", "space", "data", "arch_hash")
    return {
        "primary": primary_metrics({"task": _table(record, "task")})[0],
        "seed": seed,
        **{name: str(record.get(name) or "") for name in texts},
        **{name: _table(record, name) for name in ("overrides", "arch")},
        **{name: _numbers(record, name) for name in ("metrics", "costs", "budgets", "seconds")},
        "units": {name: str(unit) for name, unit in _table(record, "units").items()},
        "trained": record.get("trained") is not False,
        "blocks": _blocks(record),
    }


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = record.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{name} is a {type(table).__name__}, not an object")
    return table


def _numbers(record: Mapping[str, Any], name: str) -> dict[str, float]:
    """The numbers of one table; null counts as not measured. Exact counts stay whole numbers."""
    table = {key: value for key, value in _table(record, name).items() if value is not None}
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name}.{key} is {value!r}, not a number")
        float(value)  # OverflowError for a count that no axis can show
    return table


def _blocks(record: Mapping[str, Any]) -> tuple[BlockSummary, ...]:
    """The run is shown without its drawing where other versions wrote no blocks, or others."""
    try:
        return read_blocks(record)
    except ValueError:
        return ()
