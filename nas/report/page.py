"""report.html: one file, no network; charts, the runs in a table, how to load the front."""

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from nas.artifacts.reading import RECORD, read_bytes
from nas.report.collect import ABOUT_BEST, RunRecord, Sweep, differing, short_names
from nas.report.figure import RowIds, chart
from nas.report.fronts import Front, budgets_of, costs_of, fronts, left_out, series_of
from nas.report.summary import costs_in, svg
from nas.report.templates import cost_label, cost_text, render
from nas.report.tensorboard import curves

FULL = 2_000_000  # characters for rows and details: a page of 1,000 runs stays below 3 MB
DRAWINGS = 500_000  # characters of drawings on one page; the first runs have theirs
LEFT_OUT = 500  # excluded runs that the page lists
PICTURES = 12  # on a page; the others lie in the folders of their runs
PICTURE = "latency.png"  # in the folder of a run that searched for latency


def page(sweeps: Sequence[Sweep], shown: Sequence[Front], spread: bool = False) -> str:
    """The whole page; it opens with the fronts `shown`, other costs are one choice away.

    Args:
        spread: see `nas.report.figure.chart`.
    """
    cost, metric = shown[0].cost, shown[0].metric
    by_cost = {
        name: fronts(sweeps, name, metric)
        for name in dict.fromkeys([cost, *costs_of(sweeps, metric)])
    }
    runs = _unique(run for found in by_cost.values() for front in found for run in front.runs)
    detailed = _detailed(by_cost)
    listed = set(detailed)
    row_ids = {run: f"run-{i}" for i, run in enumerate(run for run in runs if run in listed)}
    pictures = _pictures(sweeps)
    excluded = list(left_out(sweeps, cost, metric))
    several = len(sweeps) > 1
    return render(
        "page.html",
        title=", ".join(sweep.label for sweep in sweeps),
        run_count=sum(len(front.runs) for front in shown),
        cost=cost,
        costs={name: cost_label(name) for name in by_cost},
        fronts=[_front(found) for found in by_cost.values()],
        budgets=any(budgets_of(found) for found in by_cost.values()),
        spread=spread,
        about_best=ABOUT_BEST if any(run.best for run in runs) else "",
        rest=len(runs) - len(detailed),
        columns=_columns(by_cost, list(row_ids), cost),
        table=[_row(run, row, by_cost) for run, row in row_ids.items()],
        left_out=[
            [*[sweep.label] * several, run.name, run.status, run.settings or "-", reason]
            for sweep, run, reason in excluded[:LEFT_OUT]
        ],
        left_out_count=len(excluded),
        left_out_columns=["sweep"] * several + ["run", "status", "settings", "reason"],
        pictures=pictures[:PICTURES],
        picture_count=len(pictures),
        charts={name: chart(f, row_ids, spread).to_json() for name, f in by_cost.items()},
        details=details(detailed, row_ids),
        curves=[
            one.to_json()
            for one in curves(
                _unique(run for front in shown for run in front.members),
                cost,
                series_of(shown),
                row_ids,
            )
        ],
    )


def _unique(runs: Iterable[RunRecord]) -> list[RunRecord]:
    return list(dict.fromkeys(runs))


def _detailed(by_cost: Mapping[str, Sequence[Front]]) -> list[RunRecord]:
    """The runs with a row and details, as many as the page has room for.

    First the members of the fronts, then the runs closest to them, of each front in turn.
    """
    found = [front for fronts in by_cost.values() for front in fronts]
    members = (run for front in found for run in front.members)
    others = chain.from_iterable(zip_longest(*(front.closest() for front in found)))
    kept, room = [], FULL
    for run in _unique(run for run in (*members, *others) if run is not None):
        # A row of the table is about as long as the details.
        room -= 2 * len(json.dumps(detail(run, False)))
        if room < 0:
            break
        kept.append(run)
    return kept


def _front(found: Sequence[Front]) -> dict[str, Any]:
    """What the page shows of the fronts of one cost, one front per sweep."""
    members = [(front, run) for front in found for run in front.members]
    loads = [(f"network = {run.load_command}", _figures(front, run)) for front, run in members]
    choices = frequencies([run for _, run in members])
    prefixes = [f"{front.label}: " if len(found) > 1 else "" for front in found]
    return {
        "cost": found[0].cost,
        "summaries": [p + front.summary() for p, front in zip(prefixes, found, strict=True)],
        "definition": found[0].definition(),
        "commands": _commented(loads),
        "choices": choices,
        "options": dict.fromkeys(option for c in choices.values() for option in sorted(c)),
    }


def _figures(front: Front, run: RunRecord) -> str:
    return f"{cost_text(run.costs[front.cost])} {front.cost}, {run.figure(front.metric)}"


def _commented(commands: Sequence[tuple[str, str]]) -> list[str]:
    """Commands, each with its comment, which stand in one column."""
    width = max(len(command) for command, _ in commands)
    return [f"{command:{width}}  # {comment}" for command, comment in commands]


def frequencies(runs: Sequence[RunRecord]) -> dict[str, Counter[str]]:
    """Decision -> option -> number of runs that choose it."""
    found: dict[str, Counter[str]] = {}
    for run in runs:
        for name, option in run.arch.items():
            found.setdefault(name, Counter())[str(option)] += 1
    return found


@dataclass(frozen=True)
class Column:
    """One column of the table of runs.

    Args:
        text: shown of a run.
        value: of a column of numbers, by which it is sorted; "" for an unknown one.
        follows_cost: the script rewrites it when another cost is picked.
    """

    name: str
    text: Callable[[RunRecord], str]
    value: Callable[[RunRecord], float | str] | None = None
    follows_cost: bool = False


def _columns(
    by_cost: Mapping[str, Sequence[Front]], runs: Sequence[RunRecord], cost: str
) -> list[Column]:
    """Metric and costs first, then how the runs differ; the rest is in their details."""
    labels = {run: f.label for found in by_cost.values() for f in found for run in f.runs}
    metric = by_cost[cost][0].metric
    costs = dict.fromkeys([cost, *(name for run in runs for name in run.costs)])
    seeds = len({run.seed for run in runs}) > 1
    several = len(by_cost[cost]) > 1
    # Of several searches in a folder, each is a sweep of its name.
    named = several and all(labels[run].endswith(run.search or "?") for run in runs)
    names = [name for name in differing(runs) if not (named and name == "search")]
    titles = short_names(names)
    return [
        Column("run", lambda run: run.marked),
        Column(metric, lambda run: run.figure(metric), lambda run: _key(run.metrics.get(metric))),
        *(_cost(name) for name in costs),
        Column("place", lambda run: _dominance(run, by_cost[cost]), follows_cost=True),
        *[Column("sweep", labels.__getitem__)] * several,
        *(_override(name, titles[name], runs) for name in names),
        *[Column("seed", lambda r: "-" if r.seed is None else str(r.seed), lambda r: _key(r.seed))]
        * seeds,
    ]


def _override(name: str, title: str, runs: Sequence[RunRecord]) -> Column:
    given = [run.overrides[name] for run in runs if name in run.overrides]
    numeric = all(isinstance(value, int | float) for value in given)
    return Column(
        title,
        lambda run: str(run.overrides.get(name, "-")),
        (lambda run: _key(run.overrides.get(name))) if numeric else None,
    )


def _cost(name: str) -> Column:
    return Column(
        name, lambda run: cost_text(run.costs.get(name)), lambda run: _key(run.costs.get(name))
    )


def _key(value: float | None) -> float | str:
    return value if value is not None and math.isfinite(value) else ""


def _row(run: RunRecord, row_id: str, by_cost: Mapping[str, Sequence[Front]]) -> dict[str, Any]:
    places = {name: _dominance(run, found) for name, found in by_cost.items()}
    return {"run": run, "id": row_id, "places": places, "places_json": json.dumps(places)}


def _dominance(run: RunRecord, found: Sequence[Front]) -> str:
    return next(filter(None, (front.dominance(run) for front in found)), "")


def details(runs: Sequence[RunRecord], row_ids: RowIds) -> dict[str, Any]:
    """What the page shows of a run that is picked, by row, and drawings by architecture's hash."""
    drawings: dict[str, str] = {}
    room = DRAWINGS
    for run in runs:
        if run.blocks and run.arch_hash not in drawings and room > 0:
            drawn = svg(run.blocks, costs_in(run.blocks), run.name)
            room -= len(drawn)
            drawings[run.arch_hash] = drawn
    shown = {row_ids[run]: detail(run, run.arch_hash in drawings) for run in runs}
    return {"runs": shown, "drawings": drawings}


def detail(run: RunRecord, drawn: bool) -> dict[str, Any]:
    """Figures and commands of a run, and its choices if it is not `drawn`."""
    facts = [("folder", run.folder)]
    facts += [(name, run.figure(name)) for name in run.metrics]
    for name, value in run.costs.items():
        budget = run.budgets.get(name)
        beside = f" of a budget of {cost_text(budget)}" if budget is not None else ""
        facts.append((cost_label(name), cost_text(value) + beside))
    facts += [(name, str(value)) for name, value in run.overrides.items()]
    return {
        "title": run.marked,
        "facts": facts,
        "commands": "\n".join(_commented(run.commands())),
        "arch": run.arch_hash,
        "choices": [] if drawn else [[k, str(v)] for k, v in run.arch.items()],
    }


def _pictures(sweeps: Sequence[Sweep]) -> list[tuple[str, str]]:
    """(names of runs, PNG in base64): predicted and measured latencies, equal pictures once."""
    found: dict[bytes, list[str]] = {}
    for run in (run for sweep in sweeps for run in sweep.runs):
        png = _picture(run.path / PICTURE)
        if png is not None:
            found.setdefault(png, []).append(run.name)
    return [(", ".join(names), b64encode(png).decode()) for png, names in found.items()]


def _picture(path: Path) -> bytes | None:
    """The file's content; None if it is no picture.

    A page is handed on: the target of a link in somebody's folder must not become part of it.
    """
    try:
        png = None if path.is_symlink() else read_bytes(path, RECORD)
    except (OSError, ValueError):
        return None
    return png if png and png.startswith(b"\x89PNG\r\n") else None
