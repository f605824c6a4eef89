"""The figure of cost against metric: as plotly's JSON for the page, and as PNG and SVG.

`chart` says what is shown: the front as a line, its members and the dominated runs as points, the
knee, budgets, and the spread over seeds. `pictures` draws the same marks with matplotlib.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape, unescape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.errors import UserError
from nas.report.collect import RunRecord
from nas.report.fronts import Front, Series, budgets_of, line_colour, series_of, title
from nas.report.templates import GREYS, cost_label, cost_text, metric_label, metric_text, plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Trace = dict[str, Any]  # one of plotly's
RowIds = Mapping[RunRecord, str]  # run -> id of its row in the page's table of runs

LINES = 18  # of a hover box, which the chart's lower edge would cut off; report.csv has it all
AXIS = {"automargin": True, "zeroline": False}
LAYOUT = {
    "hovermode": "closest",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}
INCHES = (6.0, 4.2)
DPI = 200  # 1200 pixels wide: sharp where it is shown 600 wide
SMALL = (3.7, 3.0)  # TensorBoard shows it about 310 pixels wide: letters must be large in it
POINT = 0.58  # of a pixel in plotly, so that marks have the same share of both figures
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a "$" in a setting is no formula
    "svg.hashsalt": "nas",  # the same runs give the same file
    "svg.fonttype": "none",
}


def chart(fronts: Sequence[Front], row_ids: RowIds | None = None) -> dict[str, Any]:
    """The scatter of cost against metric, text escaped for plotly's markup.

    Args:
        row_ids: runs with details in the page; any other run is a small point with its name.
            None: every run is a full point, without the text of its hover box.
    """
    return {"data": list(_traces(fronts, row_ids)), "layout": _layout(fronts[0])}


def _traces(fronts: Sequence[Front], row_ids: RowIds | None) -> Iterator[Trace]:
    for i, front in enumerate(fronts):
        line = {"shape": "hv", "color": line_colour(fronts, i), "width": 2}
        if front.baseline and len(fronts) > 1:
            line["dash"] = "dash"
        yield trace("lines", *front.coordinates(front.members), line=line, hoverinfo="skip")
    yield from _budgets(fronts)
    for series in series_of(fronts):
        if series.label:
            yield _swatch(series)
        for front in fronts:
            yield from _points(front, series, row_ids)
        # Over several sweeps colours stand for sweeps, whose runs repeat no setting.
        if len(fronts) == 1:
            yield from _spread(series, fronts[0])
    for front in fronts:
        if (run := front.knee()) is not None:
            ring = {"symbol": "circle-open", "size": 20, "color": GREYS[0], "line": {"width": 2}}
            own: dict[str, Any] = {} if row_ids is None else {"customdata": [row_ids[run]]}
            place = front.coordinates([run])
            yield trace("markers", *place, marker=ring, name="knee", hoverinfo="skip", **own)


def _layout(front: Front) -> dict[str, Any]:
    cost, metric = escape(cost_label(front.cost)), escape(metric_label(front.metric))
    return LAYOUT | {
        "xaxis": {**AXIS, "type": "log", "tickformat": "~s", "nticks": 3, "title": {"text": cost}},
        "yaxis": {**AXIS, "title": {"text": metric}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hoverlabel": {"align": "left", "font": {"size": 12}},
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }


def trace(mode: str, x: Sequence[float | None], y: Sequence[float | None], **more: Any) -> Trace:
    """A scatter trace of plotly's; only one with a name is listed in the legend."""
    unlisted = {} if "name" in more else {"showlegend": False}
    return {"type": "scatter", "mode": mode, "x": x, "y": y, **unlisted, **more}


def _budgets(fronts: Sequence[Front]) -> Iterator[Trace]:
    heights = [y for front in fronts for y in front.coordinates(front.runs)[1]]
    for budget in budgets_of(fronts):
        yield trace(
            "lines+text",
            [budget, budget],
            [min(heights), max(heights)],
            line={"dash": "dot", "width": 1.5, "color": GREYS[0]},
            text=["", f"budget {cost_text(budget)}"],
            textposition="top center",
            hoverinfo="skip",
        )


def _spread(series: Series, front: Front) -> Iterator[Trace]:
    if (found := series.spread(front)) is not None:
        bar = {"color": series.colour, "thickness": 1, "width": 3, "type": "data"}
        yield trace(
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


def _swatch(series: Series) -> Trace:
    """The legend's entry: the first point of a setting may be a dimmed one."""
    name, marker = escape(series.label), {"size": 12, "color": series.colour}
    return trace("markers", [None], [None], marker=marker, name=name, legendgroup=name)


def _points(front: Front, series: Series, row_ids: RowIds | None) -> Iterator[Trace]:
    """Traces of the front, of dominated runs and of small points; the legend switches them."""
    group = escape(series.label)
    looks = (("front", front.members, 12, 1.0), ("dominated", front.dominated, 8, 0.4))
    for dominance, members, size, opacity in looks:
        runs = [r for r in series.among(members) if row_ids is None or r in row_ids]
        more: dict[str, Any] = {}
        if row_ids is not None:
            more["text"] = [hover(run, dominance) for run in runs]
            more["customdata"] = [row_ids[run] for run in runs]
        if runs:
            marker = {"size": size, "color": series.colour, "opacity": opacity}
            place = front.coordinates(runs)
            yield trace(
                "markers", *place, marker=marker, hoverinfo="text", legendgroup=group, **more
            )
    small = [r for r in series.among(front.runs) if row_ids is not None and r not in row_ids]
    if small:
        yield trace(
            "markers",
            # More digits are below a pixel.
            *([float(f"{value:.5g}") for value in values] for values in front.coordinates(small)),
            marker={"size": 5, "color": series.colour, "opacity": 0.3},
            text=[escape(run.name) for run in small],
            meta="bare",
            hoverinfo="text",
            legendgroup=group,
        )


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


def load_optional(module: str) -> Any:
    """Import a module of the `report` extra.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"the pictures and the page of a report need {package}, which cannot be imported "
            f"({error}); install it with: pip install 'dnas[report]'. "
            "The table and report.csv were made without it"
        ) from None


def pictures(fronts: Sequence[Front], small: bool = False) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG.

    Args:
        small: with large letters, for TensorBoard.

    Raises:
        UserError: matplotlib is not installed.
    """
    with load_optional("matplotlib").rc_context(STYLE):
        # A Figure without pyplot: no window system, no global state, safe in a thread.
        inches = SMALL if small else INCHES
        figure = load_optional("matplotlib.figure").Figure(figsize=inches, layout="constrained")
        axes = figure.add_subplot()
        for one in chart(fronts)["data"]:
            _draw(axes, one)
        _label(axes, fronts, small)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _draw(axes: "Axes", one: Trace) -> None:
    """One of the traces that `chart` makes."""
    x, y, line, marker = one["x"], one["y"], one.get("line"), one.get("marker", {})
    if line:
        (drawn,) = axes.plot(x, y, color=line["color"], linewidth=0.8 * line["width"], alpha=0.75)
        dash = line.get("dash")
        drawn.set_linestyle(":" if dash == "dot" else "--" if dash else "-")
        drawn.set_drawstyle("steps-post" if "shape" in line else "default")
    elif "error_x" in one:
        least = min(one["error_x"]["array"][0], 0.9 * x[0])  # a logarithmic axis has no 0
        bars = {"xerr": least, "yerr": one["error_y"]["array"], "elinewidth": 1, "capsize": 2}
        axes.errorbar(x, y, color=marker["color"], zorder=1, **bars)
    else:
        area, ring = (POINT * marker["size"]) ** 2, "symbol" in marker
        placed = x != [None]  # else only the legend shows it
        axes.scatter(
            x if placed else [],
            y if placed else [],
            s=area,
            facecolor="none" if ring else marker["color"],
            edgecolor=marker["color"] if ring else "white",
            linewidth=1.0 if ring else 0.6,
            alpha=marker.get("opacity"),
            zorder=2 + marker.get("opacity", 1),
            label=None if ring else unescape(one.get("name", "")) or None,
        )


def _label(axes: "Axes", fronts: Sequence[Front], small: bool) -> None:
    ticker = load_optional("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel(cost_label(fronts[0].cost))
    axes.set_ylabel(metric_label(fronts[0].metric))
    text = title(fronts)
    # Where it is small, one line would be cut off.
    axes.set_title(text.replace(", hypervolume", "\nhypervolume") if small else text, loc="left")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="best")
