"""Curves of the searches behind a front, read from their TensorBoard files."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nas.report.runs import Run
from nas.report.series import COLOURS
from nas.run import RunDir

MOST = 8  # searches whose curves are shown
TAGS = {"accuracy/supernet_val": "supernet, val. acc. (%)", "search/entropy": "entropy of choices"}
GRID = "rgba(128, 140, 155, 0.25)"  # on white and on dark


def curves(runs: Sequence[Run], cost: str) -> dict[str, Any] | None:
    """Plotly's JSON of accuracy, cost and entropy by epoch; None where no run has left any."""
    tags = {**TAGS, f"cost/{cost}_relative": f"expected {cost} (start = 1)"}
    found = {run.name: scalars(run, tags) for run in runs[:MOST]}
    drawn = [tag for tag in tags if any(tag in table for table in found.values())]
    if not drawn:
        return None
    data = [
        _trace(name, table[tag], place, colour, tag)
        for (name, table), colour in zip(found.items(), COLOURS * 2, strict=False)
        for place, tag in enumerate(drawn, 1)
        if tag in table
    ]
    return {"data": data, "layout": _layout([tags[tag] for tag in drawn])}


def scalars(run: Run, tags: Mapping[str, str]) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (epoch, value); the tags that the run has written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = RunDir(run.path).tensorboard
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1})
    events.Reload()
    known = [tag for tag in events.Tags()["scalars"] if tag in tags]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in known}


def _trace(
    name: str, points: Sequence[tuple[int, float]], place: int, colour: str, tag: str
) -> dict[str, Any]:
    scale = 100 if tag.startswith("accuracy") else 1
    axis = "" if place == 1 else str(place)
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(points) == 1 else "lines",
        "x": [step + 1 for step, _ in points],
        "y": [scale * value for _, value in points],
        "line": {"color": colour, "width": 1.8},
        "name": escape(name),
        "legendgroup": escape(name),
        "showlegend": place == 1,
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
    }


def _layout(titles: Sequence[str]) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "grid": {"rows": 1, "columns": len(titles), "pattern": "independent", "xgap": 0.15},
        "legend": {"orientation": "h", "x": 0, "y": -0.25},
        "margin": {"l": 40, "r": 10, "t": 30, "b": 40},
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hovermode": "closest",
        "annotations": [_title(text, place) for place, text in enumerate(titles, 1)],
    }
    axis = {"automargin": True, "zeroline": False, "gridcolor": GRID}
    for place in range(1, len(titles) + 1):
        suffix = "" if place == 1 else str(place)
        layout[f"xaxis{suffix}"] = {**axis, "title": {"text": "epoch"}, "nticks": 6}
        layout[f"yaxis{suffix}"] = dict(axis)
    return layout


def _title(text: str, place: int) -> dict[str, Any]:
    axis = "" if place == 1 else str(place)
    return {
        "text": escape(text),
        "showarrow": False,
        "xref": f"x{axis} domain",
        "yref": f"y{axis} domain",
        "x": 0,
        "y": 1.0,
        "xanchor": "left",
        "yanchor": "bottom",
    }
