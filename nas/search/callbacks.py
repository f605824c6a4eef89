"""Callbacks of a search: checkpoint, stopwatch, progress, discretization gap, speed."""

import copy
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from nas.artifacts.files import write_atomic
from nas.decision import apply, free
from nas.discretization import arch_of
from nas.epochs import Scores, Trained
from nas.inputs import Inputs, moved, run
from nas.progress import current
from nas.recalibrate import batch_statistics
from nas.supernet.speed import check, compiled, fastest, prepare, step
from nas.train import frozen


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, as all other files in a run's folder are written.

    Lightning's own class writes to the folder of temporary files first, which may be full or on
    another disk, and a killed run leaves the file there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getbuffer())


class LastCheckpoint(Checkpoint):
    """Saves the trainer's whole state after training epochs, replacing the previous one.

    ``trainer.fit(..., ckpt_path=path, weights_only=True)`` goes on with the next epoch.

    It saves after the first epoch of a session, the last one, and every other that ends `seconds`
    after the last save: saving takes a twentieth of the epoch of a small network. Several processes
    save after each epoch, as their clocks differ.

    A `Checkpoint` by type, because Lightning runs those after the module's own
    `on_train_epoch_end`, where schedules step, and after all other callbacks. Callbacks that are
    of this type themselves must precede it in the trainer's list to be saved as they are.

    Args:
        path: the file. A reader, or a crash, sees the old state or the new one, never half.
        keep: names of metrics to save too, as `metrics`: a run that was killed after its last epoch
            does not train when it is resumed, so that Lightning computes none.
    """

    seconds: ClassVar[float] = 2.0  # that a run which is ended may lose, and the epoch it is in

    def __init__(self, path: Path, keep: Sequence[str] = ()) -> None:
        self.path, self.keep = Path(path), keep
        self.metrics: dict[str, float] = {}
        self._saved: float | None = None  # when it did in this session

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        lately = self._saved is not None and time.monotonic() - self._saved < self.seconds
        if lately and not last and trainer.world_size == 1:
            return
        known = trainer.callback_metrics
        self.metrics = {name: float(known[name]) for name in self.keep if name in known}
        # On every rank: it ends with a barrier. Left to itself, `weights_only` would be announced.
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics} if self.metrics else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = state_dict["metrics"]


class Stopwatch(pl.Callback):
    """Measures the time inside `Trainer.fit`, including that of interrupted sessions.

    Of an interrupted session, the time up to its last checkpoint counts.

    Attributes:
        seconds: wall-clock time.
        cpu_seconds: CPU time of all threads of this process, which other processes do not change.
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


class ShowEpochs(pl.Callback):
    """Tells the run's progress how far a training is, and the metrics of each epoch."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epochs = trainer.max_epochs or 1
        current().reach(trainer.current_epoch / epochs, before=True)
        if isinstance(pl_module, Trained):
            pl_module.tell = lambda done: current().reach(done / epochs)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        current().step = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        current().tell({n: float(value) for n, value in trainer.progress_bar_metrics.items()})


class DiscretizationGap(pl.Callback):
    """Evaluates the best architecture with the supernet's weights on the validation batches.

    Logs ``argmax_val_acc`` and ``argmax_val_loss`` beside ``supernet_val_acc``; TensorBoard also
    shows the difference, ``search/gap``. BatchNorm normalises by each batch: the running statistics
    are those of the mixture, and would dominate the difference. Nothing is logged during warm-up,
    when alphas have not moved.
    """

    def __init__(self) -> None:
        self.scores: Scores | None = None  # of the network, made at the first validation

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if pl_module.warming_up:
            return
        (x, labels), supernet = batch, pl_module.supernet
        apply(supernet, arch_of(supernet))
        with batch_statistics(supernet), torch.no_grad():
            logits = run(supernet, x)
        free(supernet)
        if self.scores is None:
            self.scores = Scores(pl_module.task).to(pl_module.device)
        self.scores.add(pl_module.task.loss(logits, labels), logits, labels)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.scores is not None:
            found = self.scores.taken()
            pl_module.record({f"argmax_val_{name}": v for name, v in found.items()})


class SpeedUp(pl.Callback):
    """Runs the supernet at a speed of `nas.supernet.speed` while it is searched.

    Args:
        speed: one of `nas.supernet.speed.SPEEDS`; "auto" measures. A resumed search keeps its
            speed, since another one rounds differently.
        batch: an empty one.

    Raises:
        UserError: no such speed.
    """

    def __init__(self, speed: str, batch: Inputs) -> None:
        check(speed)
        self.asked, self.batch = speed, batch
        self.used: str | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        x = moved(self.batch, pl_module.device)
        if self.used is None:
            self.used = (
                self.asked if self.asked != "auto" else self._measured(trainer, pl_module, x)
            )
        if self.used == "compile" and hasattr(pl_module, "parameters_of"):
            self._compile(trainer, pl_module, x)
        else:
            # Sampled paths go through no graph.
            prepare(pl_module.supernet, self.used)

    def _measured(self, trainer: pl.Trainer, module: Any, x: Inputs) -> str:
        with trainer.precision_plugin.forward_context():  # kernels differ from type to type
            best, seconds = fastest(module.supernet, x)
        best = str(trainer.strategy.broadcast(best))
        steps = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())
        trainer.print(f"speed={best} (a step of all candidates: {steps})")
        return best

    def _compile(self, trainer: pl.Trainer, module: Any, x: Inputs) -> None:
        supernet, start = module.supernet, time.monotonic()
        before = copy.deepcopy(supernet.state_dict())
        prepare(supernet, "compile")
        compiled(supernet, x)
        supernet.train()
        free(supernet)
        try:
            # As the halves of a bilevel step: each freezes the other, and has its own graph.
            context = trainer.precision_plugin.forward_context()
            with torch.random.fork_rng(devices=[]), context:
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
