"""TensorBoard curves and pictures of a search, and of the training of one network."""

from collections.abc import Mapping
from math import ceil, log
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

from nas.decision import decisions
from nas.search.callbacks import mean_confidence
from nas.search.heatmap import Block, draw_block, draw_overview

PICTURES = 8  # times in a search that heat maps are drawn


class SearchTelemetry(Checkpoint):
    """Writes a differentiable search to the trainer's TensorBoard logger, by epochs.

    Scalars ``loss/*``, ``accuracy/*``, ``cost/*`` (also relative to the untrained supernet),
    ``budget/*`` (expected cost over budget), ``lr/weights``, ``lr/alphas``, ``search/tau``,
    ``search/entropy`` (0 decided, 1 uniform), ``search/max_probability``, ``search/gap`` (supernet
    minus its best network), ``objective/*`` (multipliers, strengths); images ``theta/<decision>``
    and ``theta/overview``. Without a TensorBoard logger it writes nothing.

    A `Checkpoint` by type, because only those run after the module's own `on_train_epoch_end`,
    where costs are logged. It must precede `LastCheckpoint` in the trainer's list.
    """

    def __init__(self) -> None:
        self.history: list[Tensor] = []  # per epoch softmax(alpha) of all decisions, (sum of K,)
        self.start: dict[str, float] = {}  # costs of the untrained supernet
        self._rates: list[float] = []
        self._drawn = 0  # epochs in the last heat maps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # A resumed run has its state, and trained alphas, by now.
        self.start = self.start or {
            name: float(cost.mean()) for name, cost in pl_module.costs.items()
        }

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Schedules have stepped on by the end of the epoch.
        self._rates = learning_rates(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        found = [decision for _, decision in decisions(pl_module.supernet)]
        theta = [decision.alpha.detach().float().softmax(-1).cpu() for decision in found]
        self.history.append(torch.cat(theta))
        weights, alphas = self._rates
        scalars = {
            **grouped(trainer.callback_metrics),
            **self._relative(trainer.callback_metrics),
            **_used(trainer.callback_metrics, pl_module.targets),
            "lr/weights": weights,
            "lr/alphas": alphas,
            "search/tau": float(found[0].tau),
            "search/entropy": mean_entropy(theta),
            "search/max_probability": mean_confidence(pl_module.supernet),
            **_gap(trainer.callback_metrics),
            **{f"objective/{name}": v for name, v in pl_module.objective.state().items()},
        }
        write(trainer, scalars)
        if len(self.history) - self._drawn >= ceil((trainer.max_epochs or 1) / PICTURES):
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._drawn < len(self.history):
            self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        history = torch.stack(self.history) if self.history else torch.empty(0)
        return {"history": history, "start": self.start, "drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.start = list(state_dict["history"].cpu()), state_dict["start"]
        self._drawn = state_dict["drawn"]

    def blocks(self, supernet: torch.nn.Module) -> list[Block]:
        """The course of every decision of `supernet`, as far as the search has come."""
        found = list(decisions(supernet))
        sizes = [len(d.options) for _, d in found]
        courses = torch.split_with_sizes(torch.stack(self.history), sizes, dim=1)
        return [
            Block(name or "model", [str(o) for o in d.options], course.numpy().astype(np.float64))
            for (name, d), course in zip(found, courses, strict=True)
        ]

    def _relative(self, metrics: Mapping[str, Tensor]) -> dict[str, float]:
        return {
            f"cost/{name}_relative": float(metrics[f"cost_{name}"]) / start
            for name, start in self.start.items()
            if start and f"cost_{name}" in metrics
        }

    def _draw(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._drawn = len(self.history)
        if (writer := tensorboard(trainer)) is None:
            return
        blocks = self.blocks(pl_module.supernet)
        pictures = {block.name: draw_block(block) for block in blocks}
        for name, picture in {"overview": draw_overview(blocks), **pictures}.items():
            step = self._drawn - 1
            writer.add_image(f"theta/{name}", np.asarray(picture), step, dataformats="HWC")
        writer.flush()


def _used(metrics: Mapping[str, Tensor], budgets: Mapping[str, float]) -> dict[str, float]:
    """Expected costs beside their budgets: above 1 is too much."""
    return {
        f"budget/{name}": float(metrics[f"cost_{name}"]) / bound
        for name, bound in budgets.items()
        if f"cost_{name}" in metrics
    }


class TrainingTelemetry(pl.Callback):
    """Writes a training of weights alone: ``finetune/loss_train``, ..., ``finetune/lr``.

    Args:
        stage: instead of "finetune".
    """

    def __init__(self, stage: str = "finetune") -> None:
        self.stage = stage
        self._rate = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._rate = learning_rates(trainer)[0]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = grouped(trainer.callback_metrics)
        scalars = {f"{self.stage}/{tag.replace('/', '_')}": value for tag, value in metrics.items()}
        write(trainer, {**scalars, f"{self.stage}/lr": self._rate})


def tensorboard(trainer: pl.Trainer) -> Any:
    """The writer of the trainer's TensorBoard logger; None without one and on ranks above 0."""
    if not trainer.is_global_zero:
        return None
    loggers = (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))
    return next((logger.experiment for logger in loggers), None)


def write(trainer: pl.Trainer, scalars: Mapping[str, float]) -> None:
    """Write scalars at the present epoch, if there is somewhere to write them to."""
    if (writer := tensorboard(trainer)) is None:
        return
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, trainer.current_epoch)
    # Before the checkpoint: the curves of a killed and resumed run have no gaps.
    writer.flush()


def grouped(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Logged name -> TensorBoard tag: ``alpha_loss`` -> ``loss/alpha``, and so on."""
    return {_tag(name): float(value) for name, value in metrics.items()}


def _gap(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy that the supernet has more than its best network, see `nas.search.callbacks`."""
    names = ("supernet_val_acc", "argmax_val_acc")
    if not all(name in metrics for name in names):
        return {}
    soft, best = (float(metrics[name]) for name in names)
    return {"search/gap": soft - best}


def _tag(name: str) -> str:
    head, _, tail = name.rpartition("_")
    if head and tail in ("loss", "acc"):
        return f"{'accuracy' if tail == 'acc' else tail}/{head}"
    return name.replace("cost_", "cost/", 1) if name.startswith("cost_") else name


def learning_rates(trainer: pl.Trainer) -> list[float]:
    """The present rate of each optimizer (of its first group)."""
    return [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]


def mean_entropy(thetas: list[Tensor]) -> float:
    """``-sum_k p_k log p_k / log K`` in the mean over decisions: 1 is uniform, 0 is decided."""
    shares = [float(torch.special.entr(p).sum()) / log(len(p)) for p in thetas if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0
