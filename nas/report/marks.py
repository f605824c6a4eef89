"""What is marked in a figure besides its runs: budgets, the knee, and the spread over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nas.pareto import knee
from nas.report.front import Front
from nas.report.labels import error_of
from nas.report.runs import Run
from nas.report.series import Series

MOST_BUDGETS = 6  # more lines would hide the points


class Spread(NamedTuple):
    """Mean and standard deviation, as plotted, over the seeds of one setting."""

    cost: float
    metric: float
    cost_sd: float
    metric_sd: float


def budgets_of(fronts: Sequence[Front]) -> list[float]:
    """The budgets of the figure's cost that its runs were held to, ascending."""
    cost = fronts[0].cost
    found = {run.budgets[cost] for front in fronts for run in front.runs if cost in run.budgets}
    return sorted(found) if len(found) <= MOST_BUDGETS else []


def knee_of(front: Front) -> Run | None:
    """The member where the front bends most, in the plane of the figure; None below three."""
    if len(front.members) < 3:
        return None
    metric = front.metric
    errors = [error_of(metric, run.metrics[metric]) for run in front.members]
    costs = np.log10([run.costs[front.cost] for run in front.members])
    return front.members[knee(np.column_stack([costs, errors]))]


def spread(series: Series, front: Front) -> Spread | None:
    """Of the runs of one setting that have a place in the figure; None for a single one."""
    own = {id(run) for run in series.runs}
    runs = [run for run in front.runs if id(run) in own]
    if not series.label or len(runs) < 2:
        return None
    costs, metrics = (np.array(values) for values in front.coordinates(runs))
    return Spread(
        float(costs.mean()),
        float(metrics.mean()),
        float(costs.std(ddof=1)),
        float(metrics.std(ddof=1)),
    )
