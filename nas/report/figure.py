"""The figure of cost against metric: marks that the page's script and matplotlib draw alike.

`chart` says what is shown: the front as a line, its members and the dominated runs as points, the
knee, the best by validation, budgets and, where they are asked for, mean and deviation over seeds.
`pictures` draws it.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.errors import UserError
from nas.report.collect import RunRecord
from nas.report.fronts import Front, Series, budgets_of, line_colour, series_of, title
from nas.report.templates import GREYS, cost_label, cost_text, metric_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RowIds = Mapping[RunRecord, str]  # run -> id of its row in the page's table of runs

FRONT, DOMINATED, SMALL_POINT, RING, DOT = 6.0, 4.0, 2.5, 10.0, 2.0  # radii in pixels
INCHES = (6.0, 4.2)
DPI = 200  # 1200 pixels wide: sharp where it is shown 600 wide
SMALL = (3.7, 3.0)  # TensorBoard shows it about 310 pixels wide: letters must be large in it
POINT = 1.16  # of a radius in the page, so that marks have the same share of both figures
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


@dataclass(frozen=True)
class Line:
    """A line through points.

    Args:
        x, y: in the units of the axes.
        width: in pixels.
        dash: lengths of dashes and gaps in pixels, as SVG writes them; "": none.
        steps: the line goes to the right, then up or down.
        label: stands at its upper end.
        name: of the run that it is about, for the pointer.
        run: that run's row in the table; "": none.
        series: the entry of the legend that shows or hides it; "": always shown.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    width: float = 2.0
    dash: str = ""
    steps: bool = False
    label: str = ""
    name: str = ""
    run: str = ""
    series: str = ""
    kind: str = field(default="line", init=False)


@dataclass(frozen=True)
class Points:
    """Runs as circles.

    Args:
        x, y: in the units of the axes.
        radius: in pixels.
        hollow: an outline alone.
        runs: of each point its row in the table.
        names: instead, of points without a row.
        series: see `Line`.
    """

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    radius: float
    hollow: bool = False
    runs: Sequence[str] = ()
    names: Sequence[str] = ()
    series: str = ""
    kind: str = field(default="points", init=False)


@dataclass(frozen=True)
class Whiskers:
    """Mean and standard deviation of both quantities over the seeds of a setting."""

    x: float
    y: float
    dx: float
    dy: float
    colour: str
    series: str = ""
    kind: str = field(default="whiskers", init=False)


Mark = Line | Points | Whiskers


@dataclass(frozen=True)
class Chart:
    """Marks between two axes.

    Args:
        x, y: labels of the axes.
        log: whether the x axis is logarithmic.
        legend: (series, label, colour, dash) of each entry.
    """

    x: str
    y: str
    marks: Sequence[Mark]
    log: bool = False
    legend: Sequence[tuple[str, str, str, str]] = ()

    def to_json(self) -> dict[str, Any]:
        """As the page's script reads it: what is not set is left out."""
        marks = [
            {k: v for k, v in asdict(mark).items() if v or isinstance(v, float)}
            for mark in self.marks
        ]
        return {"x": self.x, "y": self.y, "log": self.log, "legend": self.legend, "marks": marks}


def chart(fronts: Sequence[Front], row_ids: RowIds | None = None, spread: bool = False) -> Chart:
    """The scatter of cost against metric.

    Args:
        row_ids: runs with details in the page; any other run is a small point with its name.
            None: every run is a full point.
        spread: draw mean and standard deviation over the seeds of each setting.
    """
    first, series = fronts[0], series_of(fronts)
    dashes = {front.label: "6 4" for front in fronts if front.baseline and len(fronts) > 1}
    return Chart(
        cost_label(first.cost),
        metric_label(first.metric),
        list(_marks(fronts, series, row_ids, spread, dashes)),
        log=True,
        legend=[(s.key, s.label, s.colour, dashes.get(s.key, "")) for s in series if s.label],
    )


def _marks(
    fronts: Sequence[Front],
    series: Sequence[Series],
    row_ids: RowIds | None,
    spread: bool,
    dashes: Mapping[str, str],
) -> Iterator[Mark]:
    for i, front in enumerate(fronts):
        own, dash = front.label if len(fronts) > 1 else "", dashes.get(front.label, "")
        place = front.coordinates(front.members)
        yield Line(*place, line_colour(fronts, i), dash=dash, steps=True, series=own)
    yield from _budgets(fronts)
    for one in series:
        for front in fronts:
            yield from _points(front, one, row_ids)
        # Over several sweeps colours stand for sweeps, whose runs repeat no setting.
        if spread and len(fronts) == 1 and (found := one.spread(fronts[0])) is not None:
            yield Whiskers(*found, one.colour, one.key)
    for i, front in enumerate(fronts):
        own = front.label if len(fronts) > 1 else ""
        # What lies around the dot is full on the front, hollow elsewhere.
        for runs, colour in ((front.members, "#ffffff"), (front.dominated, line_colour(fronts, i))):
            if best := [r for r in runs if r.best and (row_ids is None or r in row_ids)]:
                ids = [] if row_ids is None else [row_ids[run] for run in best]
                yield Points(*front.coordinates(best), colour, DOT, runs=ids, series=own)
        if (run := front.knee()) is not None:
            ids = [] if row_ids is None else [row_ids[run]]
            place = front.coordinates([run])
            yield Points(*place, GREYS[0], RING, hollow=True, runs=ids, series=own)


def _budgets(fronts: Sequence[Front]) -> Iterator[Line]:
    heights = [y for front in fronts for y in front.coordinates(front.runs)[1]]
    for budget in budgets_of(fronts):
        ends = [min(heights), max(heights)]
        label = f"budget {cost_text(budget)}"
        yield Line([budget, budget], ends, GREYS[0], 1.5, dash="2 3", label=label)


def _points(front: Front, series: Series, row_ids: RowIds | None) -> Iterator[Points]:
    """Of the front, of dominated runs, and small ones; the front's lie on top."""
    looks = ((front.dominated, DOMINATED, True), (front.members, FRONT, False))
    small = [r for r in series.among(front.runs) if row_ids is not None and r not in row_ids]
    if small:
        # More digits are below a pixel.
        x, y = ([float(f"{v:.5g}") for v in values] for values in front.coordinates(small))
        names = [run.name for run in small]
        yield Points(x, y, series.colour, SMALL_POINT, names=names, series=series.key)
    for members, radius, hollow in looks:
        runs = [r for r in series.among(members) if row_ids is None or r in row_ids]
        if runs:
            ids = [row_ids[run] for run in runs] if row_ids is not None else []
            place = front.coordinates(runs)
            yield Points(*place, series.colour, radius, hollow, ids, series=series.key)


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
            f"pictures need {package}, which cannot be imported ({error}); install it with: "
            "pip install 'dnas[report]'. The table, report.csv and report.html are made without it"
        ) from None


def pictures(
    fronts: Sequence[Front],
    formats: Sequence[str] = ("png", "svg"),
    small: bool = False,
    spread: bool = False,
) -> list[bytes]:
    """The figure in each of these formats.

    Args:
        small: with large letters, for TensorBoard.
        spread: see `chart`.

    Raises:
        UserError: matplotlib is not installed.
    """
    with load_optional("matplotlib").rc_context(STYLE):
        # A Figure without pyplot: no window system, no global state, safe in a thread.
        inches = SMALL if small else INCHES
        figure = load_optional("matplotlib.figure").Figure(figsize=inches, layout="constrained")
        axes, drawn = figure.add_subplot(), chart(fronts, spread=spread)
        for mark in drawn.marks:
            _draw(axes, mark)
        _label(axes, drawn, title(fronts), small)
        _legend(figure, drawn, small)
        return [_saved(figure, kind) for kind in formats]


def _saved(figure: "Figure", kind: str) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"dpi": DPI} if kind == "png" else {"metadata": {"Date": None}}
    figure.savefig(file, format=kind, **options)
    return file.getvalue()


def _draw(axes: "Axes", mark: Mark) -> None:
    if isinstance(mark, Line):
        style: dict[str, Any] = {"color": mark.colour, "linewidth": 0.8 * mark.width, "alpha": 0.75}
        (drawn,) = axes.plot(mark.x, mark.y, linestyle=_dashes(mark.dash), **style)
        drawn.set_drawstyle("steps-post" if mark.steps else "default")
    elif isinstance(mark, Whiskers):
        least = min(mark.dx, 0.9 * mark.x)  # a logarithmic axis has no 0
        bars: dict[str, Any] = {"xerr": least, "yerr": mark.dy, "elinewidth": 1, "capsize": 2}
        axes.errorbar([mark.x], [mark.y], color=mark.colour, zorder=1, **bars)
    else:
        axes.scatter(
            mark.x,
            mark.y,
            s=(POINT * mark.radius) ** 2,
            facecolor=_face(mark),
            edgecolor=mark.colour if mark.hollow else "white",
            linewidth=1.0 if mark.hollow else 0.6,
            zorder=2 if mark.hollow else 3,
        )


def _face(mark: Points) -> str:
    """A ring shows what it stands around; other hollow points hide lines behind them."""
    if not mark.hollow:
        return mark.colour
    return "none" if mark.radius == RING else "white"


def _dashes(dash: str) -> Any:
    """SVG's lengths as matplotlib's line style."""
    return (0, [float(length) / 1.5 for length in dash.split()]) if dash else "-"


def _label(axes: "Axes", drawn: Chart, text: str, small: bool) -> None:
    ticker = load_optional("matplotlib.ticker")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_xlabel(drawn.x)
    axes.set_ylabel(drawn.y)
    # Where it is small, one line would be cut off.
    axes.set_title(text.replace(", hypervolume", "\nhypervolume") if small else text, loc="left")


def _legend(figure: "Figure", drawn: Chart, small: bool) -> None:
    """Below the axes, where it covers nothing."""
    if not drawn.legend:
        return
    line = load_optional("matplotlib.lines").Line2D
    entries = [
        line([], [], color=colour, label=label, marker="o", markersize=5, linestyle=_dashes(dash))
        for _, label, colour, dash in drawn.legend
    ]
    longest = max(len(entry[1]) for entry in drawn.legend)
    columns = max(1, (36 if small else 72) // (longest + 6))
    figure.legend(
        handles=entries, loc="outside lower left", ncols=columns, frameon=False, fontsize=9
    )
