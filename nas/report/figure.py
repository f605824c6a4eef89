"""front.png and front.svg: cost against metric, the front as a line, dominated runs dimmed."""

import io
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.errors import UserError
from nas.report.fronts import Front, budgets_of
from nas.report.labels import cost_label, metric_label
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
        # The best metric that any run reaches at up to a cost: constant up to the next member.
        costs, metrics = front.coordinates(front.members)
        colour = line_colour(fronts, index)
        axes.plot(costs, metrics, drawstyle="steps-post", color=colour, linewidth=1.8, alpha=0.75)
    every = series_of(fronts)
    for series in every:
        for front in fronts:
            _points(axes, front, series)
        if len(fronts) == 1:  # else colours stand for sweeps, whose runs repeat no setting
            _spread(axes, series, fronts[0])
        # A swatch of its own: the first point of a setting may be a dimmed one.
        axes.scatter([], [], s=46, color=series.colour, label=series.label or None)
    for budget in budgets_of(fronts):
        axes.axvline(budget, color="0.55", linewidth=1, linestyle=":")
    for front in fronts:
        if (run := front.knee()) is not None:
            place = front.coordinates([run])
            axes.scatter(*place, s=170, facecolor="none", edgecolor="0.45", zorder=4)
    _axes(axes, fronts, small)
    if any(series.label for series in every):
        axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="best")
    return figure


def _points(axes: "Axes", front: Front, series: Series) -> None:
    members: dict[str, Any] = {"s": 46, "alpha": 1.0, "edgecolor": "white", "zorder": 3}
    dominated: dict[str, Any] = {"s": 24, "alpha": 0.35, "edgecolor": "none", "zorder": 2}
    for group, look in ((front.members, members), (front.dominated, dominated)):
        if runs := series.among(group):
            axes.scatter(*front.coordinates(runs), color=series.colour, linewidth=0.8, **look)


def _spread(axes: "Axes", series: Series, front: Front) -> None:
    found = series.spread(front)
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


def _axes(axes: "Axes", fronts: Sequence[Front], small: bool) -> None:
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
