"""What a search minimises: the task loss joined with the expected costs."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.config.schema import NonNegative, Positive, Share, checked
from nas.errors import UserError
from nas.objective.base import Objective, PerCost, wide
from nas.ranks import averaged

__all__ = [
    "AddLinear",
    "AugmentedLagrangian",
    "Constrained",
    "FBNet",
    "Hinge",
    "MulLog",
    "Objective",
    "PerCost",
    "Plain",
]


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


@checked("objective")
class Constrained(PerCost):
    """``L = task + sum_i s_i(t) * max(c_i / T_i - 1, 0)`` (Burrello et al. 2023, arXiv 2310.07217).

    At the end of warm-up the final strengths make each excess as bad as the task loss (Eq. 13), and
    they are ramped up to half of the search (Eq. 14)::

        s_i(1) = task / max(g_i, margin),  g_i = c_i / T_i - 1  of the untrained alphas
        s_i(t) = s_i(1) * min(1, 0.01 + 0.99 * 2 t)

    The paper's ``task / (c_i - T_i)`` times ``max(c_i - T_i, 0)``, without a unit. The margin is
    ours: without it a strength is 0 for ever if the search starts inside the budget, and infinite
    if it starts at it. A cost that starts inside is priced as if it exceeded by `margin`.

    Args:
        margin: the least excess, in parts of the budget, that a strength is derived from.

    Raises:
        UserError: a margin that is not above 0; in `start`, no target.
    """

    final: Tensor  # (I,) strengths at the end of the ramp; NaN until the first call
    ramp: Tensor  # () share of them that is in force

    def __init__(self, margin: Positive = 0.1) -> None:
        super().__init__("final")
        self.margin = margin
        self.register_buffer("ramp", torch.tensor(0.01))

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        super().start(reference, targets)
        self.final = torch.full_like(self.target, torch.nan)
        self.ramp.fill_(0.01)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        if self.final.isnan().any():
            # The reference is the cost of alphas that have not moved, and has no noise.
            excess = (self.reference / self.target - 1).clamp_min(self.margin)
            (mean,) = averaged([task])  # each rank has its own part of the batch
            self.final = (mean / excess).to(self.final)
        penalties = self.ramp * self.final * self.excess(costs).relu()
        return task + penalties.sum().to(task)

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        self.ramp.fill_(min(1.0, 0.01 + 0.99 * 2 * progress))

    def state(self) -> Mapping[str, float]:
        return self.by_name("strength", self.ramp * self.final)


@checked("objective")
class AugmentedLagrangian(PerCost):
    """Accuracy within budgets: prices rise while a budget is exceeded, and fall to 0 inside.

    ::

        L = task + sum_i (max(0, mu_i + rho_i g_i)^2 - mu_i^2) / (2 rho_i),  g_i = log(c_i / B_i)

    and at every update ``mu_i <- max(0, mu_i + rho_i g_i)``, ``rho_i <- min(rho_max, 2 rho_i)``
    where g_i > 0 has not shrunk by a factor 0.9 (Nocedal and Wright 2006, Eq. 17.58 and 17.60, in
    logarithms: half and double the budget weigh alike).

    ``B_i`` goes from the mean network's cost r_i to the budget T_i, if that is smaller, along
    ``log B_i = log r_i + s (log T_i - log r_i)`` with s from 0.05 to 1 at the share `ramp` of the
    search. Put in force at once, a far budget drives every decision to its cheapest option, where a
    decided softmax stays, long before the task loss has a say.

    Args:
        rho: strength at the start, the loss that each factor e of excess is worth at first.
        rho_max: its largest value.
        ramp: share of the search until the budgets themselves are in force; 0: from the start.

    Raises:
        UserError: a strength not above 0, rho_max below rho, a ramp outside 0..1; in `start`, no
            target.
    """

    multiplier: Tensor  # (I,) mu
    quadratic: Tensor  # (I,) rho
    last: Tensor  # (I,) g at the last update
    budget: Tensor  # (I,) B, what is in force

    def __init__(self, rho: Positive = 1.0, rho_max: Positive = 4.0, ramp: Share = 0.8) -> None:
        super().__init__("multiplier", "quadratic", "last", "budget")
        if rho_max < rho:
            raise UserError(f"objective.rho_max={rho_max} must be at least rho={rho}")
        self.rho, self.rho_max, self.ramp = rho, rho_max, ramp

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        super().start(reference, targets)
        self.multiplier = torch.zeros_like(self.target)
        self.quadratic = torch.full_like(self.target, self.rho)
        self.budget = self._in_force(0.0)
        self.last = (self.reference / self.budget).log()

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        force = (self.multiplier + self.quadratic * self._violation(costs)).relu()
        penalties = (force**2 - self.multiplier**2) / (2 * self.quadratic)
        return task + penalties.sum().to(task)

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        now = self._violation(costs).detach().to(self.last)
        self.multiplier = (self.multiplier + self.quadratic * now).relu()
        stuck = (now > 0) & (now > 0.9 * self.last)
        doubled = (2 * self.quadratic).clamp_max(self.rho_max)
        self.quadratic = torch.where(stuck, doubled, self.quadratic)
        self.last, self.budget = now, self._in_force(progress)

    def state(self) -> Mapping[str, float]:
        return {
            **self.by_name("multiplier", self.multiplier),
            **self.by_name("strength", self.quadratic),
            **self.by_name("budget", self.budget),
        }

    def _violation(self, costs: Mapping[str, Tensor]) -> Tensor:
        # The logarithm of a cost of 0 has no slope; it is inside any budget.
        return (self.vector(costs) / self.budget).clamp_min(1e-6).log()

    def _in_force(self, progress: float) -> Tensor:
        # Not 0 at the start: the untrained supernet, at the reference, would feel no force.
        share = min(1.0, 0.05 + 0.95 * progress / self.ramp) if self.ramp else 1.0
        annealed = self.reference * (self.target / self.reference) ** share
        return torch.where(self.reference > self.target, annealed, self.target)
