"""ProxylessNAS by gradient: alphas moved by two sampled paths, or by all in the memory of one."""

from collections.abc import Callable
from typing import Unpack, cast

import torch
from torch import Tensor, nn

from nas.decision import decisions, split_parameters
from nas.ops.blocks import Zero
from nas.search.differentiable import frozen
from nas.search.options import Options
from nas.search.paths import Optimizer, PathSearch
from nas.supernet.proxyless import Draws, ExactPath, TwoPaths, draw_mixing, mixing
from nas.train import Batch, check_finite
from nas.values import Count

Backward = Callable[[Tensor], object]


def two_path_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
    backward: Backward = torch.autograd.backward,
) -> Tensor:
    """Move the alphas of two sampled candidates of every block (Cai et al. 2019, Sec. 3.2).

    Only the two of each block move, and their common probability stays: that of every candidate
    that was not sampled is what it was, whatever the optimizer. A block whose active candidate is
    `Zero` keeps its alphas, as in the reference code: behind zeros a BatchNorm multiplies the
    gradient by ``1 / sqrt(eps)``, and what it says is noise.

    Args:
        loss: of `model` on a validation batch, penalties included.
        optimizer: of the alphas.

    Returns:
        The loss.
    """
    draws = draw_mixing(model, TwoPaths.draw, generator)
    before = [decision.alpha.detach().clone() for _, decision in decisions(model)]
    value = _judge(model, draws, loss, optimizer, backward)
    for _, decision in decisions(model):
        draw = cast(TwoPaths, draws[decision.alpha])
        if isinstance(list(decision.gated().values())[draw.active], Zero):
            decision.alpha.grad = None
    optimizer.step()
    with torch.no_grad():
        for (_, decision), old in zip(decisions(model), before, strict=True):
            draw = cast(TwoPaths, draws[decision.alpha])
            draw.keep_mass(decision.alpha, old, float(decision.tau))
    return value


def exact_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
    backward: Backward = torch.autograd.backward,
) -> Tensor:
    """Move all alphas by gates over all candidates, one of which ran in the forward pass.

    Arguments and result as for `two_path_step`; the backward pass runs every candidate once more.
    """
    value = _judge(model, draw_mixing(model, ExactPath.draw, generator), loss, optimizer, backward)
    optimizer.step()
    return value


def _judge(
    model: nn.Module,
    draws: Draws,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    backward: Backward,
) -> Tensor:
    """The gradient of the alphas under `draws`; weights are not trained and need no memory."""
    with frozen(split_parameters(model).weights), mixing(model, draws):
        optimizer.zero_grad()
        value = loss()
        backward(value)
    return value.detach()


class ProxylessSearch(PathSearch):
    """ProxylessNAS (Cai et al. 2019): alphas by binary gates of two sampled paths.

    The reference code does not move alphas in the first epoch after warm-up: give one more epoch
    of warm-up for that. Its penalty is any `objective`, on the expected cost.

    Args:
        exact: judge all candidates of every block in place of two, in the memory of one path and
            the time of all (`full_v2` of the reference code).
        alpha_every, options: as for `PathSearch`.

    Raises:
        UserError: as `PathSearch`, or a decision that is no choice between modules.
    """

    def __init__(
        self, exact: bool = False, alpha_every: Count = 5, **options: Unpack[Options]
    ) -> None:
        super().__init__(alpha_every, **options)
        self.exact = exact
        # What cannot be sampled is an error now.
        draw_mixing(self.supernet, TwoPaths.draw, self.generator)

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        step = exact_step if self.exact else two_path_step

        def loss() -> Tensor:
            task = self.task_loss(batch["val"], "alpha")
            return check_finite(self.alpha_loss(task), self.current_epoch)

        step(self.supernet, loss, self.alpha_optimizer, self.generator, self.manual_backward)
