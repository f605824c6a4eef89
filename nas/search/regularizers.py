"""Regularizers of alphas, and their perturbation while weights learn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from nas.config.schema import BelowOne, Count, Finite, NonNegative, checked
from nas.decision import Decision
from nas.supernet.relax import concentration


class Regularizer(Protocol):
    """A term of the alphas' loss that depends on the alphas alone."""

    def __call__(self, decisions: Sequence[Decision], progress: float) -> Tensor:
        """The term, a 0-dim tensor; `progress` is the share of the alpha epochs that is done."""
        ...


@checked("search.regularizers")
@dataclass(frozen=True)
class Entropy:
    """``mu(t) sum_d H(softmax(alpha_d))``, mu from 0 at `start` to `weight` at the end.

    Makes every decision certain towards the end, which closes the gap between the supernet and
    its best network.

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


AlphaGradients = Callable[[], Sequence[Tensor]]  # of the weights' loss, one for each alpha


@checked("search.perturbation")
@dataclass(frozen=True)
class Perturbing:
    """Perturb alphas while weights learn (SmoothDARTS, Chen and Hsieh 2020, Eq. 5 and 6).

    ``delta ~ U(-epsilon, epsilon)`` (SDARTS-RS), or the worst delta that projected gradient ascent
    finds from such a start, in `steps` steps of ``2 epsilon / steps`` along the sign of the
    gradient (SDARTS-ADV). Epsilon grows linearly over the alpha epochs.

    Args:
        kind: "uniform" or "ascent".
        start, end: epsilon at the beginning and at the end.
        steps: of the ascent.

    Raises:
        UserError: another name, or a negative radius.
    """

    kind: Literal["uniform", "ascent"] = "uniform"
    start: NonNegative = 0.03
    end: NonNegative = 0.3
    steps: Count = 7

    @contextmanager
    def around(
        self,
        alphas: Sequence[nn.Parameter],
        gradients: AlphaGradients,
        progress: float,
        generator: torch.Generator,
    ) -> Iterator[None]:
        """Perturb `alphas` in place; afterwards they are exactly as before.

        Args:
            gradients: of the weights' loss at the present alphas.
            progress: share of the alpha epochs that is done.
        """
        before = [alpha.detach().clone() for alpha in alphas]
        radius = self.start + (self.end - self.start) * progress
        try:
            for alpha in alphas:
                draw = torch.rand(alpha.shape, generator=generator).to(alpha)
                alpha.data.add_((2 * draw - 1) * radius)
            for _ in range(self.steps if self.kind == "ascent" else 0):
                self._ascend(alphas, before, gradients, radius)
            yield
        finally:
            for alpha, value in zip(alphas, before, strict=True):
                alpha.data.copy_(value)

    def _ascend(
        self,
        alphas: Sequence[nn.Parameter],
        centres: Sequence[Tensor],
        gradients: AlphaGradients,
        radius: float,
    ) -> None:
        required = [alpha.requires_grad for alpha in alphas]
        for alpha in alphas:
            alpha.requires_grad_(True)  # in the weights' step they are frozen
        try:
            slopes = gradients()
        finally:
            for alpha, flag in zip(alphas, required, strict=True):
                alpha.requires_grad_(flag)
        for alpha, centre, slope in zip(alphas, centres, slopes, strict=True):
            moved = alpha.data + 2 * radius / self.steps * slope.sign()
            alpha.data.copy_(centre + (moved - centre).clamp(-radius, radius))
