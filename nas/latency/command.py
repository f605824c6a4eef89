"""`nas profile`: the keys of the command, what it prints, and the files that it writes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from nas.artifacts import RunDir
from nas.artifacts.files import claimed, write_atomic
from nas.config.schema import Count, Name, checked
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.calibrate import Correction
from nas.latency.cost import LARGEST
from nas.latency.exchange import export, fit_table, is_times, read_times
from nas.latency.figure import picture, write_tensorboard
from nas.latency.job import Measuring
from nas.latency.log import quality_text
from nas.latency.predict import Accuracy, accuracy
from nas.latency.profile import Profile
from nas.latency.runtimes import runtime
from nas.quantities import amount

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
        runtime(self.runtime, self.accelerator, self.conditions)  # it may be refused
        RunDir(out.parent).create()
        with claimed(out.with_name(f".{out.name}.lock"), str(out)):
            profile = self.measure(model, shape, out.with_suffix(".jsonl"))
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
    _say(console, f"next: nas search cost=[latency] profile={out}, with the same space= and")
    _say(console, "      data=; or budget.latency=3ms in place of cost=[latency]")


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
