"""Time spent in a stage, over all sessions that a resumed run had."""

import time
from typing import Any

import pytorch_lightning as pl


class Stopwatch(pl.Callback):
    """Seconds inside `Trainer.fit`, those before an interruption included (to the checkpoint).

    Attributes:
        seconds: of the wall clock.
        cpu_seconds: of this process, all its threads: what others do on the machine adds nothing.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._since = self._clocks()

    @staticmethod
    def _clocks() -> tuple[float, float]:
        return time.monotonic(), time.process_time()

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._since = self._clocks()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._lap()

    def _lap(self) -> None:
        now = self._clocks()
        self.seconds += now[0] - self._since[0]
        self.cpu_seconds += now[1] - self._since[1]
        self._since = now

    def state_dict(self) -> dict[str, Any]:
        self._lap()
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.cpu_seconds = state_dict.get("cpu_seconds", 0.0)
