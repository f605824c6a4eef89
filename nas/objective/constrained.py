"""Several constraints whose strengths follow from the task loss."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nas.objective.base import PerCost, wide
from nas.ranks import averaged
from nas.values import Positive, checked


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
