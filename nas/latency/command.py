"""`nas profile`: the keys of the command, what it prints and draws, the files that it writes."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from nas.artifacts import RunDir
from nas.artifacts.files import claimed, write_atomic
from nas.config.schema import Count, Name, checked
from nas.cost.expected import Expected
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.calibrate import Correction, MeasuredNetwork, Role
from nas.latency.cost import LARGEST, ExpectedLatency
from nas.latency.exchange import export, fit_table, is_times, read_times
from nas.latency.job import Measuring
from nas.latency.log import quality_text
from nas.latency.predict import Accuracy, accuracy
from nas.latency.profile import Profile
from nas.quantities import amount
from nas.report.figure import load_optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "latency.png"
STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
BLUE, GREY, RED = "#2f6db5", "#9a9a9a", "#c0392b"
_MARKS: dict[Role, str] = {
    "calibration": "corrected, calibrated on",
    "validation": "corrected, unseen",
}
# (input shape, number of classes), or None for those of the data -> supernet and its input shape.
Build = Callable[[tuple[tuple[int, ...], int] | None], tuple[nn.Module, tuple[int, ...]]]


@checked("measure")
@dataclass(frozen=True)
class Profiling(Measuring):
    """The keys of `nas profile`; see `configs/measure/default.yaml`.

    Raises:
        UserError: a number out of range, or keys that exclude each other.
    """

    input: Sequence[Count] | None = None
    classes: Count = 10
    out: Name | None = None
    export_to: Name | None = None
    pte: bool = False
    import_csv: Name | None = None
    column: Name = "latency"
    unit: Literal["s", "ms", "us"] = "ms"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.export_to and self.import_csv:
            raise UserError("export_to= writes files and import_csv= reads figures: give one")

    def __call__(self, build: Build, console: Console | None = None) -> None:
        """Export, import or measure; write the profile, where one is made."""
        console = console or _console()
        if self.import_csv and is_times(Path(self.import_csv)):
            profile = read_times(Path(self.import_csv), self.device)
            self._write(profile, self._out(profile.about.space, profile.about.runtime), console)
            return
        size = None if self.input is None else (tuple(self.input), self.classes)
        model, shape = build(size)
        if self.import_csv:
            self._fit_table(Path(self.import_csv), model, console)
            return
        space = str(getattr(model, "name", type(model).__name__))
        if self.export_to:
            folder = Path(self.export_to)
            count = export(self, model, shape, folder, self.pte)
            _say(console, f"{count} files in {folder}; how to measure them: {folder / 'README.md'}")
            return
        out = self._out(space, self.runtime)
        ready = self.ready()  # it may be refused
        RunDir(out.parent).create()
        with claimed(out.with_name(f".{out.name}.lock"), str(out)):
            profile = self.measure(model, shape, out.with_suffix(".jsonl"), ready)
            self._write(profile, out, console)

    def _out(self, space: str, runtime: str) -> Path:
        return Path(self.out or f"profiles/{space}_{runtime}.json")

    def _fit_table(self, path: Path, model: nn.Module, console: Console) -> None:
        space = str(getattr(model, "name", type(model).__name__))
        options = {name: decision.options for name, decision in decisions(model)}
        count = prod(map(len, options.values()))
        device = self.device or "unknown"
        table = fit_table(
            path, self.column, self.unit, space, device, options, additive=count > LARGEST
        )
        out = self._out(space, "networks")
        table.save(out)
        _say(console, f"{table.rows} networks of space {space!r}; {table.dropped} implausible")
        for name, error in sorted(table.errors.items(), key=lambda item: item[1]):
            chosen = " (chosen)" if name == table.chosen else ""
            _say(console, f"  {name}: {error:.1%} off on rows left out{chosen}")
        _say(console, f"written: {out}")
        _next(console, out)

    def _write(self, profile: Profile, out: Path, console: Console) -> None:
        profile.save(out)
        show(profile, console)
        written = [out]
        try:
            png = picture(profile) if profile.networks else None
        except UserError as error:
            _say(console, f"no picture: {error}")
            png = None
        if png is not None:
            write_atomic(out.with_suffix(".png"), png)
            write_tensorboard(out.with_suffix(".tensorboard"), png, profile)
            written += [out.with_suffix(".png"), out.with_suffix(".tensorboard")]
        _say(console, f"\nwritten: {', '.join(map(str, written))}")
        _next(console, out)


def show(profile: Profile, console: Console) -> None:
    """Print what was measured, and the accuracy of the predictions."""
    about = profile.about
    _say(
        console,
        f"space {about.space!r} on {about.device}: {about.runtime} ({about.accelerator}), "
        f"{about.conditions}; {len(profile.units)} units, {len(profile.networks)} networks",
    )
    table = Table("predicted", "by", "n", "MAPE", "within 5 %", "within 10 %", "tau", "Spearman")
    best = profile.regression.kind if profile.regression else ""
    for kind, score in profile.validation.units.items():
        chosen = f"{kind} (chosen)" if kind == best else kind
        table.add_row("units left out", chosen, *_cells(score))
    unseen, right = profile.of_role("validation"), profile.validation
    if right.sum_of_units is not None:
        alone = accuracy([n.macs for n in unseen], [n.seconds for n in unseen])
        ranks = _cells(alone)[-2:]
        table.add_row("unseen networks", "MACs alone", str(len(unseen)), "-", "-", "-", *ranks)
        table.add_row("unseen networks", "plain sum of units", *_cells(right.sum_of_units))
    if right.networks is not None:
        table.add_row("unseen networks", "corrected sum", *_cells(right.networks))
    console.print(table)
    _say(console, _formula(profile.correction))
    if quality := profile.measurement_quality:
        counts = "{outliers} outliers in {calls} calls, {unstable} unstable"
        _say(console, f"{quality_text(quality)} ({counts.format(**quality)})")


def _formula(correction: Correction) -> str:
    text = f"network = {correction.scale:.3f} x sum"
    if correction.factors:
        low, high = min(correction.factors.values()), max(correction.factors.values())
        text += f" of units x their own factors ({low:.2f} to {high:.2f})"
    if correction.per_unit:
        text += f" + {amount(correction.per_unit, 's')} x units"
    if correction.offset:
        text += f" + {amount(correction.offset, 's')}"
    if correction.spill is not None:
        room, per_weight = correction.spill.room, correction.spill.per_weight
        text += f" + {per_weight * 1e9:.3g} ns for each of its weights beyond {amount(room, '')}"
    return text


def _next(console: Console, out: Path) -> None:
    _say(console, f"next: nas search cost=[latency] profile={out}, with the same space= or")
    _say(console, "      model=, and data=; or budget.latency=3ms in place of cost=[latency]")


def _console() -> Console:
    """A console; one that is no terminal is wide enough for the table."""
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=110)


def _cells(score: Accuracy) -> list[str]:
    shares = (score.within_5, score.within_10)
    mape = f"{score.mape:.1%}" if score.mape < 10 else "> 1000 %"
    ranks = (score.kendall, score.spearman)
    return [str(score.count), mape, *(f"{s:.1%}" for s in shares), *(f"{r:.3f}" for r in ranks)]


def _say(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def write_picture(
    folder: Path, writer: Any, costs: Mapping[str, Expected], fields: Mapping[str, Any]
) -> None:
    """Write the profile's picture, with the network found in it, as a file and for TensorBoard.

    Args:
        writer: of TensorBoard; None: there is none.
    """
    cost = costs.get("latency")
    if not isinstance(cost, ExpectedLatency) or not cost.profile.networks:
        return
    found = None
    if fields["measured"] is not None:
        found = (fields["measured"], fields["predicted"])
    try:
        png = picture(cost.profile, found)
        write_atomic(folder / PICTURE, png)
        if writer is not None:
            add_picture(writer, png)
    except UserError as error:  # no matplotlib
        logging.getLogger("nas").info("no picture of the latencies: %s", error)


def picture(profile: Profile, found: tuple[float, float] | None = None) -> bytes:
    """A PNG of predicted against measured seconds: each network, and the plain sum of its units.

    Args:
        found: measured and predicted seconds of one more network, marked.

    Raises:
        UserError: matplotlib is not installed.
    """
    with load_optional("matplotlib").rc_context(STYLE):
        figure = load_optional("matplotlib.figure").Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, profile)
        if found is not None:
            x, y = 1e3 * found[0], 1e3 * found[1]
            axes.scatter([x], [y], s=110, marker="*", color=RED, label="network found", zorder=4)
        axes.legend(frameon=False, fontsize=9)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=200)
    return out.getvalue()


def _draw(axes: "Axes", profile: Profile) -> None:
    roles = {role: profile.of_role(role) for role in _MARKS}
    shown = profile.networks
    edge = [n.seconds for n in shown] + [n.predicted for n in shown] + [n.total for n in shown]
    low, high = 950 * min(edge), 1050 * max(edge)
    axes.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=1)
    axes.scatter(*_points(shown, "total"), s=14, color=GREY, label="plain sum of units")
    for role, networks in roles.items():
        filled = BLUE if role == "validation" else "none"
        axes.scatter(
            *_points(networks, "predicted"),
            s=26,
            facecolor=filled,
            edgecolor=BLUE,
            label=_MARKS[role],
            zorder=3,
        )
    about, accuracy = profile.about, profile.validation.networks
    axes.set_xlabel("measured (ms)")
    axes.set_ylabel("predicted (ms)")
    title = f"{about.space}, {about.runtime}, {about.conditions}"
    if accuracy is not None:
        title += f"\nMAPE {accuracy.mape:.1%}, Kendall tau {accuracy.kendall:.3f}"
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)


def _points(networks: Sequence[MeasuredNetwork], what: str) -> tuple[list[float], list[float]]:
    return [1e3 * n.seconds for n in networks], [1e3 * getattr(n, what) for n in networks]


def add_picture(writer: Any, png: bytes) -> None:
    """Show the picture in TensorBoard, through a writer of event files."""
    image = load_optional("matplotlib.image").imread(io.BytesIO(png))[..., :3]  # H W RGB
    writer.add_image("latency/predicted_and_measured", image, dataformats="HWC")


def write_tensorboard(folder: Path, png: bytes, profile: Profile) -> None:
    """Write the picture and the accuracy on unseen networks; replaces what is in `folder`."""
    from torch.utils.tensorboard import SummaryWriter

    before = list(folder.glob("events.out.tfevents.*"))
    with SummaryWriter(str(folder)) as writer:
        add_picture(writer, png)
        if profile.validation.networks is not None:
            for name, value in asdict(profile.validation.networks).items():
                writer.add_scalar(f"latency/{name}", value, 0)
    for old in before:
        old.unlink()
