"""The report as text: a table for the terminal and one for TensorBoard."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas.report.detail import commands
from nas.report.front import Front, Sweep
from nas.report.labels import cost_text, metric_text, plural
from nas.report.runs import Run, differing, settings

MOST_DOMINATED = 30  # a terminal shows so many; report.csv and the page show all
TEXTUAL = ("sweep", "run", "settings", "place")  # columns set to the left


def print_table(out: Console, sweeps: Sequence[Sweep], fronts: Sequence[Front]) -> None:
    """Front members first, then the dominated runs, both by cost; last what has no place here."""
    names = differing(run for front in fronts for run in front.runs)
    head = _header(fronts)
    table = Table(title=None, header_style="bold", row_styles=None)
    for column in head:
        table.add_column(column, justify="left" if column in TEXTUAL else "right")
    for front in fronts:
        shown = front.members + front.dominated[:MOST_DOMINATED]
        for run in shown:
            style = "" if front.place(run) == "front" else "dim"
            table.add_row(*map(Text, _cells(run, front, names, head)), style=style)
    out.print(table)
    hidden = sum(len(front.dominated[MOST_DOMINATED:]) for front in fronts)
    if hidden:
        out.print(f"... and {plural(hidden, 'dominated run')} more, all in report.csv")
    for front in fronts:
        prefix = f"{front.label}: " if len(fronts) > 1 else ""
        out.print(Text(prefix + front.summary()))
    out.print(Text(fronts[0].definition(), style="dim"))
    _print_left_out(out, sweeps, fronts[0])


def left_out(sweeps: Sequence[Sweep], cost: str, metric: str) -> Iterator[tuple[Sweep, Run, str]]:
    """The runs without a place in the figure, each with the reason."""
    for sweep in sweeps:
        for run in sweep.runs:
            reason = run.obstacle(cost, metric)
            if reason:
                yield sweep, run, reason


def markdown(fronts: Sequence[Front]) -> str:
    """The table of the fronts for TensorBoard's Text tab."""
    names = differing(run for front in fronts for run in front.runs)
    head = _header(fronts)
    rows = [head, ["---"] * len(head)]
    rows += [_cells(run, front, names, head) for front in fronts for run in front.members]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    notes = [f"{front.label}: {front.summary()}" for front in fronts] + [fronts[0].definition()]
    found = "\n\n".join(_how(run) for front in fronts for run in front.members)
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n\n" + found


def _how(run: Run) -> str:
    """How to take one network of the front along, as Markdown."""
    lines = "\n".join(f"    {command}" for command, _ in commands(run))
    return f"**{run.name}**\n\n{lines}"


def _header(fronts: Sequence[Front]) -> list[str]:
    first = fronts[0]
    known = {name for front in fronts for run in front.runs for name in run.costs}
    costs = [first.cost] + [name for name in ("params", "macs") if name in known - {first.cost}]
    sweep = ["sweep"] if len(fronts) > 1 else []
    return [*sweep, "run", "seed", "settings", first.metric, *costs, "place"]


def _cells(run: Run, front: Front, names: Sequence[str], head: Sequence[str]) -> list[str]:
    cells = {
        "sweep": front.label,
        "run": run.name,
        "seed": "-" if run.seed is None else str(run.seed),
        "settings": settings(run, names) or "-",
        front.metric: metric_text(front.metric, run.metrics[front.metric]),
        "place": front.place(run),
    }
    return [cells.get(column) or cost_text(run.costs.get(column)) for column in head]


def _print_left_out(out: Console, sweeps: Sequence[Sweep], front: Front) -> None:
    rows = list(left_out(sweeps, front.cost, front.metric))
    if not rows:
        return
    out.print(f"\n{plural(len(rows), 'run')} not shown above:")
    for sweep, run, reason in rows:
        prefix = f"{sweep.label}/" if len(sweeps) > 1 else ""
        status = "left out" if run.status == "finished" else run.status
        given = " ".join(f"{name}={value}" for name, value in run.overrides.items())
        about = f" ({given})" if given else ""
        line = f"  {prefix}{run.name}{about} {status}: {' '.join(reason.split())}"
        out.print(Text(line, style="red" if status in ("failed", "unreadable") else "yellow"))
