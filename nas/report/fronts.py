"""The Pareto fronts of sweeps, measured from one reference point, and the colours of the runs."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.errors import UserError
from nas.pareto import hypervolume, knee, non_dominated
from nas.quantities import error_of
from nas.report.collect import RunRecord, Sweep, differing, settings
from nas.report.templates import (
    COLOURS,
    GREYS,
    cost_text,
    error_label,
    metric_text,
    on_axis,
    plural,
)

Points = NDArray[np.float64]

BEYOND = 1.1  # the reference point is this much worse than the worst run, so that the ends count
MOST_BUDGETS = 6  # more lines would hide the points
BASELINES = ("random", "random_search", "zero_cost")  # searches that others have to beat


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
    members: tuple[RunRecord, ...]
    dominated: tuple[RunRecord, ...]
    reference: tuple[float, float]
    area: float

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All of them, those on the front first."""
        return self.members + self.dominated

    def dominance(self, run: RunRecord) -> str:
        """ "front", "dominated", or "" for a run that the figure does not show."""
        return self._dominance.get(run, "")

    @property
    def baseline(self) -> bool:
        """Whether it stands here for others to be compared with."""
        return all(run.search in BASELINES for run in self.runs)

    @cached_property
    def _dominance(self) -> dict[RunRecord, str]:
        return dict.fromkeys(self.dominated, "dominated") | dict.fromkeys(self.members, "front")

    @cached_property
    def by_setting(self) -> dict[str, list[RunRecord]]:
        """The runs of each setting, as on the command line, the seed left out."""
        return _by_setting(self.runs)

    def errors(self, runs: Sequence[RunRecord]) -> list[float]:
        """The metrics of these runs as errors to minimise."""
        return [error_of(self.metric, run.metrics[self.metric]) for run in runs]

    def coordinates(self, runs: Sequence[RunRecord]) -> tuple[list[float], list[float]]:
        """Costs and metrics of these runs as plotted."""
        metrics = [on_axis(self.metric, run.metrics[self.metric]) for run in runs]
        return [run.costs[self.cost] for run in runs], metrics

    def closest(self) -> list[RunRecord]:
        """The dominated runs, those that miss the front by the least of the metric first."""
        costs = [run.costs[self.cost] for run in self.members]
        best = self.errors(self.members)
        # A run is dominated by a member of the same or a lower cost: there is one before it.
        behind = {
            run: error - best[bisect_right(costs, run.costs[self.cost]) - 1]
            for run, error in zip(self.dominated, self.errors(self.dominated), strict=True)
        }
        return sorted(self.dominated, key=behind.__getitem__)

    def knee(self) -> RunRecord | None:
        """The member where the front bends most, in the plane of the figure; None below three."""
        if len(self.members) < 3:
            return None
        costs = np.log10([run.costs[self.cost] for run in self.members])
        return self.members[knee(np.column_stack([costs, self.errors(self.members)]))]

    def summary(self) -> str:
        """One line: size of the front, its range of cost and metric, its hypervolume."""
        costs = [run.costs[self.cost] for run in self.members]
        metrics = [run.metrics[self.metric] for run in self.members]
        return (
            f"front: {len(self.members)} of {plural(len(self.runs), 'network')}, {self.cost} "
            f"{cost_text(min(costs))} to {cost_text(max(costs))} "
            f"(factor {max(costs) / min(costs):.3g}), {self.metric} "
            f"{metric_text(self.metric, min(metrics))} to {metric_text(self.metric, max(metrics))}"
            f", hypervolume {self.area:.4f}"
        )

    def definition(self) -> str:
        """One line that defines the hypervolume, with its reference point."""
        error = error_label(self.metric)
        corner = f"{self.cost} {cost_text(float(self.reference[0]))}"
        return (
            f"hypervolume: area in log10({self.cost}) x ({error}) between the front and the "
            f"reference point ({corner}, {error} {self.reference[1]:.4g}), "
            f"{BEYOND} x the worst of each over all networks shown"
        )


def fronts(sweeps: Sequence[Sweep], cost: str, metric: str) -> tuple[Front, ...]:
    """The front of each sweep, all measured from the same reference point.

    Raises:
        UserError: a sweep has no finished run with this cost and metric.
    """
    usable = [
        [run for run in sweep.runs if not run.exclusion_reason(cost, metric)] for sweep in sweeps
    ]
    for sweep, runs in zip(sweeps, usable, strict=True):
        if not runs:
            raise _nothing_to_show(sweep, cost, metric)
    tables = [
        np.array([(run.costs[cost], error_of(metric, run.metrics[metric])) for run in runs])
        for runs in usable
    ]
    worst = np.concatenate(tables).max(axis=0) * BEYOND
    reference = (float(worst[0]), float(worst[1]))
    found = []
    for sweep, runs, points in zip(sweeps, usable, tables, strict=True):
        members, dominated = _split(runs, points)
        area = _area(points, reference)
        found.append(Front(sweep.label, cost, metric, members, dominated, reference, area))
    return tuple(found)


def costs_of(sweeps: Sequence[Sweep], metric: str) -> tuple[str, ...]:
    """The costs that every sweep has finished runs of, in the order they were written."""
    names = dict.fromkeys(name for sweep in sweeps for run in sweep.runs for name in run.costs)
    return tuple(
        name
        for name in names
        if all(
            any(not run.exclusion_reason(name, metric) for run in sweep.runs) for sweep in sweeps
        )
    )


def budgets_of(fronts: Sequence[Front]) -> list[float]:
    """The budgets of the figure's cost that its runs had, ascending; none if they are many."""
    cost = fronts[0].cost
    found = {run.budgets[cost] for front in fronts for run in front.runs if cost in run.budgets}
    return sorted(found) if len(found) <= MOST_BUDGETS else []


def left_out(
    sweeps: Sequence[Sweep], cost: str, metric: str
) -> Iterator[tuple[Sweep, RunRecord, str]]:
    """The runs that the figure cannot show, each with the reason."""
    for sweep in sweeps:
        for run in sweep.runs:
            if reason := run.exclusion_reason(cost, metric):
                yield sweep, run, reason


def _split(
    runs: Sequence[RunRecord], points: Points
) -> tuple[tuple[RunRecord, ...], tuple[RunRecord, ...]]:
    """Members of the front and dominated runs, each by cost; `points` is ``(n, 2)``."""
    # Dominance on the exact counts: their logarithms could round to equal.
    on_front = non_dominated(points)
    order = np.lexsort((points[:, 1], points[:, 0]))
    members = tuple(runs[i] for i in order if on_front[i])
    return members, tuple(runs[i] for i in order if not on_front[i])


def _area(points: Points, reference: tuple[float, float]) -> float:
    plane = np.column_stack([np.log10(points[:, 0]), points[:, 1]])
    return hypervolume(plane, (np.log10(reference[0]), reference[1]))


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


class Spread(NamedTuple):
    """Mean and standard deviation, as plotted, over the seeds of one setting."""

    cost: float
    metric: float
    cost_sd: float
    metric_sd: float


@dataclass(frozen=True)
class Series:
    """Runs drawn in one colour.

    Args:
        key: the sweep or the setting; the same for every cost.
        label: of the legend; "" if there is only one series.
    """

    key: str
    label: str
    colour: str
    runs: tuple[RunRecord, ...]

    def among(self, runs: Sequence[RunRecord]) -> list[RunRecord]:
        """Those of `runs` that belong to this series, in their order."""
        return [run for run in runs if run in self._own]

    @cached_property
    def _own(self) -> frozenset[RunRecord]:
        return frozenset(self.runs)

    def spread(self, front: Front) -> Spread | None:
        """Over the runs of this setting that the figure shows; None for a single one."""
        runs = self.among(front.runs)
        if not self.label or len(runs) < 2:
            return None
        costs, metrics = (np.array(values) for values in front.coordinates(runs))
        return Spread(
            float(costs.mean()),
            float(metrics.mean()),
            float(costs.std(ddof=1)),
            float(metrics.std(ddof=1)),
        )


def series_of(fronts: Sequence[Front]) -> list[Series]:
    """One per sweep; in a lone sweep one per setting, if settings were run with many seeds."""
    if len(fronts) > 1:
        return [
            Series(
                front.label,
                f"{front.label}: {plural(len(front.runs), 'network')}, "
                f"hypervolume {front.area:.4f}",
                line_colour(fronts, i),
                front.runs,
            )
            for i, front in enumerate(fronts)
        ]
    groups = fronts[0].by_setting
    repeated = any(len(runs) > 1 for runs in groups.values())
    if not repeated or not 1 < len(groups) <= len(COLOURS):
        return [Series("", "", COLOURS[0], fronts[0].runs)]
    pairs = zip(groups.items(), COLOURS, strict=False)
    return [Series(label, label, colour, tuple(runs)) for (label, runs), colour in pairs]


def line_colour(fronts: Sequence[Front], index: int) -> str:
    """The colour of a front's line: its sweep's, a grey one for each of several baselines.

    That of a lone sweep is grey if colours stand for settings.
    """
    if len(fronts) == 1:
        return COLOURS[-1] if len(series_of(fronts)) > 1 else COLOURS[0]
    alike = [front for front in fronts[:index] if front.baseline == fronts[index].baseline]
    colours = GREYS if fronts[index].baseline else COLOURS
    return colours[len(alike) % len(colours)]


def title(fronts: Sequence[Front]) -> str:
    """How many networks, and for a lone sweep how good its front is."""
    count = sum(len(front.runs) for front in fronts)
    if len(fronts) > 1:
        return f"{plural(count, 'network')} of {plural(len(fronts), 'sweep')}"
    front = fronts[0]
    return (
        f"{plural(count, 'network')}, {len(front.members)} on the front, "
        f"hypervolume {front.area:.4f}"
    )


def _by_setting(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    names = differing(runs)
    groups: dict[str, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: [_order(run.overrides.get(name)) for name in names]):
        groups.setdefault(settings(run, names) or "defaults", []).append(run)
    return groups


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, int | float)
    return (not number, value if number else 0.0, str(value))
