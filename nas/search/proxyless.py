"""Searches that train one sampled path at a time; among them ProxylessNAS by gradient."""

from collections.abc import Callable
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.config.schema import Count, checked
from nas.decision import decisions, free, split_parameters
from nas.errors import UserError
from nas.ops.blocks import Zero
from nas.search.darts import BilevelSearch
from nas.search.differentiable import Options
from nas.supernet.choice import ChoiceBlock
from nas.supernet.proxyless import Draws, ExactPath, TwoPaths, draw_mixing, draw_path, mixing
from nas.supernet.relax import softmax
from nas.tasks import check_finite
from nas.train import Batch, frozen


def one_path_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Train the weights of one path, drawn by the probabilities of its options.

    The other candidates' weights have no gradient (None, not 0), so that neither weight decay nor
    momentum moves them.

    Args:
        loss: of `model` on a training batch.
        optimizer: of the weights.

    Returns:
        The loss.
    """
    draw_path(model, generator)
    with frozen(split_parameters(model).alphas):
        optimizer.zero_grad()
        value = loss()
        torch.autograd.backward(value)
    optimizer.step()
    return value.detach()


@checked("search")
class PathSearch(BilevelSearch):
    """Base of the searches on sampled paths: one path trains, and alphas move every few steps.

    Weights train on one path at a time, uniform while warming up, then drawn by the alphas. What is
    validated is the best architecture, that of the largest alphas, as a path of the supernet.
    Options have the probabilities ``softmax(alpha / tau)`` under any `relax`, of which only the
    temperature counts here.

    Args:
        alpha_every: weight steps from one alpha step to the next.
        options: as for `DifferentiableSearch`.

    Raises:
        UserError: `alpha_every` below 1, or larger than the number of steps.
    """

    def __init__(self, alpha_every: Count = 5, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        self.alpha_every = alpha_every
        for module in self.supernet.modules():
            if isinstance(module, ChoiceBlock):
                module.relax, module.gumbel = softmax, False

    def on_train_start(self) -> None:
        super().on_train_start()
        steps = (self.epochs - self.warmup_epochs) * self.steps
        if steps < self.alpha_every:
            raise UserError(
                f"search.alpha_every={self.alpha_every} is more than the {steps} steps after "
                "warm-up, so that alphas would never move: lower it, or give more epochs"
            )

    def draw(self) -> None:
        draw_path(self.supernet, self.generator)

    def step(self, batch: dict[str, Batch], index: int) -> None:
        self.step_weights(batch["train"])
        if self.warming_up:
            return
        epoch = self.current_epoch - self.warmup_epochs
        # Over epochs: some hold fewer steps than lie between two of these.
        done = epoch * self.steps + index + 1
        if done % self.alpha_every == 0:
            self.step_alphas(batch)

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        free(self.supernet)
        for _, decision in decisions(self.supernet):
            decision.choose(decision.best())

    @property
    def alpha_optimizer(self) -> Optimizer:
        """The optimizer of the alphas."""
        return self.moving()[1]


Backward = Callable[[Tensor], object]


def two_path_step(
    model: nn.Module,
    loss: Callable[[], Tensor],
    optimizer: Optimizer,
    generator: torch.Generator | None = None,
    backward: Backward = torch.autograd.backward,
) -> Tensor:
    """Move the alphas of two sampled candidates of every block (Cai et al. 2019, Sec. 3.2).

    Only the two of each block move, and the sum of their probabilities stays, so that candidates
    that were not sampled keep their probability, whatever the optimizer. A block whose active
    candidate is `Zero` keeps its alphas, as in the reference code: behind zeros a BatchNorm
    multiplies the gradient by ``1 / sqrt(eps)``, which leaves noise.

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
        if isinstance(list(decision.active_if().values())[draw.active], Zero):
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
    """Move all alphas by the gradient of all candidates, of which the forward pass runs one.

    Arguments and result as for `two_path_step`; the backward pass runs every candidate once.
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
    """Leave the alphas' gradient under `draws`, and give the loss; weights get no gradient."""
    with frozen(split_parameters(model).weights), mixing(model, draws):
        optimizer.zero_grad()
        value = loss()
        backward(value)
    return value.detach()


class ProxylessSearch(PathSearch):
    """ProxylessNAS (Cai et al. 2019): alphas by binary gates of two sampled paths.

    The penalty is that of `objective`, on the expected cost. The reference code does not move
    alphas in the first epoch after warm-up: one more epoch of warm-up does the same.

    Args:
        exact: compare all candidates of every block instead of two, in the memory of one path and
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
        # A decision that cannot be sampled is an error now.
        draw_mixing(self.supernet, TwoPaths.draw, self.generator)

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        step = exact_step if self.exact else two_path_step

        def loss() -> Tensor:
            task = self.task_loss(batch["val"], "alpha")
            return check_finite(self.alpha_loss(task), self.current_epoch)

        step(self.supernet, loss, self.alpha_optimizer, self.generator, self.back)
