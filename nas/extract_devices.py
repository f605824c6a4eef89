"""Several devices in one call: a profile and a budget for each, and one table of all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, display_path, write_atomic
from nas.errors import UserError
from nas.plan import Problem
from nas.quantities import amount
from nas.report.terminal import console

COST = "latency"
TABLE = "devices.csv"
_FIGURES = ("test_acc", "val_acc")


@dataclass(frozen=True)
class Device:
    """A device that networks are taken out for.

    Args:
        name: as its profile calls it.
        folder: where its networks go.
        problem: the search's supernet, priced on it.
        config: of its runs, YAML.
    """

    name: str
    folder: Path
    problem: Problem
    config: str


def listed(text: str) -> list[str]:
    """The words of ``[a,b]`` or ``a,b``."""
    return [word for part in text.strip().strip("[]").split(",") if (word := part.strip())]


def words_of_each(words: Mapping[str, str]) -> list[dict[str, str]]:
    """The words for each device: of ``profile=[a,b]``, and of budgets with a value for each.

    Returns:
        The words as they are, where there is one profile or none.

    Raises:
        UserError: an empty list, or a budget with another number of values.
    """
    given = words.get("profile")
    profiles = [] if given is None else listed(given)
    if given is not None and not profiles:
        raise UserError(f"profile={given} names no file; e.g. profile=[A.json,B.json]")
    each: list[dict[str, str]] = [dict(words) for _ in range(max(1, len(profiles)))]
    for key in ("profile", *(key for key in words if key.startswith("budget."))):
        if key not in words or not (key == "profile" or words[key].startswith("[")):
            continue
        values = listed(words[key])
        if len(values) != len(each):
            raise UserError(
                f"{key}={words[key]} must be one amount, or one for each of the {len(each)} "
                f"devices of profile=[A.json,B.json]"
            )
        for own, value in zip(each, values, strict=True):
            own[key] = value
    return each


def folders(names: Sequence[str], profiles: Sequence[str]) -> list[str]:
    """A folder's name for each device; of equal devices the profile's name is added.

    Raises:
        UserError: two of one name all the same.
    """
    plain = [re.sub(r"[^\w.+-]+", "_", name).strip("_.") or "device" for name in names]
    found = [
        f"{name}_{Path(profile).stem}" if plain.count(name) > 1 else name
        for name, profile in zip(plain, profiles, strict=True)
    ]
    if len(set(found)) < len(found):
        raise UserError(
            f"profile=[{','.join(profiles)}] has two profiles of one name for one device: name "
            "each file once, and files of one device differently"
        )
    return found


def summarise(folder: Path, taken: Sequence[tuple[Device, RunDir]]) -> None:
    """One table of all networks, printed, and in ``devices.csv``."""
    rows = [_row(device, run) for device, run in taken]
    text = csv_table(list(rows[0]), ([row.get(name, "") for name in rows[0]] for row in rows))
    write_atomic(folder / TABLE, text)
    units = {name: cost.unit for name, cost in taken[0][0].problem.costs.items()}
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in rows[0]:
        title = {"test_acc": "test accuracy", "val_acc": "validation"}.get(name, name)
        left = name in ("device", "network", "folder")
        drawn.add_column(title, justify="left" if left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*(_shown(name, value, units) for name, value in row.items()))
    print()
    console().print(drawn)
    print(f"the same in {display_path(folder / TABLE)}")


def _row(device: Device, run: RunDir) -> dict[str, Any]:
    result = run.read_result() or {}
    choices, problem = result["arch"], device.problem
    costs = {name: cost.of(choices) for name, cost in problem.costs.items()}
    return {
        "device": device.name,
        "network": result["arch_hash"],
        **{name: result["metrics"].get(name) for name in _FIGURES},
        COST: costs.pop(COST),
        "budget": problem.budgets.get(COST),
        "measured": result["costs"].get(f"{COST}_measured"),
        **costs,
        "folder": str(display_path(run.path)),
    }


def _shown(name: str, value: Any, units: Mapping[str, str]) -> str:
    if value is None:
        return "-"
    if name in _FIGURES:
        return f"{value:.2%}"
    if name in ("budget", "measured"):
        return amount(value, units[COST])
    return amount(value, units[name]) if name in units else str(value)
