"""Rewards of a sampled network: accuracy and costs -> a number, larger is better."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from nas.values import checked

# A cost with a power above 0 would be sought, not spared.
Power = Annotated[float, Field(le=0)]


@checked("search.reward")
class CostAwareAccuracy:
    """``R = acc * prod_i (c_i / T_i)^w``, w = `within` where ``c_i <= T_i``, else `beyond`.

    Both -0.07: the soft constraint of MnasNet (Tan et al. 2019, Eq. 2); 0 and -1: its hard one;
    both -0.1: ProxylessNAS-R (Cai et al. 2019, ``acc * (T / c)^0.1``). T is the budget of the
    cost or, without one, its mean over all architectures.

    Args:
        within, beyond: the power of a cost inside and outside its target, at most 0.

    Raises:
        UserError: a power above 0, or not a number.
    """

    def __init__(self, within: Power = -0.07, beyond: Power = -0.07) -> None:
        self.within, self.beyond = within, beyond

    def __call__(
        self, accuracy: Tensor, costs: Mapping[str, Tensor], targets: Mapping[str, float]
    ) -> Tensor:
        """``(S,)`` accuracies and, by name, costs of S networks -> rewards ``(S,)``."""
        reward = accuracy
        for name, cost in costs.items():
            # A cost of 0 would be of infinite worth.
            ratio = (cost / targets[name]).clamp_min(1e-6)
            power = torch.where(ratio <= 1, self.within, self.beyond)
            reward = reward * (ratio**power).to(reward)
        return reward
