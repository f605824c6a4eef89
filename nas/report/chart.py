"""The interactive scatter as plotly's JSON: traces and layout, text escaped for its markup."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nas.report.front import Front
from nas.report.labels import cost_label, cost_text, metric_label, metric_text, plural
from nas.report.marks import budgets_of, knee_of, spread
from nas.report.runs import Run
from nas.report.series import Series, line_colour, series_of

BUDGET = "#8792a0"  # of what is marked and is no run: legible on white and on dark
LINES = 18  # of a hover box, which the chart's lower edge would cut off; report.csv has it all


def chart(fronts: Sequence[Front], rows: Mapping[int, str]) -> dict[str, Any]:
    """`rows` maps ``id(run)`` to the id of its row in the page's table.

    A run without a row is a point with its name, and nothing to pick.
    """
    data = [_line(front, line_colour(fronts, i)) for i, front in enumerate(fronts)]
    data += _budgets(fronts)
    for series in series_of(fronts):
        data += [_swatch(series)] if series.label else []
        data += [trace for front in fronts for trace in _points(front, series, rows)]
        data += [trace for front in fronts for trace in _bare(front, series, rows)]
        # Over several sweeps colours mean sweeps, whose runs are no repetitions of one setting.
        data += _spread(series, fronts[0]) if len(fronts) == 1 else []
    data += [trace for front in fronts for trace in _knee(front, rows)]
    axis = {"automargin": True, "zeroline": False}
    return {
        "data": data,
        "layout": {
            "xaxis": axis
            | {"type": "log", "tickformat": "~s", "nticks": 3}
            | {"title": {"text": escape(cost_label(fronts[0].cost))}},
            "yaxis": axis | {"title": {"text": escape(metric_label(fronts[0].metric))}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            "hovermode": "closest",
            "hoverlabel": {"align": "left", "font": {"size": 12}},
            "font": {"family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
        },
    }


def _line(front: Front, colour: str) -> dict[str, Any]:
    costs, metrics = front.coordinates(front.members)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": costs,
        "y": metrics,
        "line": {"shape": "hv", "color": colour, "width": 2},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _budgets(fronts: Sequence[Front]) -> list[dict[str, Any]]:
    heights = [y for front in fronts for y in front.coordinates(front.runs)[1]]
    return [
        {
            "type": "scatter",
            "mode": "lines+text",
            "x": [budget, budget],
            "y": [min(heights), max(heights)],
            "line": {"dash": "dot", "width": 1.5, "color": BUDGET},
            "text": ["", f"budget {cost_text(budget)}"],
            "textposition": "top center",
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for budget in budgets_of(fronts)
    ]


def _spread(series: Series, front: Front) -> list[dict[str, Any]]:
    found = spread(series, front)
    if found is None:
        return []
    bar = {"color": series.colour, "thickness": 1, "width": 3, "type": "data"}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [found.cost],
            "y": [found.metric],
            "error_x": {**bar, "array": [found.cost_sd]},
            "error_y": {**bar, "array": [found.metric_sd]},
            "marker": {"symbol": "line-ns", "size": 1, "color": series.colour},
            "opacity": 0.6,
            "text": [f"{escape(series.label)}: mean and standard deviation over seeds"],
            "hoverinfo": "text",
            "legendgroup": escape(series.label),
            "showlegend": False,
        }
    ]


def _knee(front: Front, rows: Mapping[int, str]) -> list[dict[str, Any]]:
    run = knee_of(front)
    if run is None:
        return []
    costs, metrics = front.coordinates([run])
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": costs,
            "y": metrics,
            "marker": {"symbol": "circle-open", "size": 20, "color": BUDGET, "line": {"width": 2}},
            "customdata": [rows[id(run)]],
            "name": "knee",
            "hoverinfo": "skip",
        }
    ]


def _swatch(series: Series) -> dict[str, Any]:
    """The legend's entry: the first point of a setting may be a dimmed one."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "marker": {"size": 12, "color": series.colour},
        "name": escape(series.label),
        "legendgroup": escape(series.label),
    }


def _points(front: Front, series: Series, rows: Mapping[int, str]) -> list[dict[str, Any]]:
    """Two traces, front and dominated, which the legend switches together."""
    own = {id(run) for run in series.runs}
    traces: list[dict[str, Any]] = []
    for place, size, opacity in (("front", 12, 1.0), ("dominated", 8, 0.4)):
        runs = [
            run
            for run in front.runs
            if id(run) in own and front.place(run) == place and id(run) in rows
        ]
        if not runs:
            continue
        costs, metrics = front.coordinates(runs)
        marker = {"size": size, "color": series.colour, "opacity": opacity}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": costs,
                "y": metrics,
                "marker": marker,
                "text": [hover(run, place) for run in runs],
                "hoverinfo": "text",
                "customdata": [rows[id(run)] for run in runs],
                "legendgroup": escape(series.label),
                "showlegend": False,
            }
        )
    return traces


def _bare(front: Front, series: Series, rows: Mapping[int, str]) -> list[dict[str, Any]]:
    """The runs that the page has no row for."""
    own = {id(run) for run in series.runs}
    runs = [run for run in front.runs if id(run) in own and id(run) not in rows]
    if not runs:
        return []
    costs, metrics = front.coordinates(runs)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [float(f"{cost:.5g}") for cost in costs],  # more digits are below a pixel
            "y": [float(f"{metric:.5g}") for metric in metrics],
            "marker": {"size": 5, "color": series.colour, "opacity": 0.3},
            "text": [escape(run.name) for run in runs],
            "meta": "bare",
            "hoverinfo": "text",
            "legendgroup": escape(series.label),
            "showlegend": False,
        }
    ]


def hover(run: Run, place: str) -> str:
    """What is told of a run where its point is pointed at."""
    lines = [f"<b>{escape(run.name)}</b> ({place})"]
    lines += [f"{escape(k)}: {escape(metric_text(k, v))}" for k, v in run.metrics.items()]
    lines += [f"{escape(k)}: {escape(cost_text(v))}" for k, v in run.costs.items()]
    lines += [f"{escape(k)}={escape(str(v))}" for k, v in run.overrides.items()]
    decisions = [f"{escape(k)} → {escape(str(v))}" for k, v in run.arch.items()]
    room = max(LINES - len(lines), 0)
    lines += decisions[:room]
    if len(decisions) > room:
        lines.append(f"... and {plural(len(decisions) - room, 'decision')} more")
    return "<br>".join(lines)
