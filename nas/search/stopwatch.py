"""Time spent in a stage, over all sessions that a resumed run had."""

import time
from typing import Any

import pytorch_lightning as pl


class Stopwatch(pl.Callback):
    """Seconds inside `Trainer.fit`, those before an interruption included (to the checkpoint)."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = time.monotonic()

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = time.monotonic()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._lap()

    def _lap(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now

    def state_dict(self) -> dict[str, Any]:
        self._lap()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
