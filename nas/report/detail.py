"""What report.html tells of one run that is picked: its figures, commands and drawing."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.drawing import costs_of, svg
from nas.report.labels import cost_label, cost_text, metric_text
from nas.report.runs import Run, text_of
from nas.run import RunDir

DRAWINGS = 1_000_000  # characters of drawings on one page; the first runs have theirs


def details(runs: Sequence[Run], rows: Mapping[int, str]) -> dict[str, Any]:
    """Row id -> what to show, and drawings by the hash of their architecture.

    Args:
        rows: ``id(run)`` -> id of its row in the page's table.
    """
    drawings: dict[str, str] = {}
    room = DRAWINGS
    for run in runs:
        if run.parts and run.arch_hash not in drawings and room > 0:
            drawn = svg(run.parts, costs_of(run.parts), run.name)
            room -= len(drawn)
            drawings[run.arch_hash] = drawn
    shown = {rows[id(run)]: detail(run, run.arch_hash in drawings) for run in runs}
    return {"runs": shown, "drawings": drawings}


def place_of(run: Run) -> str:
    """The run's folder as seen from the folder that the report is made in."""
    path = run.path.resolve()
    return text_of(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def load_command(run: Run) -> str:
    """The Python expression that loads the network."""
    return f"nas.load({json.dumps(place_of(run), ensure_ascii=False)})"


def commands(run: Run) -> list[tuple[str, str]]:
    """(command, what it does) for one network."""
    place = shlex.quote(place_of(run))
    found = [
        (f"network = {load_command(run)}", "in Python: the trained network"),
        (f"nas export {place}", "files that deploy"),
        (f"nas finetune arch={place}/arch.json", "train it anew, longer or on other data"),
    ]
    if RunDir(run.path).checkpoint.is_file():
        found.append((f"nas extract {place} --front 8 fine_tune=true", "others of the same search"))
    return found


def detail(run: Run, drawn: bool) -> dict[str, Any]:
    """What the page shows of a run that is picked; its choices, where it is not `drawn`."""
    facts = [("folder", place_of(run))]
    facts += [(name, metric_text(name, value)) for name, value in run.metrics.items()]
    for name, value in run.costs.items():
        budget = run.budgets.get(name)
        beside = f" of a budget of {cost_text(budget)}" if budget is not None else ""
        facts.append((cost_label(name), cost_text(value) + beside))
    facts += [(name, str(value)) for name, value in run.overrides.items()]
    lines = commands(run)
    width = max(len(command) for command, _ in lines)
    return {
        "title": run.name,
        "facts": facts,
        "commands": "\n".join(f"{command:{width}}  # {what}" for command, what in lines),
        "arch": run.arch_hash,
        "choices": [] if drawn else [[k, str(v)] for k, v in run.arch.items()],
    }
