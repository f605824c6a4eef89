"""Penalties with a fixed strength: the hinge, and the forms of ProxylessNAS and FBNet."""

from collections.abc import Mapping

from torch import Tensor

from nas.objective.base import PerCost, wide
from nas.values import NonNegative, Positive, checked


@checked("objective")
class Hinge(PerCost):
    """``L = task + strength * sum_i max(c_i / T_i - 1, 0)``: nothing is gained below a budget.

    Args:
        strength: lambda, the loss that twice the budget is worth.

    Raises:
        UserError: a negative strength, or one that is not a number; in `start`, no target.
    """

    def __init__(self, strength: NonNegative = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        return task + self.strength * self.excess(costs).relu().sum().to(task)


@checked("objective")
class AddLinear(PerCost):
    """``L = task + strength * sum_i (c_i - T_i) / T_i`` (ProxylessNAS, Cai et al. 2019).

    `add#linear` of the reference code. The target only scales the price: below it, a smaller cost
    goes on being rewarded.

    Args:
        strength: lambda.

    Raises:
        UserError: a negative strength, or one that is not a number; in `start`, no target.
    """

    def __init__(self, strength: NonNegative = 0.1) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        return task + self.strength * self.excess(costs).sum().to(task)


class Logarithmic(PerCost):
    """Base of the forms that take the logarithm of a cost, which depends on its unit.

    Here a cost counts as ``n_i = scale * c_i / r_i``, r the mean over all architectures, and its
    logarithm as ``log(1 + n_i)``: a number without a unit, and never negative. Where n is large
    this is the paper's logarithm in the unit in which the mean network measures `scale`.
    """

    def __init__(self, a: Positive, b: NonNegative, scale: Positive) -> None:
        super().__init__()
        self.a, self.b, self.scale = a, b, scale

    def logarithm(self, values: Tensor) -> Tensor:
        """``log(1 + scale * c_i / r_i)`` ``(I,)``."""
        # The power b < 1 of a cost of exactly 0 has an infinite slope.
        return (self.scale * values / self.reference).log1p().clamp_min(1e-6)


@checked("objective")
class MulLog(Logarithmic):
    """``L = a * task * prod_i (log c_i / log T_i)^b`` (ProxylessNAS, Cai et al. 2019, `mul#log`).

    The logarithms are those of `Logarithmic`: the paper's, of milliseconds, change with the unit
    and have no meaning at or below 1. The default scale makes the mean network one of 100 ms.

    Args:
        a, b: as in the reference code.
        scale: the number that the mean network's cost counts as; a smaller one prices cost higher.

    Raises:
        UserError: an argument that is negative or not a number; in `start`, no target.
    """

    def __init__(self, a: Positive = 0.2, b: NonNegative = 0.3, scale: Positive = 100.0) -> None:
        super().__init__(a, b, scale)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        ratio = self.logarithm(self.vector(costs)) / self.logarithm(self.target)
        return self.a * task * (ratio**self.b).prod().to(task)


@checked("objective")
class FBNet(Logarithmic):
    """``L = a * task * prod_i (log c_i)^b`` (FBNet, Wu et al. 2019, Eq. 2); targets are ignored.

    The logarithms are those of `Logarithmic`: the paper's, of microseconds, change with the unit.
    The default scale makes the mean network one of 20 ms.

    Args:
        a, b: as in the paper; the logarithm is raised to b, not its argument.
        scale: the number that the mean network's cost counts as; a smaller one prices cost higher.

    Raises:
        UserError: an argument that is negative or not a number.
    """

    needs_targets = False

    def __init__(self, a: Positive = 0.2, b: NonNegative = 0.6, scale: Positive = 2e4) -> None:
        super().__init__(a, b, scale)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        return self.a * task * (self.logarithm(self.vector(costs)) ** self.b).prod().to(task)
