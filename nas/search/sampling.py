"""Architectures drawn at random: the baseline every search has to beat."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from nas.arch import Arch
from nas.decision import decisions
from nas.supernet.relax import gumbel_noise


class Limited(Protocol):
    """A space with budgets, and the choice inside them."""

    space: str
    budgets: Mapping[str, float]

    def select(self) -> Arch:
        """The architecture of the largest alphas inside the budgets."""
        ...


class RandomArch:
    """One architecture, every option of every decision equally likely.

    Inside budgets: that of the largest sum of Gumbel draws, one for each option, which without
    budgets is the same uniform distribution (Gumbel maximum).

    Args:
        supernet: a model that holds decisions.
        seed: of the draw.
    """

    def __init__(self, supernet: nn.Module, seed: int = 0) -> None:
        self.supernet, self.seed = supernet, seed

    def pick(self, problem: Limited) -> Arch:
        generator = torch.Generator().manual_seed(self.seed)
        if problem.budgets:
            for _, decision in decisions(self.supernet):
                decision.alpha.data = gumbel_noise(decision.alpha.data, generator)
            return problem.select()
        return Arch(
            problem.space,
            {
                name: decision.options[
                    int(torch.randint(len(decision.options), (), generator=generator))
                ]
                for name, decision in decisions(self.supernet)
            },
        )
