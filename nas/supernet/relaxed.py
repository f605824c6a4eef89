"""`RelaxedDecision`: a decision whose theta is a relaxation of its logits."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.supernet.dirichlet import dirichlet_noise, log_dirichlet
from nas.supernet.relax import Relaxation, gumbel_noise, softmax


class Mixing(Protocol):
    """What a block does instead of its weighted sum, for the time of one step."""

    def theta(self, block: Any) -> Tensor:
        """The probabilities ``(K,)`` that costs are expected under."""
        ...

    def __call__(self, block: Any, args: Any, kwargs: Any) -> Any:
        """The block's output for those arguments."""
        ...


class RelaxedDecision(Decision):
    """``theta = relax((alpha + noise) / tau)``.

    Args:
        options: the names of the alternatives, in the order of `alpha`.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.
        lead: a decision to follow, see `Decision`.
    """

    def __init__(
        self,
        options: Sequence[Option],
        relax: Relaxation = softmax,
        gumbel: bool = False,
        lead: Decision | None = None,
    ) -> None:
        super().__init__(options, lead)
        self.relax, self.gumbel = relax, gumbel
        self.dirichlet = False  # draw from Dir(elu(alpha) + 1); noise is then log of the draw
        self.mixing: Mixing | None = None  # see `nas.supernet.proxyless`

    @property
    def logits(self) -> Tensor:
        if not self.dirichlet:
            return super().logits
        drawn = log_dirichlet(self.alpha.float(), self.noise) / self.tau
        return drawn.masked_fill(~self.open, -torch.inf)

    @property
    def theta(self) -> Tensor:
        return self.relax(self.logits) if self.mixing is None else self.mixing.theta(self)

    def resample(self, generator: torch.Generator | None = None) -> None:
        if self.dirichlet:
            self.noise.copy_(dirichlet_noise(self.alpha.detach(), generator))
        elif self.gumbel:
            self.noise.copy_(gumbel_noise(self.noise, generator))


class Shared(RelaxedDecision):
    """A decision that stands apart from the blocks that carry it out, all of which follow it.

    So that its name does not depend on how many there are, or where.
    """

    def gated(self) -> Mapping[Option, nn.Module]:
        return dict.fromkeys(self.options, nn.Identity())
