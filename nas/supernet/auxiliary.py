"""A skip beside the candidates, faded out while searching (DARTS-, Chu et al. 2021, Eq. 6).

``y = sum_k theta_k op_k(x) + beta skip(x)``, beta from 1 to 0. It takes over what a skip does for
the flow of gradients, so that the skip among the candidates is judged by what it computes. It is in
no network found, nor in any cost.
"""

from collections.abc import Iterable
from math import cos, pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nas.copying import copied
from nas.errors import UserError
from nas.ops.cell_ops import FactorizedReduce
from nas.supernet.temperature import Schedule

if TYPE_CHECKING:
    from nas.supernet.choice import ChoiceBlock


def linear_fade() -> Schedule:
    """``1 - progress``."""
    return _linear


def cosine_fade() -> Schedule:
    """``(1 + cos(pi progress)) / 2``."""
    return _cosine


def _linear(progress: float) -> float:
    return max(0.0, 1.0 - progress)


def _cosine(progress: float) -> float:
    return (1 + cos(pi * min(1.0, progress))) / 2


class AuxiliarySkip(nn.Module):
    """``beta * skip(x)``; beta follows the schedule at every `advance`."""

    beta: Tensor

    def __init__(self, skip: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.skip, self.schedule = skip, schedule
        self.register_buffer("beta", torch.tensor(float(schedule(0.0))))

    def advance(self, progress: float) -> None:
        """Set beta to what it is when `progress` in [0, 1] of the search is done."""
        self.beta.fill_(self.schedule(progress))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.beta * self.skip(x)
        return y


def add_skips(blocks: "Iterable[ChoiceBlock]", schedule: Schedule) -> None:
    """Give a skip to every block that offers one, of the same kind and with weights of its own.

    Raises:
        UserError: none of them does.
    """
    found = False
    for block in blocks:
        for op in block.candidates.values():
            if isinstance(op, nn.Identity | FactorizedReduce):
                block.auxiliary = AuxiliarySkip(_another(op), schedule)
                found = True
    if not found:
        raise UserError(
            "relax.skip stands beside candidates that are skips, and this space has none: choose "
            "a space with identity or skip_connect, or a relaxation without"
        )


def _another(op: nn.Module) -> nn.Module:
    made = copied(op)
    for module in made.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.reset_parameters()
    return made
