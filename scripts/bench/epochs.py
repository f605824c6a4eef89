"""Epochs of `nas`, each beside an epoch of a loop by hand that does the same."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from bench.loops import Bilevel, FineTuning, OneShot, Scores, Tensors
from nas.arch import Arch
from nas.artifacts import RunDir
from nas.config.compose import compose_config
from nas.cost.expected import expected
from nas.decision import decisions
from nas.inputs import zeros
from nas.pipeline import TrainingStage
from nas.problem import SearchProblem
from nas.search.base import build_search
from nas.search.callbacks import LastCheckpoint, Stopwatch
from nas.search.telemetry import TrainingTelemetry
from nas.supernet.speed import prepare, prepare_network
from nas.train import Training
from nas.verbs import components_of

Loop = Callable[[int], Scores]  # number of the epoch -> what it gives
COMMON = ("data=digits", "space=chain_tiny", "space.width=0.5", "threads=1")
ROWS: dict[str, tuple[str, ...]] = {
    "one-shot": ("search=spos", "search.warmup_epochs=0"),
    "bilevel": ("search=bilevel", "search.warmup_epochs=0"),
    "fine-tuning": ("data.augment=none",),
    "fine-tuning, crop": ("data.augment=crop",),
    "fine-tuning, crop / loop without": ("data.augment=crop",),
}


@dataclass
class Epochs(pl.Callback):
    """Runs an epoch of a loop before each epoch of a training, and times both.

    Attributes:
        ours, plain: (wall, processor) seconds of each epoch.
        given: what each epoch has given, ours and that of the loop.
    """

    make: Callable[[Any], Loop]
    ours: list[tuple[float, float]] = field(default_factory=list)
    plain: list[tuple[float, float]] = field(default_factory=list)
    given: list[tuple[Scores, Scores]] = field(default_factory=list)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.loop, self.since = self.make(pl_module), (0.0, 0.0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer)
        start = clocks()
        self.scores = self.loop(trainer.current_epoch)
        self.plain.append(passed(start))
        self.since = clocks()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end(trainer)

    def _end(self, trainer: pl.Trainer) -> None:
        if not self.plain:
            return
        self.ours.append(passed(self.since))
        known = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.given.append((known, self.scores))


@dataclass(frozen=True)
class Result:
    """One row: medians of epochs without the first one, in ms; ratios of wall and processor."""

    name: str
    ours: float
    plain: float
    wall: float
    cpu: float
    quartiles: tuple[float, float]  # of the ratios of neighbours, by processor time
    equal: bool  # weights to the bit, and scores within rounding


def measured(name: str, epochs: int, folder: Path) -> Result:
    """A training of so many epochs beside its loop."""
    searched = name in ("one-shot", "bilevel")
    words = [*COMMON, *ROWS[name], f"{'search' if searched else 'finetune'}.epochs={epochs}"]
    problem = SearchProblem(**components_of(compose_config(words)))
    folder.mkdir(parents=True)
    stage = TrainingStage(problem, RunDir(folder))
    tensors = Tensors(problem.data, epochs)
    find = search if searched else fine_tuning
    found, module, network = find(name, problem, stage, tensors)
    skipped = slice(1, None)  # the first epoch allocates memory
    ours, plain = found.ours[skipped], found.plain[skipped]
    ratios = [a[1] / b[1] for a, b in zip(ours, plain, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    wall, cpu = (median(ours, clock) / median(plain, clock) for clock in (0, 1))
    same = "without" in name or equal(found, module, network)
    return Result(name, 1e3 * median(ours, 1), 1e3 * median(plain, 1), wall, cpu, (low, high), same)


def search(
    name: str, problem: SearchProblem, stage: TrainingStage, data: Tensors
) -> tuple[Epochs, nn.Module, nn.Module]:
    """A search's training of the supernet, without what follows it."""
    made: Any = build_search(problem)
    copied = copy.deepcopy(problem.supernet)
    prepare(copied, problem.speed)

    def make(module: Any) -> Loop:
        if name == "one-shot":
            return OneShot(module, copied, data)
        models = {n: problem.priced[n] for n in module.costs}
        costs = {n: expected(copied, m, problem.data.example) for n, m in models.items()}
        return Bilevel(module, copied, data, costs)

    found = Epochs(make)
    problem.callbacks = [found]
    if hasattr(made, "ranking"):
        made.ranking = Nothing()
    made.run(problem, stage)
    return found, made.supernet, copied


class Nothing:
    """Stands for the ranking after the training of a supernet."""

    def run(self, *_: object) -> Any:
        from nas.search.base import SearchResult

        return SearchResult(Arch("", {}), [], "", "")


def fine_tuning(
    name: str, problem: SearchProblem, stage: TrainingStage, data: Tensors
) -> tuple[Epochs, nn.Module, nn.Module]:
    """The training of the network of the second options, 16 k parameters and more."""
    from nas.discretization import discretize

    own = dict(decisions(problem.supernet))
    arch = Arch(problem.space, {n: d.options[i % 3] for i, (n, d) in enumerate(own.items())})
    module: Training = problem.finetune(network=discretize(problem.supernet, arch), seed=0)
    prepare_network(module.network, problem.speed, zeros(problem.data.example, 2))
    copied = copy.deepcopy(module.network)
    found = Epochs(lambda made: FineTuning(made, copied, data, name.endswith("crop")))
    problem.callbacks = [found]
    checkpoint = stage.run.finetune_checkpoint
    callbacks = [Stopwatch(), TrainingTelemetry(), LastCheckpoint(checkpoint)]
    trainer = stage.trainer(module.epochs, callbacks)
    stage.fit(trainer, module, problem.data.weight_loader(), checkpoint)
    return found, module.network, copied


def equal(found: Epochs, ours: nn.Module, plain: nn.Module) -> bool:
    """Whether both have the same weights, and gave the same scores."""
    theirs = plain.state_dict()
    weights = all(
        torch.equal(value, theirs[name])
        for name, value in ours.state_dict().items()
        if not name.endswith((".noise", ".open"))
    )
    scores = all(
        abs(known[name] - value) <= 1e-5 * max(1, abs(value))
        for known, given in found.given
        for name, value in given.items()
    )
    return weights and scores


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(since: tuple[float, float]) -> tuple[float, float]:
    now = clocks()
    return now[0] - since[0], now[1] - since[1]


def median(times: Sequence[tuple[float, float]], clock: int) -> float:
    return statistics.median(pair[clock] for pair in times)
