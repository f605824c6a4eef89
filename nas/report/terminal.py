"""Tables for the terminal: the choices of a space, the network found, the runs of a report.

The tables of the runs are written for TensorBoard and as report.csv, too.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, display_path, is_main
from nas.compress.convert import Row
from nas.config.saved import needs_trust
from nas.cost.analytic import MACs, Params
from nas.cost.dry_run import Example
from nas.cost.expected import Expected, NetworkCost, expected
from nas.cost.layer import LayerCost
from nas.cost.trace import trace
from nas.data import Arrays
from nas.decision import decisions
from nas.distinct import Distinct
from nas.errors import UserError
from nas.quantities import amount, judged_by
from nas.report.collect import ABOUT_BEST, RunRecord, Sweep, differing, load_words, settings
from nas.report.fronts import Front, left_out
from nas.report.summary import Blocks, read_blocks, share, write_drawing
from nas.report.templates import cost_text, plural
from nas.selection import largest_of, least_of

PIPE_WIDTH = 140  # columns where the output is no terminal that has a width
UNBALANCED = 1.5  # times as many samples in the largest class as in the smallest
MOST_NAMES = 10  # of targets in a line
BAR = 12  # characters of a full bar
MOST_DOMINATED = 30  # runs that a terminal shows; report.csv and the page show all
TEXTUAL = ("sweep", "run", "settings", "place")  # columns set to the left
NESTED = ("overrides", "metrics", "costs", "seconds")  # tables of a run, a column each key


def console() -> Console:
    """The terminal at its width, a pipe or a log at a fixed one."""
    # No markup: a name out of a file may have brackets in it.
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=PIPE_WIDTH)


def data_in_words(data: Any) -> str:
    """What the data are: samples, classes, balance, sizes, parts; two lines.

    Args:
        data: a data module that is set up. Of one of the user's own, what every one must have.
    """
    shape = _shape(data.input_shape)
    parts, arrays = getattr(data, "parts", None), getattr(data, "arrays", None)
    if parts is None or arrays is None:
        return f"data {data.name}: samples of {shape}, {data.num_outputs} outputs"
    used = torch.cat(list(parts.values()))
    whole = f" of {len(arrays.targets):,}" if len(used) < len(arrays.targets) else ""
    samples = f"{len(used):,}{whole} {arrays.noun}s of {shape}"
    sizes = {part: f"{len(own):,}" for part, own in parts.items()}
    return (
        f"data {data.name}: {samples}, {_classes(arrays, used)}\n"
        f"  {sizes['train']} to train, {sizes['val']} to validate, {sizes['test']} to test"
    )


def _shape(shape: Any) -> str:
    """``1 x 28 x 28``; of several inputs, of each."""
    if isinstance(shape, dict):
        return " and ".join(f"{name} {_shape(one)}" for name, one in shape.items())
    if any(isinstance(one, tuple) for one in shape):
        return " and ".join(map(_shape, shape))
    return " x ".join(map(str, shape)) or "1"


def _classes(arrays: Arrays, used: Tensor) -> str:
    labels, classes = arrays.strata
    if classes != arrays.classes:
        named = arrays.classes
        more = f", ... ({len(named)} in all)" if len(named) > MOST_NAMES else ""
        return f"targets: {', '.join(named[:MOST_NAMES])}{more}"
    counts = torch.bincount(labels[used], minlength=len(classes)).tolist()
    few, many = min(counts), max(counts)
    each = f"{few:,}" if few == many else f"{few:,} to {many:,}"
    if many > UNBALANCED * few:
        names = (classes[counts.index(size)] for size in (few, many))
        each = f"{each} (fewest {{}}, most {{}}: unbalanced)".format(*names)
    return f"{len(classes)} classes of {each}"


def describe(
    model: nn.Module,
    example: Example,
    costs: Mapping[str, LayerCost | NetworkCost],
    console: Console | None = None,
) -> None:
    """`nas describe`: print the decisions, the number of networks, the range of each cost.

    Args:
        example: input of one sample, or its shape ``(C, *S)``.
        costs: shown beside parameters and MACs.
    """
    console = console or Console(markup=False)
    traced = trace(model, example)
    choices = Table("decision", "options", title=f"space {getattr(model, 'name', '')}")
    for name, decision in decisions(model):
        choices.add_row(name, ", ".join(str(option) for option in decision.options))
    console.print(choices)
    console.print(f"{Distinct.of(model).count:,} networks")
    priced: dict[str, LayerCost | NetworkCost] = {cost.name: cost for cost in (Params(), MACs())}
    priced |= {cost.name: cost for cost in costs.values()}
    console.print(_ranges([expected(model, cost, traced) for cost in priced.values()]))


def describe_layers(rows: Sequence[Row], console: Console | None = None) -> None:
    """What is searched of a network of the user's own, and what is not and why."""
    shown = Table("layers", "searched", "options, or why it stays")
    for row in rows:
        options = ", ".join(map(str, row.options)) if row.decision else f"({row.why})"
        size = "" if row.channels is None else f"{row.channels} "
        shown.add_row(", ".join(row.layers), f"{size}{row.kind}", options)
    (console or Console(markup=False)).print(shown)


def _ranges(costs: list[Expected]) -> Table:
    table = Table("cost", "least", "largest", "largest / least", "unit")
    for cost in costs:
        low, high = least_of(cost), largest_of(cost)
        ratio = f"{high / low:.1f}" if low > 0 else "-"
        shown = (amount(value, cost.unit) for value in (low, high))
        table.add_row(cost.name, *shown, ratio, cost.unit)
    return table


def table(blocks: Blocks, costs: Sequence[str]) -> Table:
    """The network: a row for each block, and bars for its share of each cost."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("block", "operation", "output"):
        drawn.add_column(name)
    for name in costs:
        drawn.add_column(name, min_width=BAR + 5)
    for block in blocks:
        if not block.option and not any(block.costs.get(name) for name in costs):
            continue  # of a cost that has no column
        bars = [_bar(share(blocks, block, name)) for name in costs]
        drawn.add_row(*map(Text, (block.name, block.option or "(fixed)", block.output)), *bars)
    return drawn


def _bar(value: float) -> Text:
    full = round(value * BAR)
    return Text.assemble(("█" * full, "blue"), ("·" * (BAR - full), "dim"), f" {value:4.0%}")


def draw(folders: Sequence[Path]) -> None:
    """`nas draw`: print the networks of finished runs and write their drawings again.

    Raises:
        UserError: a run that has not finished, or whose result.json lists no blocks.
    """
    for run in map(RunDir, folders):
        result = run.read_result() or {}
        try:
            drawable = result.get("status") == "finished" and read_blocks(result)
        except ValueError:
            drawable = False
        if not drawable:
            raise UserError(
                f"{run.path} is no finished run with a network to draw (result.json has no parts): "
                "give the folder of a run that has ended"
            )
        _print_network(result)
        write_drawing(run, result)
        print(
            f"written: {display_path(run.drawing)}, {display_path(run.drawing.with_suffix('.csv'))}"
        )


def announce(run: RunDir, result: Mapping[str, Any], leaves: str = "nothing") -> None:
    """Print the network found, its files and the next commands; in the first process alone.

    Args:
        leaves: what its search has left, see `nas.search.base.Search`.
    """
    if not is_main():
        return
    costs = result["costs"]
    print(f"\nnetwork found in space {result['space']!r} (data {result['data']!r}):")
    _print_network(result)
    print(scores(result))
    width = max(map(len, costs))
    for name, value in costs.items():
        print(f"{name:{width}} {_compared(name, value, result)}")
    seconds = result["seconds"]
    print(f"search {seconds['search']:.0f} s, training of the network {seconds['finetune']:.0f} s")
    difference = result.get("onnx_max_abs_diff")
    if difference is not None:
        print(f"ONNX file agrees with the network to {difference:.1e}")
    folder = display_path(run.path)
    print(f"\nfiles: {folder}")
    if run.drawing.exists():
        print(f"  drawing of the network: {folder / run.drawing.name}, .csv")
    print(
        f"  curves and heat map:   tensorboard --logdir {folder}\n"
        f"  in Python:             {load_words(run.path, repr(str(folder)))}\n"
        f"  all runs on one front: nas report {folder.parent}"
    )
    if about := about_supernet(run):
        print(f"  last.ckpt:             {about}")
    print_next(run, leaves, 8)


def print_next(run: RunDir, leaves: str, networks: int) -> None:
    """What may be typed next, as far as it works after this search.

    Args:
        leaves: see `announce`.
        networks: of the front that is offered.
    """
    folder = shlex.quote(str(display_path(run.path)))
    folder += " trust=true" if needs_trust(run) else ""
    print(f"next:\n  deploy   nas export {folder}")
    kept = leaves in ("alphas", "supernet") and run.checkpoint.is_file()
    if leaves in ("trials", "given") or kept:
        print(f"  more     nas extract {folder} front={networks} fine_tune=true")
        print(f"  smaller  nas extract {folder} budget.params=30% fine_tune=true")


def about_supernet(run: RunDir) -> str:
    """What a run's last.ckpt is for, and its size; "" without one."""
    if not run.checkpoint.is_file():
        return ""
    size = amount(run.checkpoint.stat().st_size, "B")
    return f"the supernet, {size}, for nas extract (keep=network: without)"


def scores(result: Mapping[str, Any]) -> str:
    """How good a network is, and whether it was trained at all."""
    said = judged_by(result)
    return said if result.get("trained", True) else f"{said} (not trained)"


def _print_network(result: Mapping[str, Any]) -> None:
    # A run that an earlier version has written has no blocks.
    if blocks := read_blocks(result):
        costs = [name for name in ("params", "macs") if name in blocks[0].costs]
        console().print(table(blocks, costs))
        return
    for name, option in result["arch"].items():
        print(f"  {name:24} {option}")


def _compared(name: str, value: float, result: Mapping[str, Any]) -> str:
    """A cost, its ratio to the space's largest and, if there is one, to its budget."""
    # A run that an earlier version has written lacks units and budgets.
    # The largest network is known where the cost is computed, not where it is measured.
    unit, largest = result.get("units", {}).get(name, ""), result["largest"].get(name)
    text = amount(value, unit)
    if largest:
        text += f" = {value / largest:.1%} of the largest network"
    budget = result.get("budgets", {}).get(name)
    if budget:
        text += f", {value / budget:.1%} of the budget {amount(budget, unit)}"
    return text


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
        out.print(f"... and {plural(hidden, 'dominated network')} more, all in report.csv")
    for front in fronts:
        prefix = f"{front.label}: " if len(fronts) > 1 else ""
        out.print(Text(prefix + front.summary()))
    out.print(Text(fronts[0].definition(), style="dim"))
    if any(run.best for front in fronts for run in front.runs):
        out.print(Text(ABOUT_BEST))
    _print_left_out(out, sweeps, fronts[0])


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
        "run": run.marked,
        "seed": "-" if run.seed is None else str(run.seed),
        "settings": settings(run, names) or "-",
        front.metric: run.figure(front.metric),
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
        about = f" ({run.settings})" if run.overrides else ""
        line = f"  {prefix}{run.name}{about} {status}: {' '.join(reason.split())}"
        out.print(Text(line, style="red" if status in ("failed", "unreadable") else "yellow"))
