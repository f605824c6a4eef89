"""`nas describe`: what there is to search in a space, in the terminal."""

from collections.abc import Mapping
from math import prod

from rich.console import Console
from rich.table import Table
from torch import nn

from nas.cost.analytic import MACs, Params
from nas.cost.base import Expected, LayerCost, NetworkCost
from nas.cost.expected import expected
from nas.cost.trace import Example, trace
from nas.decision import decisions
from nas.selection import largest_of, least_of
from nas.units import amount


def describe(
    model: nn.Module,
    example: Example,
    costs: Mapping[str, LayerCost | NetworkCost],
    console: Console | None = None,
) -> None:
    """Print the decisions with their options, the number of architectures, the range of costs."""
    console = console or Console(markup=False)
    traced = trace(model, example)
    console.print(_decisions(model))
    count = prod(len(decision.options) for _, decision in decisions(model))
    console.print(f"{count:,} architectures")
    priced: dict[str, LayerCost | NetworkCost] = {cost.name: cost for cost in (Params(), MACs())}
    priced |= {cost.name: cost for cost in costs.values()}
    console.print(_ranges([expected(model, cost, traced) for cost in priced.values()]))


def _decisions(model: nn.Module) -> Table:
    table = Table("decision", "options", title=f"space {getattr(model, 'name', '')}")
    for name, decision in decisions(model):
        table.add_row(name, ", ".join(str(option) for option in decision.options))
    return table


def _ranges(costs: list[Expected]) -> Table:
    table = Table("cost", "least", "largest", "largest / least", "unit")
    for cost in costs:
        low, high = least_of(cost), largest_of(cost)
        ratio = f"{high / low:.1f}" if low > 0 else "-"
        shown = (amount(value, cost.unit) for value in (low, high))
        table.add_row(cost.name, *shown, ratio, cost.unit)
    return table
