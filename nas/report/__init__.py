"""Run directories -> the Pareto front as a table, CSV, pictures, one HTML page and TensorBoard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from nas.artifacts import RunDir
from nas.artifacts.files import write_atomic
from nas.report.collect import Sweep, by_search, collect, labelled, primary_of
from nas.report.figure import pictures
from nas.report.fronts import Front, fronts
from nas.report.page import page
from nas.report.tensorboard import FOLDER, follow, write_entry
from nas.report.terminal import console, csv_text, print_table

__all__ = ["Front", "ReportFiles", "compare", "follow", "report"]


@dataclass(frozen=True)
class ReportFiles:
    """Where a report was written, and the fronts in it, one per sweep."""

    csv: Path
    png: Path
    svg: Path
    html: Path
    tensorboard: Path  # folder
    fronts: tuple[Front, ...]


def report(
    folder: Path | Sequence[Path],
    cost: str = "params",
    metric: str | None = None,
    out: Path | None = None,
    spread: bool = False,
) -> ReportFiles:
    """Report on all runs below a folder; several folders are overlaid, labelled by their names.

    Runs of several searches in one folder are overlaid in the same way.

    Args:
        cost: x axis, a key of the runs' `costs`; minimised, and shown on a logarithmic axis.
        metric: y axis, a key of the runs' `metrics`, see `nas.quantities.error_of`; None: what
            networks of the runs' task are judged by.
        out: where to write; by default the folder itself, or `./report` for several.
        spread: draw mean and standard deviation over the seeds of each setting.

    Raises:
        UserError: no such folder, no finished run with this cost and metric, `out` cannot be
            written, or the `report` extra is not installed.
    """
    folders = [folder] if isinstance(folder, Path) else list(folder)
    return compare(labelled(folders), cost, metric, out, spread)


def compare(
    folders: Mapping[str, Path],
    cost: str = "params",
    metric: str | None = None,
    out: Path | None = None,
    spread: bool = False,
) -> ReportFiles:
    """As `report`, for labelled folders: one figure, one reference point for all hypervolumes."""
    whole = [Sweep(label, folder, collect(folder)) for label, folder in folders.items()]
    metric = metric or primary_of(whole)
    prefixes = [f"{sweep.label}/" if len(whole) > 1 else "" for sweep in whole]
    sweeps = [
        part
        for sweep, prefix in zip(whole, prefixes, strict=True)
        for part in by_search(sweep, cost, metric, prefix)
    ]
    found = fronts(sweeps, cost, metric)
    target = out or (sweeps[0].folder if len(folders) == 1 else Path("report"))
    RunDir(target).create()
    screen = console()
    print_table(screen, sweeps, found)
    files = _files(target, found)
    _write(files, sweeps, metric, spread)
    _print_next(screen, files, list(folders.values()))
    return files


def write_pictures(run: RunDir, cost: str, best: str) -> None:
    """The files of a report on the networks of a run, in its folder; nothing is printed.

    Args:
        best: the hash of the one whose files the run has copies of.

    Raises:
        UserError: see `report`.
    """
    networks = [replace(one, best=one.arch_hash == best) for one in collect(run.front)]
    sweeps = [Sweep(run.path.resolve().name, run.front, tuple(networks))]
    metric = primary_of(sweeps)
    _write(_files(run.path, fronts(sweeps, cost, metric)), sweeps, metric)


def _write(files: ReportFiles, sweeps: Sequence[Sweep], metric: str, spread: bool = False) -> None:
    found = files.fronts
    write_atomic(files.csv, csv_text(sweeps, found))
    write_atomic(files.html, page(sweeps, found, spread))
    png, svg = pictures(found, spread=spread)
    write_atomic(files.png, png)
    write_atomic(files.svg, svg)
    write_entry(files.tensorboard, sweeps, metric)


def _files(target: Path, found: tuple[Front, ...]) -> ReportFiles:
    return ReportFiles(
        csv=target / "report.csv",
        png=target / "front.png",
        svg=target / "front.svg",
        html=RunDir(target).report,
        tensorboard=target / FOLDER,
        fronts=found,
    )


def _print_next(screen: Console, files: ReportFiles, folders: Sequence[Path]) -> None:
    written = (files.html, files.png, files.svg, files.csv)
    logdir = folders[0] if len(folders) == 1 else files.tensorboard
    lines = [
        "",
        f"written: {', '.join(map(str, written))}",
        f"next: open {files.html} in a browser, or",
        f"      tensorboard --logdir {logdir}",
    ]
    for line in lines:
        screen.print(Text(line), soft_wrap=True)
