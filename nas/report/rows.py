"""The tables of report.html: the runs of the figure, and those without a place in it."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from nas.report.front import Front, Sweep
from nas.report.labels import cost_text, metric_text
from nas.report.runs import Run, differing


@dataclass(frozen=True)
class Column:
    """One column: what a run shows in it, and for numbers the value it is sorted by."""

    name: str
    text: Callable[[Run], str]
    value: Callable[[Run], float | None] | None = None

    def header(self) -> str:
        kind = "text" if self.value is None else "number"
        return f'<th class="{kind}"><button>{escape(self.name)}</button></th>'

    def cell(self, run: Run) -> str:
        text = escape(self.text(run))
        if self.value is None:
            mark = " place" if self.name == "place" else ""  # the script rewrites it
            return f'<td class="text{mark}">{text}</td>'
        value = self.value(run)
        known = value is not None and math.isfinite(value)
        return f'<td data-value="{value if known else ""}">{text}</td>'


def runs_table(by_cost: Mapping[str, Sequence[Front]], rows: Mapping[int, str], cost: str) -> str:
    """The runs of all fronts; `place` follows the cost that is picked, `cost` at first.

    `rows` maps ``id(run)`` to the id of its row, in the order of the rows.
    """
    owned = [(front, run) for found in by_cost.values() for front in found for run in front.runs]
    runs = {id(run): run for _, run in owned}
    labels = {id(run): front.label for front, run in owned}
    columns = [
        *[Column("sweep", lambda run: labels[id(run)])] * (len(by_cost[cost]) > 1),
        Column("run", lambda run: run.name),
        Column("place", lambda run: _place(run, by_cost[cost])),
        *_columns([runs[key] for key in rows]),
    ]
    body = []
    for key, row in rows.items():
        places = {name: _place(runs[key], found) for name, found in by_cost.items()}
        mark = f'id="{row}" class="{places[cost]}" data-places="{escape(json.dumps(places))}"'
        cells = "".join(column.cell(runs[key]) for column in columns)
        body.append(f'<tr tabindex="0" {mark}>{cells}</tr>')
    return _table([column.header() for column in columns], body)


def left_out_table(rows: Iterable[tuple[Sweep, Run, str]], several: bool) -> str:
    """`rows` as `nas.report.table.left_out` gives them."""
    body = []
    for sweep, run, reason in rows:
        given = " ".join(f"{name}={value}" for name, value in run.overrides.items())
        cells = [*[sweep.label] * several, run.name, run.status, given or "-"]
        texts = "".join(f'<td class="text">{escape(cell)}</td>' for cell in cells)
        body.append(f'<tr>{texts}<td class="text wrap">{escape(reason)}</td></tr>')
    names = ["sweep"] * several + ["run", "status", "settings", "reason"]
    return _table([f'<th class="text">{name}</th>' for name in names], body)


def _table(head: Iterable[str], body: Iterable[str]) -> str:
    rows = "\n".join(body)
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(head)}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>\n"
    )


def _place(run: Run, found: Sequence[Front]) -> str:
    return next(filter(None, (front.place(run) for front in found)), "")


def _columns(runs: Sequence[Run]) -> list[Column]:
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    costs = dict.fromkeys(name for run in runs for name in run.costs)
    return [
        Column("seed", lambda run: "-" if run.seed is None else str(run.seed), lambda r: r.seed),
        *(_override(name, runs) for name in differing(runs)),
        *(_metric(name) for name in metrics),
        *(_cost(name) for name in costs),
        Column("arch", lambda run: run.arch_hash),
    ]


def _override(name: str, runs: Sequence[Run]) -> Column:
    given = [run.overrides[name] for run in runs if name in run.overrides]
    numeric = all(isinstance(value, int | float) for value in given)
    return Column(
        name,
        lambda run: str(run.overrides.get(name, "-")),
        (lambda run: run.overrides.get(name)) if numeric else None,
    )


def _metric(name: str) -> Column:
    return Column(
        name,
        lambda run: metric_text(name, run.metrics.get(name)),
        lambda run: run.metrics.get(name),
    )


def _cost(name: str) -> Column:
    return Column(name, lambda run: cost_text(run.costs.get(name)), lambda run: run.costs.get(name))
