"""report.html: one file, no network; a scatter, the runs in a table, how to load the front."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import chain, zip_longest
from typing import Any

from nas.report.chart import chart, hover
from nas.report.choices import choices_table
from nas.report.curves import curves
from nas.report.detail import detail, details, load_command
from nas.report.front import Front, Sweep, costs_of, fronts
from nas.report.labels import cost_label, cost_text, metric_text, plural
from nas.report.latency import latencies
from nas.report.optional import load_optional
from nas.report.rows import left_out_table, runs_table
from nas.report.runs import Run
from nas.report.table import left_out
from nas.report.template import CSS, POLICY, SCRIPT

ROOM = 2_500_000  # characters for rows, hovers and details: a page stays below 10 MB, half plotly
LEFT_OUT = 500  # runs without a place in the figure that the page lists


def page(sweeps: Sequence[Sweep], shown: Sequence[Front]) -> str:
    """The whole page; `shown` are the fronts it opens with, other costs are one choice away.

    Raises:
        UserError: plotly is not installed.
    """
    plotly = load_optional("plotly.offline").get_plotlyjs()
    cost, metric = shown[0].cost, shown[0].metric
    costs = dict.fromkeys([cost, *costs_of(sweeps, metric)])
    by_cost = {name: fronts(sweeps, name, metric) for name in costs}
    runs = list(_by_id(run for found in by_cost.values() for front in found for run in front.runs))
    whole = _whole(by_cost)
    ids = {id(run) for run in whole}
    rows = {id(run): f"run-{i}" for i, run in enumerate(run for run in runs if id(run) in ids)}
    charts = {name: chart(found, rows) for name, found in by_cost.items()}
    members = list(_by_id(run for front in shown for run in front.members))
    searched = curves(members, cost)
    name = escape(", ".join(sweep.label for sweep in sweeps))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nas report: {name}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{name}: {plural(sum(len(front.runs) for front in shown), "run")}</h1>
<p class="controls"><label>Cost on the x axis: {_picker(costs)}</label>
<label>Filter: <input id="filter" type="search" placeholder="seed=0, conv_k3, ..."></label></p>
<div id="chart"></div>
<p class="soft">A ring marks the knee, dotted lines budgets. Drag to zoom, double click to go back;
click a point, or a row below (or press Enter on it), to see the network.</p>
<section id="detail" aria-live="polite" hidden></section>
{"".join(_front_part(found, name == cost) for name, found in by_cost.items())}
{_curves_part(searched)}
{latencies(sweeps)}
<h2>All runs</h2>
{_rest_part(len(runs) - len(whole))}
{runs_table(by_cost, rows, cost)}
{_left_out_part(sweeps, cost, metric)}
</main>
<script type="application/json" id="charts">{_json(charts)}</script>
<script type="application/json" id="details">{_json(details(whole, rows))}</script>
<script type="application/json" id="curves-data">{_json(searched)}</script>
<script>{plotly}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _json(value: Any) -> str:
    # "</script>" or "<!--" in a run's text would end the element it stands in.
    return json.dumps(value).replace("<", "\\u003c")


def _whole(by_cost: Mapping[str, Sequence[Front]]) -> list[Run]:
    """The runs that the page tells everything of, as many as there is room for.

    First the members of the fronts, then the runs closest to them, of each front in turn.
    """
    found = [front for fronts in by_cost.values() for front in fronts]
    members = (run for front in found for run in front.members)
    others = chain.from_iterable(zip_longest(*(front.closest() for front in found)))
    kept, room = [], ROOM
    for run in _by_id(run for run in (*members, *others) if run is not None):
        # A row of the table has about the figures of the details once more.
        room -= 2 * len(json.dumps(detail(run, False))) + len(by_cost) * len(hover(run, ""))
        if room < 0:
            break
        kept.append(run)
    return kept


def _rest_part(count: int) -> str:
    if not count:
        return ""
    return (
        f'<p class="soft">{plural(count, "dominated run")} more, farther from the front, '
        f"{'is a small point' if count == 1 else 'are small points'} in the figure and "
        f"{'a row' if count == 1 else 'rows'} of report.csv: a page of all would open slowly.</p>"
    )


def _by_id(runs: Iterable[Run]) -> Iterable[Run]:
    return {id(run): run for run in runs}.values()


def _curves_part(searched: object) -> str:
    if searched is None:
        return ""
    return '<h2>Searches behind the front</h2><div id="curves"></div>'


def _picker(costs: Iterable[str]) -> str:
    options = (
        f'<option value="{escape(name)}">{escape(cost_label(name))}</option>' for name in costs
    )
    return f'<select id="cost">{"".join(options)}</select>'


def _front_part(found: Sequence[Front], visible: bool) -> str:
    lines = "".join(
        f"<p>{escape(f'{front.label}: ' if len(found) > 1 else '')}{escape(front.summary())}</p>"
        for front in found
    )
    pairs = [_load(run, front) for front in found for run in front.members]
    width = max(len(command) for command, _ in pairs)
    commands = "\n".join(f"{command:{width}}  # {what}" for command, what in pairs)
    return f"""<section data-cost="{escape(found[0].cost)}"{"" if visible else " hidden"}>
{lines}
<p class="soft">{escape(found[0].definition())}</p>
<h2>Load a network of the front</h2>
<pre>import nas
{escape(commands)}</pre>
{_choices_part(found)}
</section>
"""


def _choices_part(found: Sequence[Front]) -> str:
    table = choices_table([run for front in found for run in front.members])
    if not table:
        return ""
    return f"<h2>What the networks of the front have in common</h2>\n{table}"


def _load(run: Run, front: Front) -> tuple[str, str]:
    """The command for one network; what it is."""
    metric = metric_text(front.metric, run.metrics[front.metric])
    what = f"{cost_text(run.costs[front.cost])} {front.cost}, {metric}"
    return f"network = {load_command(run)}", what


def _left_out_part(sweeps: Sequence[Sweep], cost: str, metric: str) -> str:
    rows = list(left_out(sweeps, cost, metric))
    if not rows:
        return ""
    heading = f"<h2>{plural(len(rows), 'run')} without a place in the figure</h2>"
    if len(rows) > LEFT_OUT:
        heading += f'<p class="soft">The first {LEFT_OUT}; report.csv has them all.</p>'
    return heading + left_out_table(rows[:LEFT_OUT], several=len(sweeps) > 1)
