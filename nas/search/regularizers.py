"""Regularizers and perturbations of alphas, each configured by name."""

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


Slopes = Callable[[], Sequence[Tensor]]  # the gradient of the weights' loss for each alpha


class Perturbation(Protocol):
    """What is done to alphas during the weights' forward pass."""

    def __call__(
        self,
        alphas: Sequence[nn.Parameter],
        slopes: Slopes,
        radius: float,
        generator: torch.Generator,
    ) -> None:
        """Move `alphas` in place by at most `radius`."""
        ...


def uniform(
    alphas: Sequence[nn.Parameter], slopes: Slopes, radius: float, generator: torch.Generator
) -> None:
    """``delta ~ U(-radius, radius)`` (SDARTS-RS)."""
    for alpha in alphas:
        draw = torch.rand(alpha.shape, generator=generator).to(alpha)
        alpha.data.add_((2 * draw - 1) * radius)


@checked("search.perturbation")
@dataclass(frozen=True)
class Ascent:
    """The worst delta that `steps` steps of projected gradient ascent find (SDARTS-ADV).

    Each goes ``2 radius / steps`` along the sign of the gradient, from a uniform start.
    """

    steps: Count = 7

    def __call__(
        self,
        alphas: Sequence[nn.Parameter],
        slopes: Slopes,
        radius: float,
        generator: torch.Generator,
    ) -> None:
        centres = [alpha.detach().clone() for alpha in alphas]
        uniform(alphas, slopes, radius, generator)
        for _ in range(self.steps):
            with _thawed(alphas):
                gradients = slopes()
            for alpha, centre, gradient in zip(alphas, centres, gradients, strict=True):
                moved = alpha.data + 2 * radius / self.steps * gradient.sign()
                alpha.data.copy_(centre + (moved - centre).clamp(-radius, radius))


@contextmanager
def _thawed(alphas: Sequence[nn.Parameter]) -> Iterator[None]:
    # In the weights' step they are frozen.
    before = [alpha.requires_grad for alpha in alphas]
    for alpha in alphas:
        alpha.requires_grad_(True)
    try:
        yield
    finally:
        for alpha, required in zip(alphas, before, strict=True):
            alpha.requires_grad_(required)


@checked("search.perturbation")
@dataclass(frozen=True)
class Perturbing:
    """A perturbation whose radius grows linearly over the alpha epochs.

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
        slopes: Slopes,
        progress: float,
        generator: torch.Generator,
    ) -> Iterator[None]:
        """`alphas` perturbed inside, and exactly as before afterwards."""
        before = [alpha.detach().clone() for alpha in alphas]
        radius = self.start + (self.end - self.start) * progress
        move: Perturbation = uniform if self.kind == "uniform" else Ascent(self.steps)
        try:
            move(alphas, slopes, radius, generator)
            yield
        finally:
            for alpha, value in zip(alphas, before, strict=True):
                alpha.data.copy_(value)
