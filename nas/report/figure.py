"""front.png and front.svg: cost against metric, the front as a line, dominated runs dimmed."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nas.report.front import Front
from nas.report.labels import cost_label, metric_label
from nas.report.marks import budgets_of, knee_of, spread
from nas.report.optional import load_optional
from nas.report.series import Series, line_colour, series_of, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES = (6.0, 4.2)
DPI = 200  # 1200 pixels wide: sharp where it is shown 600 wide
SMALL = (3.7, 3.0)  # TensorBoard shows it about 310 pixels wide: letters must be large in it
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


def pictures(fronts: Sequence[Front], small: bool = False) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG.

    Args:
        small: for where it is shown small.

    Raises:
        UserError: matplotlib is not installed.
    """
    matplotlib = load_optional("matplotlib")
    with matplotlib.rc_context(STYLE):
        figure = _draw(fronts, small)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()


def _draw(fronts: Sequence[Front], small: bool) -> "Figure":
    # A Figure without pyplot: no window system, no global state, safe in a thread.
    inches = SMALL if small else INCHES
    figure: Figure = load_optional("matplotlib.figure").Figure(figsize=inches, layout="constrained")
    axes = figure.add_subplot()
    for index, front in enumerate(fronts):
        _line(axes, front, line_colour(fronts, index))
    for series in series_of(fronts):
        for front in fronts:
            _points(axes, front, series)
        if len(fronts) == 1:  # else colours mean sweeps, no repetitions of one setting
            _spread(axes, series, fronts[0])
        # A swatch of its own: the first point of a setting may be a dimmed one.
        axes.scatter([], [], s=46, color=series.colour, label=series.label or None)
    _marks(axes, fronts)
    _axes(axes, fronts, small)
    if any(series.label for series in series_of(fronts)):
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="best")
    return figure


def _line(axes: "Axes", front: Front, colour: str) -> None:
    """The best metric that any run reaches at up to a cost: constant up to the next member."""
    costs, metrics = front.coordinates(front.members)
    axes.plot(costs, metrics, drawstyle="steps-post", color=colour, linewidth=1.8, alpha=0.75)


def _points(axes: "Axes", front: Front, series: Series) -> None:
    groups = (("front", 46, 1.0), ("dominated", 24, 0.35))
    own = {id(run) for run in series.runs}
    for place, size, alpha in groups:
        runs = [run for run in front.runs if id(run) in own and front.place(run) == place]
        if not runs:
            continue
        axes.scatter(
            *front.coordinates(runs),
            s=size,
            alpha=alpha,
            color=series.colour,
            edgecolor="white" if place == "front" else "none",
            linewidth=0.8,
            zorder=3 if place == "front" else 2,
        )


def _spread(axes: "Axes", series: Series, front: Front) -> None:
    found = spread(series, front)
    if found is not None:
        axes.errorbar(
            found.cost,
            found.metric,
            xerr=min(found.cost_sd, 0.9 * found.cost),  # a logarithmic axis has no 0
            yerr=found.metric_sd,
            color=series.colour,
            elinewidth=1,
            capsize=2,
            zorder=1,
        )


def _marks(axes: "Axes", fronts: Sequence[Front]) -> None:
    for budget in budgets_of(fronts):
        axes.axvline(budget, color="0.55", linewidth=1, linestyle=":")
    for front in fronts:
        if (run := knee_of(front)) is not None:
            axes.scatter(
                *front.coordinates([run]), s=170, facecolor="none", edgecolor="0.45", zorder=4
            )


def _axes(axes: "Axes", fronts: Sequence[Front], small: bool) -> None:
    ticker = load_optional("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel(cost_label(fronts[0].cost))
    axes.set_ylabel(metric_label(fronts[0].metric))
    words = title(fronts)
    # Where it is small, one line would be cut off.
    axes.set_title(words.replace(", hypervolume", "\nhypervolume") if small else words, loc="left")
