"""The speed of a search: chosen once, kept by its checkpoint."""

import copy
import time
from typing import Any

import pytorch_lightning as pl
import torch

from nas.decision import free
from nas.search.differentiable import DifferentiableSearch, frozen
from nas.supernet.speed import check, compiled, fastest, prepare, step


class SpeedUp(pl.Callback):
    """Runs the supernet at a speed of `nas.supernet.speed` while it is searched.

    Args:
        speed: one of `nas.supernet.speed.SPEEDS`; "auto" measures. A resumed search goes on with
            the speed it had, since another one rounds otherwise.
        shape: of a batch, ``(N, C, H, W)``.

    Raises:
        UserError: no such speed.
    """

    def __init__(self, speed: str, shape: tuple[int, ...]) -> None:
        check(speed)
        self.asked, self.shape = speed, shape
        self.used: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DifferentiableSearch)
        x = torch.zeros(self.shape, device=pl_module.device)
        if self.used is None:
            self.used = (
                self.asked if self.asked != "auto" else self._measured(trainer, pl_module, x)
            )
        if self.used == "compile":
            self._compile(trainer, pl_module, x)
        else:
            prepare(pl_module.supernet, self.used)

    def _measured(self, trainer: pl.Trainer, module: DifferentiableSearch, x: torch.Tensor) -> str:
        best, seconds = fastest(module.supernet, x)
        best = str(trainer.strategy.broadcast(best))
        steps = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
        trainer.print(f"speed={best} (a step of all candidates: {steps})")
        return best

    def _compile(self, trainer: pl.Trainer, module: DifferentiableSearch, x: torch.Tensor) -> None:
        supernet, start = module.supernet, time.monotonic()
        before = copy.deepcopy(supernet.state_dict())
        prepare(supernet, "compile")
        compiled(supernet, x)
        supernet.train()
        free(supernet)
        try:
            # As the halves of a bilevel step: each freezes the other, and has its own graph.
            with torch.random.fork_rng(devices=[]):
                for half in module.parameters_of:
                    with frozen(half):
                        step(supernet, x)
            trainer.print(f"speed=compile (set up in {time.monotonic() - start:.0f} s)")
        except Exception as error:  # whatever the compiler does not like about a model
            first = str(error).strip().partition("\n")[0]
            trainer.print(f"speed=channels_last, as torch.compile failed: {first}")
            self.used = "channels_last"
            prepare(supernet, self.used)
        supernet.load_state_dict(before)
        supernet.zero_grad()

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # What is trained or exported afterwards is plain, whether the search was resumed or not.
        prepare(pl_module.supernet, "none")

    def state_dict(self) -> dict[str, Any]:
        return {"used": self.used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.used = state_dict["used"]
