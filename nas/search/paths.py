"""What the searches on sampled paths share: weights that train one path at a time."""

from collections.abc import Callable
from typing import Unpack, cast

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from nas.decision import decisions, free, sample_path, split_parameters
from nas.errors import UserError
from nas.search.differentiable import BilevelSearch, frozen
from nas.search.options import Options
from nas.supernet.choice import ChoiceBlock
from nas.supernet.proxyless import draw_path
from nas.supernet.relax import softmax
from nas.train import Batch
from nas.values import Count, checked

Optimizer = torch.optim.Optimizer | LightningOptimizer


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
    """What the searches on sampled paths share: one path trains, and alphas move now and then.

    Weights train on one path at a time, uniform while warming up, then drawn by the alphas. The
    supernet is validated as the architecture of the largest alphas, the network it is searched for.
    Options have the probabilities ``softmax(alpha / tau)`` under any `relax`, which here says no
    more than how tau falls.

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
        steps = (self.epochs - self.warmup_epochs) * self.trainer.num_training_batches
        if steps < self.alpha_every:
            raise UserError(
                f"search.alpha_every={self.alpha_every} is more than the {steps} steps after "
                "warm-up, so that alphas would never move: lower it, or give more epochs"
            )

    def draw(self) -> None:
        draw = sample_path if self.warming_up else draw_path
        draw(self.supernet, self.generator)

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        self.step_weights(batch["train"])
        if self.warming_up:
            return
        epoch = self.current_epoch - self.warmup_epochs
        # Over epochs: some hold fewer steps than lie between two of these.
        done = epoch * int(self.trainer.num_training_batches) + batch_idx + 1
        if done % self.alpha_every == 0:
            self.step_alphas(batch)

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        free(self.supernet)
        for _, decision in decisions(self.supernet):
            decision.choose(decision.best())

    @property
    def alpha_optimizer(self) -> LightningOptimizer:
        return cast(list[LightningOptimizer], self.optimizers())[1]
