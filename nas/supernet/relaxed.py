"""`RelaxedDecision`: a decision whose theta is a relaxation of its logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nas.arch import Option
from nas.decision import Decision
from nas.supernet.relax import Relaxation, gumbel_noise, softmax


class RelaxedDecision(Decision):
    """``theta = relax((alpha + noise) / tau)``.

    Args:
        options: the names of the alternatives, in the order of `alpha`.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.
    """

    def __init__(
        self, options: Sequence[Option], relax: Relaxation = softmax, gumbel: bool = False
    ) -> None:
        super().__init__(options)
        self.relax, self.gumbel = relax, gumbel

    @property
    def theta(self) -> Tensor:
        return self.relax(self.logits)

    def resample(self, generator: torch.Generator | None = None) -> None:
        if self.gumbel:
            self.noise.copy_(gumbel_noise(self.noise, generator))
