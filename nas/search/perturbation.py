"""Alphas perturbed while weights learn, so that the loss is flat around them (SDARTS).

Chen and Hsieh 2020, Eq. 5 and 6: weights minimise the loss at ``alpha + delta``, no entry of delta
larger than epsilon.
Afterwards the alphas are what they were, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from nas.values import Count, NonNegative, checked

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
        by: "uniform" or "ascent".
        start, end: epsilon at the beginning and at the end.
        steps: of the ascent.

    Raises:
        UserError: another name, or a negative radius.
    """

    by: Literal["uniform", "ascent"] = "uniform"
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
        move: Perturbation = uniform if self.by == "uniform" else Ascent(self.steps)
        try:
            move(alphas, slopes, radius, generator)
            yield
        finally:
            for alpha, value in zip(alphas, before, strict=True):
                alpha.data.copy_(value)
