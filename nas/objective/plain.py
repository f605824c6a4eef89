"""The price of a cost, without a budget."""

from collections.abc import Mapping

from torch import Tensor

from nas.objective.base import PerCost, wide
from nas.values import NonNegative, checked


@checked("objective")
class Plain(PerCost):
    """``L = task + strength * sum_i c_i`` (relative: ``c_i / c_i(start)``; log: ``log`` of it).

    Relative costs are 1 at the start of every search, whatever the space and the unit, so that one
    default strength is sensible everywhere. In log scale a strength is the loss that a cost smaller
    by a factor e is worth, at any size: a sweep of strengths then spreads over a whole front.
    Targets are ignored.

    Args:
        strength: lambda; 0 searches for accuracy alone.
        relative: divide each cost by its value for the untrained supernet.
        log: penalise the logarithm of the cost.

    Raises:
        UserError: a negative strength, or one that is not a number.
    """

    needs_targets = False

    def __init__(
        self, strength: NonNegative = 0.3, relative: bool = True, log: bool = False
    ) -> None:
        super().__init__()
        self.strength, self.relative, self.log = strength, relative, log

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        if not self.strength:
            return task
        task, penalties = wide(task), self.vector(costs)
        if self.relative:
            penalties = penalties / self.reference
        if self.log:
            penalties = penalties.log()
        return task + self.strength * penalties.sum().to(task)
