"""Terms that alphas descend besides task and costs; any of them together, by name.

``search.regularizers`` maps a name of the user's own to one of these. Each takes the decisions and
the progress in [0, 1] of the epochs in which alphas move.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from nas.decision import Decision
from nas.supernet.relax import concentration
from nas.values import BelowOne, Finite, checked


class Regularizer(Protocol):
    """A scalar of the alphas."""

    def __call__(self, decisions: Sequence[Decision], progress: float) -> Tensor: ...


@checked("search.regularizers")
@dataclass(frozen=True)
class Entropy:
    """``mu(t) sum_d H(softmax(alpha_d))``, mu from 0 at `start` to `weight` at the end.

    Closes the gap between the supernet and its best network: towards the end every decision is
    made to be certain.

    Args:
        weight: mu at the end; a negative one keeps decisions open.
        start: share of the alpha epochs before it sets in.

    Raises:
        UserError: `start` outside [0, 1), or a weight that is not finite.
    """

    weight: Finite = 0.1
    start: BelowOne = 2 / 3

    def __call__(self, decisions: Sequence[Decision], progress: float) -> Tensor:
        ramp = max(0.0, progress - self.start) / (1 - self.start)
        entropies = [torch.special.entr(d.alpha.float().softmax(-1)).sum() for d in decisions]
        return self.weight * min(1.0, ramp) * torch.stack(entropies).sum()


@checked("search.regularizers")
@dataclass(frozen=True)
class ZeroOne:
    """``-weight mean (sigmoid(alpha) - 1/2)^2`` (FairDARTS, Chu et al. 2020, Eq. 6).

    For ``relax=sigmoid``: drives each weight to 0 or to 1.
    """

    weight: Finite = 10.0

    def __call__(self, decisions: Sequence[Decision], progress: float) -> Tensor:
        alphas = torch.cat([d.alpha.float() for d in decisions])
        return -self.weight * (alphas.sigmoid() - 0.5).square().mean()


@checked("search.regularizers")
@dataclass(frozen=True)
class DirichletKL:
    """``weight mean_d KL(Dir(elu(alpha_d) + 1) || Dir(1))`` (DrNAS, Chen et al. 2021, Eq. 4).

    For ``relax=dirichlet``: holds the distribution near the one without preference.
    """

    weight: Finite = 1e-3

    def __call__(self, decisions: Sequence[Decision], progress: float) -> Tensor:
        found = [concentration(d.alpha.float()) for d in decisions]
        terms = [kl_divergence(Dirichlet(c), Dirichlet(torch.ones_like(c))) for c in found]
        return self.weight * torch.stack(terms).mean()
