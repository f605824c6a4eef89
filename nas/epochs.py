"""Epochs of training: their scores, and their steps without Lightning's work around each.

Lightning calls dozens of hooks for each batch, which takes a fifth as long as the step of a network
of 25 k parameters. Where nobody listens to them it is given all batches of an epoch as one, and
where nobody listens to its validation the module validates itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities import CombinedLoader
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.data.batches import EpochLoader
from nas.inputs import moved
from nas.objective import wide
from nas.ranks import rank_and_ranks
from nas.recalibrate import kept_modes
from nas.tasks import Task

# Hooks of callbacks that only Lightning's own loop over batches calls.
STEP_HOOKS = (
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step",
)  # fmt: skip
# Those of its loop over validation batches.
VALIDATION_HOOKS = tuple(
    f"on_validation{of}_{edge}" for of in ("", "_epoch", "_batch") for edge in ("start", "end")
)
# Callbacks without such a hook that decide which batches of Lightning's own loop move the weights.
STEP_CALLBACKS = (GradientAccumulationScheduler, StochasticWeightAveraging)


class Scores(nn.Module):
    """The loss and the metrics of a task over the samples of an epoch; none is read in a step."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.metrics = task.metrics()
        self.total: Tensor | None = None  # sum of the loss over samples
        self.samples = 0

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch; `loss` is the mean over it."""
        found = loss.detach() * len(targets)
        self.total = found if self.total is None else self.total + found
        self.samples += len(targets)
        self.metrics.update(outputs.detach(), targets)

    def taken(self) -> dict[str, Tensor]:
        """Means over the samples of all ranks since the last call; {} where there were none."""
        if self.total is None:
            return {}
        total = wide(self.total)
        sums = torch.stack([total, total.new_tensor(self.samples)])
        if rank_and_ranks()[1] > 1:
            dist.all_reduce(sums)
        total, samples = sums.unbind()
        found: dict[str, Tensor] = {"loss": total / samples, **self.metrics.compute()}
        self.total, self.samples = None, 0
        with torch.inference_mode(False):  # else a metric cannot add to its states in training
            self.metrics.reset()
        return found


class Whole:
    """A loader of one item, itself: the batches of a whole epoch.

    Args:
        loaders: one, or several by name, whose batches come together; the shorter ones are gone
            through again.
    """

    def __init__(self, loaders: EpochLoader | Mapping[str, EpochLoader]) -> None:
        self.loaders = loaders
        self.sampler = self  # a trainer tells the sampler of each loader of the epoch

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        for loader in _each(self.loaders):
            loader.sampler.set_epoch(epoch)

    @cached_property
    def steps(self) -> int:
        """Batches of an epoch."""
        return max(len(loader) for loader in _each(self.loaders))

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator["Whole"]:
        yield self

    def batches(self) -> Iterator[Any]:
        """The batches of the epoch."""
        if not isinstance(self.loaders, Mapping):
            yield from self.loaders
            return
        for batch, _, _ in CombinedLoader(self.loaders, "max_size_cycle"):
            yield batch


def _each(loaders: Any) -> list[Any]:
    return list(loaders.values()) if isinstance(loaders, Mapping) else [loaders]


class Trained(pl.LightningModule):
    """A module that is trained in steps, whose scores are logged once an epoch.

    A subclass defines `step`, and `descend` where Lightning moves the weights.

    Attributes:
        scores: of each split, set by `score_by`.
        hidden: splits that no progress bar shows.
        whole: the batches of an epoch, where Lightning does not go through them.
        unseen: those of the validation after each epoch, where Lightning does not.
        tell: called after each step with the epochs that are done.
    """

    hidden: ClassVar[Sequence[str]] = ("test",)
    whole: Whole | None = None
    unseen: EpochLoader | None = None
    tell: Callable[[float], None] | None = None

    def step(self, batch: Any, index: int) -> Tensor | None:
        """One step on one batch; a loss that is returned is yet to be descended."""
        raise NotImplementedError

    def descend(self, loss: Tensor) -> None:
        """Move the weights by a loss."""
        raise NotImplementedError

    def before_step(self, index: int) -> None:
        """Called before each step, with its number in the epoch."""

    def after_step(self, index: int) -> None:
        """Called after each step."""

    def on_train_start(self) -> None:
        """Let Lightning count the steps of optimizers that it does not see."""
        loop: Any = self.trainer.fit_loop.epoch_loop
        progress = loop.manual_optimization.optim_step_progress
        automatic = loop.automatic_optimization.optim_progress.optimizer.step
        # A checkpoint may be of epochs that were run the other way.
        done = max(progress.total.completed, automatic.total.completed)
        total = (automatic if self.automatic_optimization else progress).total
        total.ready = total.completed = done
        if self.whole is not None:

            def count(*_: Any) -> None:
                progress.increment_ready()
                progress.increment_completed()

            for optimizer in self.trainer.optimizers:
                optimizer.register_step_post_hook(count)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The step of a batch, or of all batches of an epoch."""
        if not isinstance(batch, Whole):
            return self._one(batch, batch_idx)
        loop: Any = self.trainer.fit_loop.epoch_loop
        for index, one in enumerate(self._here(batch.batches())):
            # Loggers take this number; Lightning adds one itself.
            loop._batches_that_stepped += index > 0
            loss = self._one(one, index)
            if loss is not None:
                self.descend(loss)
        return None

    def _here(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Batches on the device of the module, as long as nobody ends the run."""
        for batch in batches:
            if self.trainer.received_sigterm:
                raise SIGTERMException
            yield batch if self.device.type == "cpu" else moved(batch, self.device)

    def _one(self, batch: Any, index: int) -> Tensor | None:
        self.before_step(index)
        loss = self.step(batch, index)
        self.after_step(index)
        if self.tell is not None:
            self.tell(self.current_epoch + (index + 1) / self.steps)
        return loss

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return int(self.trainer.num_training_batches) if self.whole is None else self.whole.steps

    def steps_of(self, epochs: int) -> int:
        """Steps of one of so many epochs, before the training."""
        if self.whole is not None:
            return self.whole.steps
        return max(1, int(self.trainer.estimated_stepping_batches) // epochs)

    def moving(self) -> list[Optimizer]:
        """The optimizers, through Lightning where it counts their steps."""
        found: Any = self.optimizers(use_pl_optimizer=self.whole is None)
        return found if isinstance(found, list) else [found]

    def back(self, loss: Tensor) -> None:
        """The backward pass."""
        if self.whole is None:
            self.manual_backward(loss)
        else:
            torch.autograd.backward(loss)

    def clip_norm(self, optimizer: Optimizer, largest: float) -> None:
        """Scale the gradients of an optimizer's weights down to a norm of `largest`; 0 does not."""
        if largest and self.whole is None:
            self.clip_gradients(optimizer, largest, "norm")
        elif largest:  # what Lightning comes to where by_epochs has seen its arguments
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(weights, largest)

    def score_by(self, task: Task, splits: Sequence[str]) -> None:
        """Make the scores of these splits."""
        # The names of splits alone may be those of methods, such as `train`.
        self.scores = nn.ModuleDict({f"{split}_scores": Scores(task) for split in splits})

    def score(self, split: str, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch of a split; `loss` is the mean over it."""
        cast(Scores, self.scores[f"{split}_scores"]).add(loss, outputs, targets)

    def log_scores(self) -> None:
        """Log ``<split>_loss`` and ``<split>_<metric>`` of the splits that had batches."""
        for key, scores in self.scores.items():
            split = key.removesuffix("_scores")
            found = {f"{split}_{n}": value for n, value in cast(Scores, scores).taken().items()}
            self.record(found, split not in self.hidden)

    def record(self, found: Mapping[str, Any], on_bar: bool = False) -> None:
        """Let callbacks know numbers of an epoch, which are the same on all ranks.

        Lightning's own `log` gives the same and takes as long as a tenth of a small step.
        """
        self.trainer.callback_metrics.update({n: torch.as_tensor(v) for n, v in found.items()})
        if on_bar:
            self.trainer.progress_bar_metrics.update({n: float(v) for n, v in found.items()})

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log before callbacks hear that the epoch has ended, as they may read the scores."""
        if self.trainer.is_last_batch:
            if self.unseen is not None:
                self._validate(self.unseen)
            self.log_scores()

    def _validate(self, batches: EpochLoader) -> None:
        with kept_modes(self), torch.no_grad():
            self.eval()
            self.on_validation_epoch_start()
            for index, batch in enumerate(self._here(batches)):
                self.validation_step(batch, index)

    def on_train_epoch_end(self) -> None:
        """Log what a trainer that stops inside an epoch has left."""
        self.log_scores()

    def on_validation_epoch_end(self) -> None:
        """Log."""
        self.log_scores()

    def on_test_epoch_end(self) -> None:
        """Log."""
        self.log_scores()


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, where Lightning has wrapped it."""
    return cast(Optimizer, getattr(optimizer, "optimizer", optimizer))


def by_epochs(
    trainer: pl.Trainer, module: Any, loaders: Any, validation: Any = None
) -> tuple[Any, Any]:
    """The loaders for `trainer.fit`: as one of whole epochs where that changes no result.

    So it is on one device in float32, with the loaders of this project, where neither callbacks nor
    arguments of the trainer speak of batches. That of validation is kept back, and the module goes
    through it, where neither speaks of validation.
    """
    given: Any = trainer
    alone = (
        isinstance(module, Trained)
        and all(isinstance(loader, EpochLoader) for loader in _each(loaders))
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and trainer.precision == "32-true"
        and isinstance(given.profiler, PassThroughProfiler)
        and (trainer.max_steps, trainer.accumulate_grad_batches) == (-1, 1)
        and (trainer.limit_train_batches, trainer.val_check_interval) == (1.0, 1.0)
        and not (given.gradient_clip_val or given.overfit_batches or given.fast_dev_run)
        and not any(hears(one, STEP_HOOKS) for one in given.callbacks)
        and not any(isinstance(one, STEP_CALLBACKS) for one in given.callbacks)
    )
    if not alone:
        return loaders, validation
    whole = Whole(loaders)
    module.whole, module.automatic_optimization = whole, False
    unheard = (
        isinstance(validation, EpochLoader)
        and (trainer.limit_val_batches, trainer.check_val_every_n_epoch) == (1.0, 1)
        and not (trainer.num_sanity_val_steps or given.reload_dataloaders_every_n_epochs)
        and not any(hears(one, VALIDATION_HOOKS) for one in given.callbacks)
    )
    if unheard:
        module.unseen, validation = validation, None
    return whole, validation


def hears(callback: pl.Callback, hooks: Sequence[str]) -> bool:
    """Whether a callback does anything in one of these hooks."""
    # Of the callback itself, as a `LambdaCallback` has its hooks: no class defines them.
    own = {name: getattr(getattr(callback, name), "__func__", None) for name in hooks}
    return any(hook is not getattr(pl.Callback, name) for name, hook in own.items())
