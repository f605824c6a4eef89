"""Training that pauses after some epochs, and goes on from its checkpoint."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from nas.reading import read_tensors


class PauseAfter(pl.Callback):
    """Ends the training after `epochs` of its epochs, however many the trainer is made for.

    The schedule of the learning rate is that of all of them: going on is as if nothing had been.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 >= self.epochs


def paused(checkpoint: Path, until: int) -> tuple[int, dict[str, Any]]:
    """Epochs done and the module's state; 0 epochs where there is no checkpoint of any use.

    One beyond `until` is of none: its network has seen too much.
    """
    try:
        saved = read_tensors(checkpoint)
        done, state = int(saved["epoch"]) + 1, dict(saved["state_dict"])
    except Exception:  # missing, torn, or something else
        return 0, {}
    return (done, state) if done <= until else (0, {})
