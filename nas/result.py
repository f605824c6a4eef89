"""What a run leaves behind to be read: the fields of result.json, and what the user is told."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import Any

from nas.arch import Arch
from nas.cost.base import Expected
from nas.drawing import console, costs_of, csv_text, svg, table
from nas.errors import UserError
from nas.reading import read_json as read_value
from nas.run import RunDir, is_main, shown, write_atomic
from nas.selection import largest_of, least_of
from nas.units import amount

SCHEMA = 1


def cost_fields(
    costs: Mapping[str, Expected], budgets: Mapping[str, float], arch: Arch
) -> dict[str, Any]:
    """Exact costs of the network, the least and the largest of its space, and the budgets."""
    return {
        "costs": {name: _exact(cost.of(arch.choices)) for name, cost in costs.items()},
        "least": {name: _exact(least_of(cost)) for name, cost in costs.items()},
        "budgets": {name: _exact(bound) for name, bound in budgets.items()},
        "units": {name: cost.unit for name, cost in costs.items()},
        "largest": {name: _exact(largest_of(cost)) for name, cost in costs.items()},
    }


def _exact(value: float) -> float:
    """Counts as whole numbers; others, such as microseconds in seconds, as they are."""
    return round(value) if isclose(value, round(value), rel_tol=1e-9) else value


def input_fields(data: Any) -> dict[str, Any]:
    """What a user of the network must know to prepare its input and read its output."""
    return {
        "shape": list(data.input_shape),
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        **_value_range(data),
    }


def _value_range(data: Any) -> dict[str, Any]:
    found = getattr(data, "value_range", None)  # a data module of the user's own may have none
    return {} if found is None else {"value_range": list(found)}


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    found = {}
    for package in ("dnas", "torch", "torchvision", "pytorch-lightning", "hydra-core"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier stage wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = read_value(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); remove the run and start again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; remove the run and start again")
    return content


def write_drawing(run: RunDir, result: Mapping[str, Any]) -> None:
    """The network block by block, as a picture and as a table."""
    parts = result["parts"]
    title = f"{result['space']} for {result['data']}: {_figures(result)}"
    write_atomic(run.drawing, svg(parts, costs_of(parts), title, alone=True) + "\n")
    write_atomic(run.drawing.with_suffix(".csv"), csv_text(parts))


def draw(folders: Sequence[Path]) -> None:
    """`nas draw`: print the networks of finished runs and write their drawings again.

    Raises:
        UserError: a run that has not finished, or that an earlier version wrote without its parts.
    """
    for run in map(RunDir, folders):
        result = run.read_result() or {}
        if result.get("status") != "finished" or not result.get("parts"):
            raise UserError(
                f"{run.path} is no finished run with a network to draw (result.json has no parts): "
                "give the folder of a run that has ended"
            )
        _draw(result)
        write_drawing(run, result)
        print(f"written: {shown(run.drawing)}, {shown(run.drawing.with_suffix('.csv'))}")


def _figures(result: Mapping[str, Any]) -> str:
    units = result.get("units", {})
    costs = [f"{n} {amount(v, units.get(n, ''))}" for n, v in result["costs"].items()]
    return ", ".join([f"test accuracy {result['metrics']['test_acc']:.2%}", *costs])


def announce(run: RunDir, result: Mapping[str, Any]) -> None:
    """Tell what was found, where its files are, and what to do next; the first process alone."""
    if not is_main():
        return
    metrics, costs = result["metrics"], result["costs"]
    print(f"\nnetwork found in space {result['space']!r} (data {result['data']!r}):")
    _draw(result)
    print(f"test accuracy {metrics['test_acc']:.2%}, validation {metrics['val_acc']:.2%}")
    width = max(map(len, costs))
    for name, value in costs.items():
        print(f"{name:{width}} {_beside(name, value, result)}")
    seconds = result["seconds"]
    print(f"search {seconds['search']:.0f} s, training of the network {seconds['finetune']:.0f} s")
    difference = result.get("onnx_max_abs_diff")
    if difference is not None:
        print(f"ONNX file agrees with the network to {difference:.1e}")
    folder = shown(run.path)
    print(
        f"\nfiles: {folder}\n"
        f"  drawing of the network: {folder / run.drawing.name}, .csv\n"
        f"  curves and heat map:   tensorboard --logdir {folder}\n"
        f"  in Python:             nas.load({str(folder)!r})\n"
        f"  all runs on one front: nas report {folder.parent}"
    )


def _draw(result: Mapping[str, Any]) -> None:
    # A run that an earlier version has written has no parts.
    if parts := result.get("parts"):
        console().print(
            table(parts, [name for name in ("params", "macs") if name in parts[0]["costs"]])
        )
        return
    for name, option in result["arch"].items():
        print(f"  {name:24} {option}")


def _beside(name: str, value: float, result: Mapping[str, Any]) -> str:
    """A cost beside the largest of the space and, where there is one, beside its budget."""
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
