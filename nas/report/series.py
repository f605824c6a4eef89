"""Which runs share a colour: the seeds of one setting, or the runs of one sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nas.report.front import Front
from nas.report.labels import plural
from nas.report.runs import Run, differing, settings

# Middle tones, told apart under colour blindness (after Okabe and Ito), legible on white and dark.
COLOURS = ("#3a8bd0", "#d9622b", "#259b78", "#b768a8", "#c2921d", "#6b7f93")


@dataclass(frozen=True)
class Series:
    """Runs drawn in one colour; `label` is "" where there is nothing to tell apart."""

    label: str
    colour: str
    runs: tuple[Run, ...]


def series_of(fronts: Sequence[Front]) -> list[Series]:
    """One per sweep; in a lone sweep one per setting, where settings were run with many seeds."""
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
    """The colour of a front's line: its sweep's; grey where colours mean settings."""
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


def _by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    names = differing(runs)
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: [_order(run.overrides.get(name)) for name in names]):
        groups.setdefault(settings(run, names), []).append(run)
    return groups


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, then everything else by its text."""
    number = isinstance(value, int | float)
    return (not number, value if number else 0.0, str(value))
