"""Sweeps and their fronts under one common reference point."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas.errors import UserError
from nas.pareto import hypervolume, non_dominated
from nas.report.labels import cost_text, error_label, error_of, metric_text, on_axis, plural
from nas.report.runs import Run

Points = NDArray[np.float64]

BEYOND = 1.1  # the reference point is this much worse than the worst run, so that the ends count


@dataclass(frozen=True)
class Sweep:
    """A folder of runs and what it is called in tables and figures."""

    label: str
    folder: Path
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Front:
    """The runs of one sweep that have both quantities, split by dominance, each sorted by cost.

    Minimised: the cost and ``1 - metric`` (a loss as it is). `reference` is in these units,
    ``(cost, error)``; `area` is the hypervolume in ``log10(cost) x error``, the plane of the
    figure: on a linear cost axis the largest networks alone would decide.
    """

    label: str
    cost: str
    metric: str
    members: tuple[Run, ...]
    dominated: tuple[Run, ...]
    reference: tuple[float, float]
    area: float

    @property
    def runs(self) -> tuple[Run, ...]:
        return self.members + self.dominated

    def place(self, run: Run) -> str:
        """ "front", "dominated", or "" for a run that has no place here."""
        return self._places.get(id(run), "")

    @cached_property
    def _places(self) -> dict[int, str]:
        places = {id(run): "dominated" for run in self.dominated}
        return places | {id(run): "front" for run in self.members}

    def coordinates(self, runs: Sequence[Run]) -> tuple[list[float], list[float]]:
        """Costs and metrics of these runs as plotted."""
        metrics = [on_axis(self.metric, run.metrics[self.metric]) for run in runs]
        return [run.costs[self.cost] for run in runs], metrics

    def closest(self) -> list[Run]:
        """The dominated runs, those that miss the front by the least of the metric first."""
        costs, _ = self.coordinates(self.members)
        errors = [error_of(self.metric, run.metrics[self.metric]) for run in self.members]

        def behind(run: Run) -> float:
            # What dominates a run costs no more: there is a member at or below its cost.
            best = errors[bisect_right(costs, run.costs[self.cost]) - 1]
            return error_of(self.metric, run.metrics[self.metric]) - best

        return sorted(self.dominated, key=behind)

    def summary(self) -> str:
        """One line: size of the front, its range of cost and metric, its hypervolume."""
        costs = [run.costs[self.cost] for run in self.members]
        metrics = [run.metrics[self.metric] for run in self.members]
        return (
            f"front: {len(self.members)} of {plural(len(self.runs), 'run')}, {self.cost} "
            f"{cost_text(min(costs))} to {cost_text(max(costs))} "
            f"(factor {max(costs) / min(costs):.3g}), {self.metric} "
            f"{metric_text(self.metric, min(metrics))} to {metric_text(self.metric, max(metrics))}"
            f", hypervolume {self.area:.4f}"
        )

    def definition(self) -> str:
        """One line: what the hypervolume is, with its reference point."""
        error = error_label(self.metric)
        corner = f"{self.cost} {cost_text(float(self.reference[0]))}"
        return (
            f"hypervolume: area in log10({self.cost}) x ({error}) between the front and the "
            f"reference point ({corner}, {error} {self.reference[1]:.4g}), "
            f"{BEYOND} x the worst of each over all runs shown"
        )


def labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders under their names, or under their paths where names repeat.

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


def fronts(sweeps: Sequence[Sweep], cost: str, metric: str) -> tuple[Front, ...]:
    """The front of each sweep, all measured from the same reference point.

    Raises:
        UserError: a sweep has no finished run with this cost and metric.
    """
    usable = [[run for run in sweep.runs if not run.obstacle(cost, metric)] for sweep in sweeps]
    for sweep, runs in zip(sweeps, usable, strict=True):
        if not runs:
            raise _nothing_to_show(sweep, cost, metric)
    tables = [_points(runs, cost, metric) for runs in usable]
    worst = np.concatenate(tables).max(axis=0) * BEYOND
    reference = (float(worst[0]), float(worst[1]))
    return tuple(
        _front(sweep.label, cost, metric, runs, table, reference)
        for sweep, runs, table in zip(sweeps, usable, tables, strict=True)
    )


def costs_of(sweeps: Sequence[Sweep], metric: str) -> tuple[str, ...]:
    """The costs that every sweep has finished runs of, in the order they were written."""
    names = dict.fromkeys(name for sweep in sweeps for run in sweep.runs for name in run.costs)
    return tuple(
        name
        for name in names
        if all(any(not run.obstacle(name, metric) for run in sweep.runs) for sweep in sweeps)
    )


def _points(runs: Sequence[Run], cost: str, metric: str) -> Points:
    return np.array([(run.costs[cost], error_of(metric, run.metrics[metric])) for run in runs])


def _front(
    label: str,
    cost: str,
    metric: str,
    runs: Sequence[Run],
    table: Points,
    reference: tuple[float, float],
) -> Front:
    # Dominance on the exact counts: their logarithms could round to equal.
    on_front = non_dominated(table)
    order = np.lexsort((table[:, 1], table[:, 0]))
    area = hypervolume(
        np.column_stack([np.log10(table[:, 0]), table[:, 1]]),
        (np.log10(reference[0]), reference[1]),
    )
    members = tuple(runs[i] for i in order if on_front[i])
    dominated = tuple(runs[i] for i in order if not on_front[i])
    return Front(label, cost, metric, members, dominated, reference, area)


def _nothing_to_show(sweep: Sweep, cost: str, metric: str) -> UserError:
    finished = [run for run in sweep.runs if run.status == "finished"]
    if not finished:
        first = next(iter(sweep.runs))
        return UserError(
            f"no finished run among the {plural(len(sweep.runs), 'run')} below {sweep.folder}; "
            f"the first, {first.name}, is {first.status}: {first.message}"
        )
    costs = sorted({name for run in finished for name in run.costs})
    metrics = sorted({name for run in finished for name in run.metrics})
    return UserError(
        f"no finished run below {sweep.folder} has both a finite y={metric} and a positive, "
        f"finite x={cost}. They have x: {', '.join(costs) or 'none'}; "
        f"y: {', '.join(metrics) or 'none'}"
    )
