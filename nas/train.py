"""Training of one plain network with Lightning: fine-tuning, or from fresh weights."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from math import cos, pi
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from nas.config.schema import Count, NonNegative, Positive, Seed, Share, checked
from nas.diagnostics import captured
from nas.epochs import Trained
from nas.errors import InterruptedRunError
from nas.inputs import Inputs, run
from nas.tasks import Task, check_finite
from nas.tasks.classification import Classification

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Batch = tuple[Inputs, Tensor]


def strategy_of(strategy: object, devices: object) -> dict[str, object]:
    """Arguments of a Trainer under which some parameters may have no gradient in a step.

    Distributed training otherwise stops, and most steps of a search leave some parameters out.
    """
    several = devices in (-1, "-1", "auto") and torch.cuda.device_count() > 1
    several |= isinstance(devices, int) and devices > 1
    several |= isinstance(devices, Sequence) and not isinstance(devices, str) and len(devices) > 1
    if strategy == "ddp" or (strategy == "auto" and several):
        return {"strategy": "ddp_find_unused_parameters_true"}
    return {}


@cache
def silence_unused(device: torch.device) -> None:
    """Let torch say now, to nobody, that a step has left no parameter out.

    It says so once a process, in C++ that no filter of warnings reaches, and advises to switch off
    what `strategy_of` switches on with reason: other steps leave some out. All ranks call this.
    """
    with captured():
        module = nn.PReLU(device=device)  # draws nothing at random
        wrapped = DistributedDataParallel(module, find_unused_parameters=True)
        wrapped(torch.zeros(1, 1, device=device)).sum().backward()


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn the end of the process, by which Lightning answers an interruption, into an error.

    Raises:
        InterruptedRunError: the trainer that was called inside was interrupted.
    """
    try:
        yield
    except (SystemExit, KeyboardInterrupt):
        raise InterruptedRunError("interrupted") from None


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Switch the gradient of `parameters` off inside; those frozen before stay so afterwards."""
    thawed = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in thawed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)


def warmup_cosine(warmup: float, total: int, floor: float = 0.0) -> Callable[[int], float]:
    """Linear from 0 over `warmup` steps, then half a cosine from 1 to `floor` at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return floor + (1 - floor) * (1 + cos(pi * progress)) / 2

    return factor


@checked("finetune")
class Training(Trained):
    """Supervised training of one network by the loss of a task.

    With a teacher, whose outputs z of a batch are fixed, the loss of outputs y for targets t is
    ``(1 - w) L(y, t) + w D(y, z)`` (Hinton et al. 2015, Section 2); D is `Task.distillation`, for
    classes ``T^2 CE(softmax(y / T), softmax(z / T))``.

    Args:
        network: maps ``(N, C, H, W)`` to the outputs of the task, ``(N, classes)``.
        optimizer: parameters -> optimizer.
        epochs: length of the cosine schedule, from the optimizer's rate to 0, in epochs.
        warmup_epochs: linear warm-up from 0 before it, in (parts of) epochs.
        label_smoothing: of the targets while training, see `Task.loss`.
        clip: largest norm of the gradient; 0 does not clip.
        seed: of every random draw inside an epoch, so that a resumed run repeats them.
        task: what the network is for; None: classification.
        teacher: a network that has learned the task, used in evaluation mode and never saved; a
            text names one for a run to find, see `nas.teacher`, and teaches nothing here.
        temperature: T.
        teacher_weight: w.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerFactory,
        epochs: Count,
        warmup_epochs: NonNegative = 0.0,
        label_smoothing: Share = 0.0,
        clip: NonNegative = 0.0,
        seed: Seed = 0,
        task: Task | None = None,
        teacher: nn.Module | str | None = None,
        temperature: Positive = 4.0,
        teacher_weight: Share = 0.5,
    ) -> None:
        super().__init__()
        self.network, self.task = network, task or Classification()
        # In a list, and so in no state dict.
        self.teachers = [teacher] if isinstance(teacher, nn.Module) else []
        self.temperature, self.teacher_weight = temperature, teacher_weight
        self.score_by(self.task, ("train", "val", "test"))
        self.optimizer_factory, self.epochs, self.warmup_epochs = optimizer, epochs, warmup_epochs
        self.label_smoothing, self.clip, self.seed = label_smoothing, clip, seed

    def forward(self, x: Inputs) -> Tensor:
        logits: Tensor = run(self.network, x)
        return logits

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = self.optimizer_factory(trained)
        steps = self.steps_of(self.epochs)
        schedule = warmup_cosine(self.warmup_epochs * steps, self.epochs * steps)
        scheduler: LRScheduler = LambdaLR(optimizer, schedule)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_fit_start(self) -> None:
        for teacher in self.teachers:
            teacher.to(self.device).eval()

    def on_train_epoch_start(self) -> None:
        # Dropout must differ between ranks.
        torch.manual_seed(self.seed + self.current_epoch + 1000 * self.global_rank)

    def before_step(self, index: int) -> None:
        """Give the memory of the gradients to the pass that comes, as Lightning does not."""
        if self.whole is not None:
            self.moving()[0].zero_grad()

    def step(self, batch: Batch, index: int) -> Tensor:
        """See `Trained`."""
        x, labels = batch
        logits = self(x)
        loss = self.task.loss(logits, labels, self.label_smoothing)
        for teacher in self.teachers:
            with torch.no_grad():
                taught = run(teacher, x)
            learned = self.task.distillation(logits, taught, self.temperature)
            loss = (1 - self.teacher_weight) * loss + self.teacher_weight * learned
        self.score("train", loss, logits, labels)
        return check_finite(loss, self.current_epoch)

    def descend(self, loss: Tensor) -> None:
        """See `Trained`: what Lightning does with the loss of a batch."""
        (optimizer,), schedule = self.moving(), cast(Any, self.lr_schedulers())
        self.back(loss)
        self.configure_gradient_clipping(optimizer)
        optimizer.step()
        schedule.step()

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        self.clip_norm(optimizer, self.clip)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def _evaluate(self, split: str, batch: Batch) -> None:
        x, labels = batch
        logits = self(x)
        self.score(split, self.task.loss(logits, labels), logits, labels)
