"""The interactive figures as plotly's JSON: traces and layout, text escaped for its markup."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nas.report.collect import RunRecord
from nas.report.fronts import Front, budgets_of
from nas.report.labels import (
    COLOURS,
    cost_label,
    cost_text,
    metric_label,
    metric_text,
    plural,
)
from nas.report.series import Series, line_colour, series_of
from nas.report.tensorboard import scalars

Trace = dict[str, Any]
RowIds = Mapping[RunRecord, str]  # run -> id of its row in the page's table of runs

GREY = "#8792a0"  # of marks that are no runs: legible on white and on dark
GRID = "rgba(128, 140, 155, 0.25)"  # on white and on dark
LINES = 18  # of a hover box, which the chart's lower edge would cut off; report.csv has it all
MOST_CURVES = 8  # searches whose curves are shown
CURVES = {
    "accuracy/supernet_val": "supernet, val. acc. (%)",
    "search/entropy": "entropy of choices",
}
AXIS = {"automargin": True, "zeroline": False}
LAYOUT = {
    "hovermode": "closest",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


def chart(fronts: Sequence[Front], row_ids: RowIds) -> dict[str, Any]:
    """The scatter of cost against metric; a run without a row is a small point with its name."""
    data = [_line(front, line_colour(fronts, i)) for i, front in enumerate(fronts)]
    data += _budgets(fronts)
    for series in series_of(fronts):
        data += [_swatch(series)] if series.label else []
        data += [trace for front in fronts for trace in _points(front, series, row_ids)]
        data += [trace for front in fronts for trace in _small_points(front, series, row_ids)]
        # Over several sweeps colours stand for sweeps, whose runs repeat no setting.
        data += _spread(series, fronts[0]) if len(fronts) == 1 else []
    data += [trace for front in fronts for trace in _knee(front, row_ids)]
    cost, metric = escape(cost_label(fronts[0].cost)), escape(metric_label(fronts[0].metric))
    layout = LAYOUT | {
        "xaxis": {**AXIS, "type": "log", "tickformat": "~s", "nticks": 3, "title": {"text": cost}},
        "yaxis": {**AXIS, "title": {"text": metric}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hoverlabel": {"align": "left", "font": {"size": 12}},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }
    return {"data": data, "layout": layout}


def _trace(mode: str, x: Sequence[float | None], y: Sequence[float | None], **more: Any) -> Trace:
    # Only a trace with a name is listed in the legend.
    unlisted = {} if "name" in more else {"showlegend": False}
    return {"type": "scatter", "mode": mode, "x": x, "y": y, **unlisted, **more}


def _line(front: Front, colour: str) -> Trace:
    line = {"shape": "hv", "color": colour, "width": 2}
    return _trace("lines", *front.coordinates(front.members), line=line, hoverinfo="skip")


def _budgets(fronts: Sequence[Front]) -> list[Trace]:
    heights = [y for front in fronts for y in front.coordinates(front.runs)[1]]
    return [
        _trace(
            "lines+text",
            [budget, budget],
            [min(heights), max(heights)],
            line={"dash": "dot", "width": 1.5, "color": GREY},
            text=["", f"budget {cost_text(budget)}"],
            textposition="top center",
            hoverinfo="skip",
        )
        for budget in budgets_of(fronts)
    ]


def _spread(series: Series, front: Front) -> list[Trace]:
    found = series.spread(front)
    if found is None:
        return []
    bar = {"color": series.colour, "thickness": 1, "width": 3, "type": "data"}
    return [
        _trace(
            "markers",
            [found.cost],
            [found.metric],
            error_x={**bar, "array": [found.cost_sd]},
            error_y={**bar, "array": [found.metric_sd]},
            marker={"symbol": "line-ns", "size": 1, "color": series.colour},
            opacity=0.6,
            text=[f"{escape(series.label)}: mean and standard deviation over seeds"],
            hoverinfo="text",
            legendgroup=escape(series.label),
        )
    ]


def _knee(front: Front, row_ids: RowIds) -> list[Trace]:
    run = front.knee()
    if run is None:
        return []
    ring = {"symbol": "circle-open", "size": 20, "color": GREY, "line": {"width": 2}}
    return [
        _trace(
            "markers",
            *front.coordinates([run]),
            marker=ring,
            customdata=[row_ids[run]],
            name="knee",
            hoverinfo="skip",
        )
    ]


def _swatch(series: Series) -> Trace:
    """The legend's entry: the first point of a setting may be a dimmed one."""
    name, marker = escape(series.label), {"size": 12, "color": series.colour}
    return _trace("markers", [None], [None], marker=marker, name=name, legendgroup=name)


def _points(front: Front, series: Series, row_ids: RowIds) -> list[Trace]:
    """Two traces, front and dominated, which the legend switches together."""
    traces: list[Trace] = []
    groups = (("front", front.members, 12, 1.0), ("dominated", front.dominated, 8, 0.4))
    for dominance, group, size, opacity in groups:
        runs = [run for run in series.among(group) if run in row_ids]
        if runs:
            trace = _trace(
                "markers",
                *front.coordinates(runs),
                marker={"size": size, "color": series.colour, "opacity": opacity},
                text=[hover(run, dominance) for run in runs],
                hoverinfo="text",
                customdata=[row_ids[run] for run in runs],
                legendgroup=escape(series.label),
            )
            traces.append(trace)
    return traces


def _small_points(front: Front, series: Series, row_ids: RowIds) -> list[Trace]:
    """The runs that the page has no row for."""
    runs = [run for run in series.among(front.runs) if run not in row_ids]
    if not runs:
        return []
    costs, metrics = front.coordinates(runs)
    return [
        _trace(
            "markers",
            [float(f"{cost:.5g}") for cost in costs],  # more digits are below a pixel
            [float(f"{metric:.5g}") for metric in metrics],
            marker={"size": 5, "color": series.colour, "opacity": 0.3},
            text=[escape(run.name) for run in runs],
            meta="bare",
            hoverinfo="text",
            legendgroup=escape(series.label),
        )
    ]


def hover(run: RunRecord, dominance: str) -> str:
    """The text of the box beside a point under the pointer."""
    lines = [f"<b>{escape(run.name)}</b> ({dominance})"]
    lines += [f"{escape(k)}: {escape(metric_text(k, v))}" for k, v in run.metrics.items()]
    lines += [f"{escape(k)}: {escape(cost_text(v))}" for k, v in run.costs.items()]
    lines += [f"{escape(k)}={escape(str(v))}" for k, v in run.overrides.items()]
    decisions = [f"{escape(k)} → {escape(str(v))}" for k, v in run.arch.items()]
    room = max(LINES - len(lines), 0)
    lines += decisions[:room]
    if len(decisions) > room:
        lines.append(f"... and {plural(len(decisions) - room, 'decision')} more")
    return "<br>".join(lines)


def curves(runs: Sequence[RunRecord], cost: str) -> dict[str, Any] | None:
    """Accuracy, cost and entropy of the searches by epoch; None if no run has recorded any."""
    tags = {**CURVES, f"cost/{cost}_relative": f"expected {cost} (start = 1)"}
    found = {run.name: scalars(run.path, tags) for run in runs[:MOST_CURVES]}
    drawn = [tag for tag in tags if any(tag in table for table in found.values())]
    if not drawn:
        return None
    data = [
        _curve(name, table[tag], place, colour, tag)
        for (name, table), colour in zip(found.items(), COLOURS * 2, strict=False)
        for place, tag in enumerate(drawn, 1)
        if tag in table
    ]
    return {"data": data, "layout": _grid([tags[tag] for tag in drawn])}


def _curve(
    name: str, points: Sequence[tuple[int, float]], place: int, colour: str, tag: str
) -> Trace:
    scale = 100 if tag.startswith("accuracy") else 1
    return _trace(
        "lines+markers" if len(points) == 1 else "lines",
        [step + 1 for step, _ in points],
        [scale * value for _, value in points],
        line={"color": colour, "width": 1.8},
        name=escape(name),
        legendgroup=escape(name),
        showlegend=place == 1,
        xaxis=f"x{_number(place)}",
        yaxis=f"y{_number(place)}",
    )


def _number(place: int) -> str:
    """Plotly numbers its axes from the second one on."""
    return "" if place == 1 else str(place)


def _grid(titles: Sequence[str]) -> dict[str, Any]:
    """Plots side by side, each under its title."""
    layout: dict[str, Any] = LAYOUT | {
        "grid": {"rows": 1, "columns": len(titles), "pattern": "independent", "xgap": 0.15},
        "legend": {"orientation": "h", "x": 0, "y": -0.25},
        "margin": {"l": 40, "r": 10, "t": 30, "b": 40},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "annotations": [],
    }
    corner = {"x": 0, "y": 1.0, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    axis = {**AXIS, "gridcolor": GRID}
    for place, title in enumerate(titles, 1):
        n = _number(place)
        layout[f"xaxis{n}"] = {**axis, "title": {"text": "epoch"}, "nticks": 6}
        layout[f"yaxis{n}"] = axis
        domain = {"xref": f"x{n} domain", "yref": f"y{n} domain"}
        layout["annotations"].append({"text": escape(title), **corner, **domain})
    return layout
