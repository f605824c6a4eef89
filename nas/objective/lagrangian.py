"""Budgets kept by multipliers that the search adapts."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.errors import UserError
from nas.objective.base import PerCost, wide
from nas.values import Positive, Share, checked


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
