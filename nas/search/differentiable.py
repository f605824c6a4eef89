"""Differentiable search with Lightning: weights and alphas trained together by gradient descent."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nas.cost.base import Expected
from nas.decision import decisions, free, resample, sample_path, split_parameters
from nas.errors import UserError
from nas.objective import Objective
from nas.ranks import averaged
from nas.recalibrate import kept_statistics
from nas.schedule import warmup_cosine
from nas.search.perturbation import Perturbing
from nas.search.regularizers import Regularizer
from nas.supernet.choice import AuxiliarySkip
from nas.supernet.relax import Schedule, constant
from nas.train import Batch, OptimizerFactory, accuracy, check_finite, shared
from nas.values import Count, NonNegative, Seed, Share, Whole, checked

UPDATES = 20  # of the objective's strengths in a search, at least


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradient for `parameters` inside; what the user froze stays frozen afterwards."""
    thawed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


@checked("search")
class DifferentiableSearch(pl.LightningModule):
    """What bilevel and single-level search share: phases, optimizers, schedules, logging.

    The first `warmup_epochs` train weights alone, on paths sampled uniformly, so that no candidate
    is judged before it has learned. Then alphas move too, while tau follows `temperature`.

    The objective adapts its strengths once an epoch, and more often in a search of few epochs.

    Args:
        supernet: a model that holds decisions.
        costs: name -> expected cost of `supernet`; what `objective` joins to the loss.
        objective: task loss and costs -> what alphas descend.
        weight_optimizer, alpha_optimizer: parameters -> optimizer.
        epochs: all epochs, warm-up included.
        warmup_epochs: epochs of weights alone.
        temperature: progress of the alpha phase in [0, 1] -> tau.
        clip: largest norm of the weights' gradient; 0 does not clip.
        label_smoothing: in the weights' loss only, as in ProxylessNAS.
        seed: of every random draw; each epoch starts from ``seed + epoch``.
        targets: cost name -> budget, for the objectives that know budgets.
        regularizers: name -> a term that alphas descend too, see `nas.search.regularizers`.
        perturbation: of alphas while weights learn, see `nas.search.perturbation`.

    Raises:
        UserError: nothing to search, a number out of its range, epochs that leave no time for
            alphas, or budgets that the objective cannot work with.
    """

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        objective: Objective,
        weight_optimizer: OptimizerFactory,
        alpha_optimizer: OptimizerFactory,
        epochs: Count,
        warmup_epochs: Whole = 0,
        temperature: Schedule | None = None,
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
        targets: Mapping[str, float] | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        perturbation: Perturbing | None = None,
    ) -> None:
        super().__init__()
        if not any(decisions(supernet)):
            raise UserError(
                "this space has no decision to search: give some stage at least two ops, or train "
                "the network as it is with `nas finetune`"
            )
        if warmup_epochs >= epochs:
            raise UserError(
                f"search.warmup_epochs={warmup_epochs} must be below "
                f"epochs={epochs}: alphas are searched in the epochs after it. Give both, e.g. "
                f"search.epochs={epochs} search.warmup_epochs={epochs // 3}"
            )
        self.automatic_optimization = False
        self.supernet, self.costs, self.targets = supernet, dict(costs), dict(targets or {})
        self.objective = cast(nn.Module, objective)
        # Here, where a wrong budget ends the run before it has begun; a checkpoint is loaded later.
        objective.start({name: cost.mean() for name, cost in self.costs.items()}, self.targets)
        self.weight_factory, self.alpha_factory = weight_optimizer, alpha_optimizer
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.temperature = temperature or constant()
        self.clip, self.label_smoothing, self.seed = clip, label_smoothing, seed
        self.parameters_of = split_parameters(supernet)
        self.regularizers, self.perturbation = dict(regularizers or {}), perturbation
        self.done = 0.0  # of the steps in which alphas move, the share
        self.skips = tuple(m for m in supernet.modules() if isinstance(m, AuxiliarySkip))
        # Not the global generator: under data parallel training every rank must draw alike here
        # while dropout must not.
        self.generator = torch.Generator()

    def loaders(self, data: Any) -> dict[str, Any]:
        """The training loaders this search reads, name -> loader."""
        raise NotImplementedError

    @property
    def warming_up(self) -> bool:
        return self.current_epoch < self.warmup_epochs

    def configure_optimizers(self) -> Any:
        weights, alphas = self.parameters_of
        weight_optimizer = self.weight_factory([p for p in weights if p.requires_grad])
        schedule = LambdaLR(weight_optimizer, warmup_cosine(0, self.epochs, floor=0.04))
        return [weight_optimizer, self.alpha_factory(alphas)], [schedule]

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed + self.current_epoch + 1000 * self.global_rank)
        self.generator.manual_seed(self.seed + self.current_epoch)
        if not self.warming_up:
            free(self.supernet)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # By step, so that a search of a single alpha epoch anneals too.
        self.done = max(0.0, self.progress(batch_idx))
        tau = self.temperature(self.done)
        for _, decision in decisions(self.supernet):
            decision.tau.fill_(tau)
        for skip in self.skips:
            skip.advance(self.done)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.warming_up:
            return
        often = ceil(UPDATES / (self.epochs - self.warmup_epochs))  # updates in this epoch
        batches = self.trainer.num_training_batches
        if (batch_idx + 1) * often // batches > batch_idx * often // batches:
            with torch.no_grad():
                objective = cast(Objective, self.objective)
                objective.update(self.noise_free_costs(), self.progress(batch_idx + 1))

    def on_train_epoch_end(self) -> None:
        cast(Any, self.lr_schedulers()).step()
        costs = self.noise_free_costs().items()
        self.log_dict({f"cost_{name}": c.detach().float() for name, c in costs}, logger=False)

    def progress(self, batches: int) -> float:
        """Of the steps in which alphas move, the share done after `batches` of this epoch."""
        epoch = (
            self.current_epoch - self.warmup_epochs + batches / self.trainer.num_training_batches
        )
        return epoch / (self.epochs - self.warmup_epochs)

    def noise_free_costs(self) -> dict[str, Tensor]:
        """Expected costs of the alphas as they are, whatever was drawn last."""
        free(self.supernet)  # every step draws anew, so none reads what is forgotten here
        return {name: cost() for name, cost in self.costs.items()}

    def draw(self) -> None:
        """The random choices of one step: a path while warming up, else the relaxation's noise."""
        if self.warming_up:
            sample_path(self.supernet, self.generator)
        else:
            resample(self.supernet, self.generator)

    def step_weights(self, batch: Batch) -> None:
        weight_optimizer, _ = cast(list[LightningOptimizer], self.optimizers())
        with frozen(self.parameters_of.alphas):
            self._descend(weight_optimizer, lambda: self._weight_loss(batch))

    def _weight_loss(self, batch: Batch) -> Tensor:
        """The task loss, at perturbed alphas if there is a perturbation."""
        if self.perturbation is None or self.warming_up:
            return self.task_loss(batch, "train")
        alphas = self.parameters_of.alphas
        slopes = partial(self._alpha_slopes, batch)
        with self.perturbation.around(alphas, slopes, self.done, self.generator):
            return self.task_loss(batch, "train")

    def _alpha_slopes(self, batch: Batch) -> Sequence[Tensor]:
        with kept_statistics(self.supernet):
            slopes = torch.autograd.grad(
                self.unlogged_loss(batch), self.parameters_of.alphas, materialize_grads=True
            )
        return averaged(slopes)

    def _descend(self, optimizer: LightningOptimizer, loss: Callable[[], Tensor]) -> None:
        self.draw()
        optimizer.zero_grad()
        self.manual_backward(check_finite(loss(), self.current_epoch))
        self._clip(optimizer)
        optimizer.step()

    def _clip(self, optimizer: LightningOptimizer) -> None:
        if self.clip and optimizer is cast(list[LightningOptimizer], self.optimizers())[0]:
            self.clip_gradients(optimizer.optimizer, self.clip, "norm")

    def task_loss(self, batch: Batch, split: str) -> Tensor:
        x, labels = batch
        logits = self.supernet(x)
        smoothing = self.label_smoothing if split == "train" else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        self._log(split, loss, logits, labels)
        return loss

    def unlogged_loss(self, batch: Batch) -> Tensor:
        """The weights' task loss in a pass that is no step of its own."""
        x, labels = batch
        return F.cross_entropy(self.supernet(x), labels, label_smoothing=self.label_smoothing)

    def alpha_loss(self, task: Tensor) -> Tensor:
        """The objective of one draw: the cost is that of the same theta as the task loss.

        But a budget is for the distribution: the draws around it, some of which exceed it, would
        be penalised for ever.
        """
        if cast(Objective, self.objective).needs_targets:
            costs = self.noise_free_costs()
        else:
            costs = {name: cost() for name, cost in self.costs.items()}
        joined: Tensor = self.objective(task, costs)
        if self.regularizers:
            found = [d for _, d in decisions(self.supernet) if not d.derived]
            for regularizer in self.regularizers.values():
                joined = joined + regularizer(found, self.done)
        return joined

    def on_validation_epoch_start(self) -> None:
        # Without noise and with all options open; every training step draws anew anyway.
        free(self.supernet)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, labels = batch
        logits = self.supernet(x)
        self._log("supernet_val", F.cross_entropy(logits, labels), logits, labels)

    def _log(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        values = {f"{split}_loss": loss.detach(), f"{split}_acc": accuracy(logits.detach(), labels)}
        options = {"on_step": False, "on_epoch": True, "logger": False, "sync_dist": True}
        self.log_dict(values, batch_size=shared(len(labels)), prog_bar=split != "alpha", **options)  # type: ignore[arg-type]


class BilevelSearch(DifferentiableSearch):
    """First-order DARTS: alphas on validation batches, weights on training batches, in turn.

    Per step ``alpha <- alpha - xi * grad_alpha [L_val(w, alpha) + penalty]``, then
    ``w <- w - eta * grad_w L_train(w, alpha)`` (Liu et al. 2019, Algorithm 1 with xi = 0 in the
    virtual step). See `nas.search.unrolled` for the second order.
    """

    def loaders(self, data: Any) -> dict[str, Any]:
        return {"train": data.weight_loader(), "val": data.alpha_loader()}

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        if not self.warming_up:
            self.step_alphas(batch)
        self.step_weights(batch["train"])

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        _, alpha_optimizer = cast(list[LightningOptimizer], self.optimizers())
        with frozen(self.parameters_of.weights):
            self._descend(alpha_optimizer, lambda: self.val_loss(batch))

    def val_loss(self, batch: dict[str, Batch]) -> Tensor:
        """What alphas descend."""
        return self.alpha_loss(self.task_loss(batch["val"], "alpha"))


class SingleLevelSearch(DifferentiableSearch):
    """Weights and alphas descend the same objective on the same training batch, at once."""

    def loaders(self, data: Any) -> dict[str, Any]:
        return {"train": data.weight_loader()}

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        if self.warming_up:
            self.step_weights(batch["train"])
            return
        weight_optimizer, alpha_optimizer = cast(list[LightningOptimizer], self.optimizers())
        self.draw()
        weight_optimizer.zero_grad()
        alpha_optimizer.zero_grad()
        loss = self.alpha_loss(self.task_loss(batch["train"], "train"))
        self.manual_backward(check_finite(loss, self.current_epoch))
        self._clip(weight_optimizer)
        weight_optimizer.step()
        alpha_optimizer.step()
