"""What happens at the end of an epoch besides training: save to resume, stop when decided."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from nas.arch import Option
from nas.decision import decisions
from nas.errors import UserError
from nas.ranks import told
from nas.run import write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes as everything else in a run's folder is written.

    Lightning's own goes through the folder of temporary files, which may be full or another disk,
    and a kill leaves the file there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getbuffer())


class LastCheckpoint(Checkpoint):
    """Saves the trainer's whole state after every training epoch, over that of the epoch before.

    ``trainer.fit(..., ckpt_path=path, weights_only=True)`` goes on with the epoch after it.

    A `Checkpoint` by type, because Lightning runs those after the module's own
    `on_train_epoch_end`, where schedules step, and after all other callbacks. Callbacks that are
    of this type themselves must precede it in the trainer's list to be saved as they are.

    Args:
        path: the file. A reader, or a crash, sees the old state or the new one, never half.
        keep: names of metrics that are saved too, as `metrics`: a run killed after its last epoch
            trains no more when it is resumed, and Lightning knows none.
    """

    def __init__(self, path: Path, keep: Sequence[str] = ()) -> None:
        self.path, self.keep = Path(path), keep
        self.metrics: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        known = trainer.callback_metrics
        self.metrics = {name: float(known[name]) for name in self.keep if name in known}
        # On every rank: it ends with a barrier. Left to itself, `weights_only` would be announced.
        trainer.save_checkpoint(self.path, weights_only=False)

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics} if self.metrics else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = state_dict["metrics"]


class StopWhenStable(pl.Callback):
    """Ends a search whose best architecture no longer changes.

    Stops after `patience` epochs in a row, warm-up left out, that did not change the best option
    of any decision, as soon as the largest probability of each decision, ``max_k softmax(alpha)``,
    is at least `confidence` in the mean over decisions.

    Args:
        patience: epochs without a change; None never stops.
        confidence: from 0 (stability alone decides) to 1.

    Raises:
        UserError: patience below 1, or a confidence outside 0..1.
    """

    def __init__(self, patience: int | None, confidence: float = 0.0) -> None:
        if patience is not None and patience < 1:
            raise UserError(
                f"stable_epochs={patience} must be at least 1, or null to never stop early"
            )
        if not 0 <= confidence <= 1:
            raise UserError(f"confidence={confidence} must be from 0 to 1")
        self.patience, self.confidence = patience, confidence
        self.best: dict[str, Option] = {}
        self.unchanged = 0
        self.stopped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The state is loaded by now: a search that had ended does not go on when it is resumed.
        trainer.should_stop |= self.stopped

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.patience is None or pl_module.warming_up:
            return
        best = {name: decision.best() for name, decision in decisions(pl_module.supernet)}
        self.unchanged = self.unchanged + 1 if best == self.best else 0
        self.best = best
        confidence = mean_confidence(pl_module.supernet)
        stable = self.unchanged >= self.patience and confidence >= self.confidence
        if told(lambda: stable):
            self.stopped = trainer.should_stop = True
            trainer.print(
                f"search ends after epoch {trainer.current_epoch}: the best architecture has not "
                f"changed for {self.unchanged} epochs (mean largest probability {confidence:.2f})"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "unchanged": self.unchanged, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.unchanged = state_dict["best"], state_dict["unchanged"]
        self.stopped = state_dict["stopped"]


def mean_confidence(supernet: nn.Module) -> float:
    """``max_k softmax(alpha)``, in the mean over the decisions of `supernet`."""
    largest = [d.alpha.detach().float().softmax(-1).max() for _, d in decisions(supernet)]
    return float(torch.stack(largest).mean())
