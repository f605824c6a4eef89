"""The runs and fronts as tables: for the terminal, for TensorBoard, and report.csv."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.artifacts.files import csv_table
from nas.report.collect import RunRecord, Sweep, differing, settings
from nas.report.fronts import Front
from nas.report.labels import cost_text, metric_text, plural

MOST_DOMINATED = 30  # a terminal shows so many; report.csv and the page show all
TEXTUAL = ("sweep", "run", "settings", "place")  # columns set to the left
NESTED = ("overrides", "metrics", "costs", "seconds")  # tables of a run, a column each key


def print_table(out: Console, sweeps: Sequence[Sweep], fronts: Sequence[Front]) -> None:
    """Front members, dominated runs, both by cost, and last the runs that are left out."""
    names = differing(run for front in fronts for run in front.runs)
    columns = _columns(fronts)
    table = Table(title=None, header_style="bold", row_styles=None)
    for column in columns:
        table.add_column(column, justify="left" if column in TEXTUAL else "right")
    for front in fronts:
        for runs, style in ((front.members, ""), (front.dominated[:MOST_DOMINATED], "dim")):
            for run in runs:
                table.add_row(*map(Text, _cells(run, front, names, columns)), style=style)
    out.print(table)
    hidden = sum(len(front.dominated[MOST_DOMINATED:]) for front in fronts)
    if hidden:
        out.print(f"... and {plural(hidden, 'dominated run')} more, all in report.csv")
    for front in fronts:
        prefix = f"{front.label}: " if len(fronts) > 1 else ""
        out.print(Text(prefix + front.summary()))
    out.print(Text(fronts[0].definition(), style="dim"))
    _print_left_out(out, sweeps, fronts[0])


def left_out(
    sweeps: Sequence[Sweep], cost: str, metric: str
) -> Iterator[tuple[Sweep, RunRecord, str]]:
    """The runs that the figure cannot show, each with the reason."""
    for sweep in sweeps:
        for run in sweep.runs:
            if reason := run.exclusion_reason(cost, metric):
                yield sweep, run, reason


def markdown(fronts: Sequence[Front]) -> str:
    """The table of the fronts for TensorBoard's Text tab, and the next commands for each run."""
    names = differing(run for front in fronts for run in front.runs)
    columns = _columns(fronts)
    members = [(front, run) for front in fronts for run in front.members]
    rows = [columns, ["---"] * len(columns)]
    rows += [_cells(run, front, names, columns) for front, run in members]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    notes = [f"{front.label}: {front.summary()}" for front in fronts] + [fronts[0].definition()]
    for _, run in members:
        notes += [f"**{run.name}**", "\n".join(f"    {command}" for command, _ in run.commands())]
    return "\n\n".join(["\n".join(lines), *notes])


def csv_text(sweeps: Sequence[Sweep], fronts: Sequence[Front]) -> str:
    """report.csv: every run, finished or not, with each number exactly as the run wrote it.

    Tables of a run become columns `metrics.test_acc`, ...; `arch` is one column of JSON.
    """
    rows = [
        _csv_row(run, front)
        for sweep, front in zip(sweeps, fronts, strict=True)
        for run in sweep.runs
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # Grouped by kind: a run that failed early would otherwise scatter the columns.
    groups = ["", *NESTED, "arch"]
    columns.sort(key=lambda name: groups.index(name.split(".")[0]) if _is_nested(name) else 0)
    return csv_table(columns, ([row.get(name, "") for name in columns] for row in rows))


def _is_nested(name: str) -> bool:
    return name == "arch" or name.split(".")[0] in NESTED


def _csv_row(run: RunRecord, front: Front) -> dict[str, str]:
    row: dict[str, Any] = {
        "sweep": front.label,
        "run": run.name,
        "status": run.status,
        "place": front.dominance(run),
        "seed": "" if run.seed is None else run.seed,
        "space": run.space,
        "data": run.data,
        "message": run.message,
        "arch_hash": run.arch_hash,
    }
    for table in NESTED:
        row |= {f"{table}.{name}": value for name, value in getattr(run, table).items()}
    row["arch"] = dict(run.arch) if run.arch else ""
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in row.items()}


def _columns(fronts: Sequence[Front]) -> list[str]:
    first = fronts[0]
    known = {name for front in fronts for run in front.runs for name in run.costs}
    beside = ("params", "macs", "latency", "latency_measured")
    costs = [first.cost] + [name for name in beside if name in known - {first.cost}]
    sweep = ["sweep"] if len(fronts) > 1 else []
    return [*sweep, "run", "seed", "settings", first.metric, *costs, "place"]


def _cells(run: RunRecord, front: Front, names: Sequence[str], columns: Sequence[str]) -> list[str]:
    cells = {
        "sweep": front.label,
        "run": run.name,
        "seed": "-" if run.seed is None else str(run.seed),
        "settings": settings(run, names) or "-",
        front.metric: metric_text(front.metric, run.metrics[front.metric]),
        "place": front.dominance(run),
    }
    return [cells.get(column) or cost_text(run.costs.get(column)) for column in columns]


def _print_left_out(out: Console, sweeps: Sequence[Sweep], front: Front) -> None:
    excluded = list(left_out(sweeps, front.cost, front.metric))
    if not excluded:
        return
    out.print(f"\n{plural(len(excluded), 'run')} not shown above:")
    for sweep, run, reason in excluded:
        prefix = f"{sweep.label}/" if len(sweeps) > 1 else ""
        status = "left out" if run.status == "finished" else run.status
        given = " ".join(f"{name}={value}" for name, value in run.overrides.items())
        about = f" ({given})" if given else ""
        line = f"  {prefix}{run.name}{about} {status}: {' '.join(reason.split())}"
        out.print(Text(line, style="red" if status in ("failed", "unreadable") else "yellow"))
