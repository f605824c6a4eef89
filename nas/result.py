"""The fields of result.json: exact costs, budgets, input and output, versions."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path
from typing import Any

from nas.arch import Arch
from nas.artifacts.reading import read_json as read_value
from nas.cost.base import Expected
from nas.errors import UserError
from nas.selection import largest_of, least_of

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
