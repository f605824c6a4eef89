"""Architectures drawn at random: the baseline every search has to beat."""

import torch
from torch import nn

from nas.arch import Arch
from nas.decision import decisions


class RandomArch:
    """One architecture, every option of every decision equally likely.

    Args:
        supernet: a model that holds decisions.
        seed: of the draw.
    """

    def __init__(self, supernet: nn.Module, seed: int = 0) -> None:
        self.supernet, self.seed = supernet, seed

    def pick(self, space: str) -> Arch:
        generator = torch.Generator().manual_seed(self.seed)
        return Arch(
            space,
            {
                name: decision.options[
                    int(torch.randint(len(decision.options), (), generator=generator))
                ]
                for name, decision in decisions(self.supernet)
            },
        )
