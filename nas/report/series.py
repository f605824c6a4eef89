"""The runs that share a colour: the seeds of one setting, or the runs of one sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from nas.report.collect import RunRecord, differing, settings
from nas.report.fronts import Front
from nas.report.labels import COLOURS, plural


class Spread(NamedTuple):
    """Mean and standard deviation, as plotted, over the seeds of one setting."""

    cost: float
    metric: float
    cost_sd: float
    metric_sd: float


@dataclass(frozen=True)
class Series:
    """Runs drawn in one colour; `label` is "" if there is only one series."""

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
                f"{front.label}: {plural(len(front.runs), 'run')}, hypervolume {front.area:.4f}",
                COLOURS[i % len(COLOURS)],
                front.runs,
            )
            for i, front in enumerate(fronts)
        ]
    groups = _by_setting(fronts[0].runs)
    repeated = any(len(runs) > 1 for runs in groups.values())
    if not repeated or not 1 < len(groups) <= len(COLOURS):
        return [Series("", COLOURS[0], fronts[0].runs)]
    pairs = zip(groups.items(), COLOURS, strict=False)
    return [Series(label, colour, tuple(runs)) for (label, runs), colour in pairs]


def line_colour(fronts: Sequence[Front], index: int) -> str:
    """The colour of a front's line: its sweep's; grey if colours stand for settings."""
    several = len(series_of(fronts)) > 1 and len(fronts) == 1
    return COLOURS[-1] if several else COLOURS[index % len(COLOURS)]


def title(fronts: Sequence[Front]) -> str:
    """How many runs, and for a lone sweep how good its front is."""
    count = sum(len(front.runs) for front in fronts)
    if len(fronts) > 1:
        return f"{plural(count, 'run')} of {plural(len(fronts), 'sweep')}"
    front = fronts[0]
    return (
        f"{plural(count, 'run')}, {len(front.members)} on the front, hypervolume {front.area:.4f}"
    )


def _by_setting(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    names = differing(runs)
    groups: dict[str, list[RunRecord]] = {}
    for run in sorted(runs, key=lambda run: [_order(run.overrides.get(name)) for name in names]):
        groups.setdefault(settings(run, names), []).append(run)
    return groups


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, int | float)
    return (not number, value if number else 0.0, str(value))
