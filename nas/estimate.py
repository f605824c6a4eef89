"""How long a search takes on this machine: measured by a short trial, and scaled."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.diagnostics import captured
from nas.errors import UserError
from nas.front import write_files
from nas.pipeline import Run, TrainingStage
from nas.problem import SearchProblem
from nas.progress import Part
from nas.search.base import build_search
from nas.search.space import SearchSpace

T = TypeVar("T")

WARM = 2  # steps before it is measured
LEAST, ENOUGH = 4, 3.0  # steps, and seconds, that are measured; the longer of the two
RANKED = 3  # networks that are scored for it


@dataclass(frozen=True)
class Estimate:
    """What a part of a run takes.

    Args:
        name: of the part.
        about: what it consists of, in words.
        seconds: of all of it.
    """

    name: str
    about: str
    seconds: float


class _EnoughError(Exception):
    """As many steps were measured as are needed."""


class _Steps(pl.Callback):
    """Measures the steps of a training, and then ends it by `_EnoughError`."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._tick()

    def on_train_epoch_end(self, *_: Any) -> None:
        self._tick()
        raise _EnoughError

    def _tick(self) -> None:
        self.times.append(time.monotonic())
        measured = self.times[WARM:]
        if len(measured) > LEAST and measured[-1] - measured[0] > ENOUGH:
            raise _EnoughError

    @property
    def seconds(self) -> float:
        """Of one step; the first ones count where there are no others."""
        times = self.times[WARM:] if len(self.times) > WARM + 1 else self.times
        return (times[-1] - times[0]) / max(1, len(times) - 1)


@dataclass(frozen=True)
class _Trial(TrainingStage):
    """A stage in which a search trains a few steps of an epoch; `found` is what was measured."""

    epoch: int = 0
    found: dict[str, float] = field(default_factory=dict)

    def fit(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        loaders: Any,
        checkpoint: Path,
        validate: bool = True,
    ) -> None:
        """See `nas.search.base.Stage`.

        Raises:
            _EnoughError: always.
        """
        steps, epochs = _Steps(), trainer.max_epochs or 1
        progress: Any = trainer.fit_loop.epoch_progress.current
        progress.processed = min(self.epoch, epochs - 1)
        trainer.callbacks.insert(0, steps)  # type: ignore[attr-defined]
        with suppress(_EnoughError):
            trainer.fit(module, loaders)
        self.found.update(
            step=steps.seconds, steps=float(trainer.num_training_batches), epochs=float(epochs)
        )
        if validate:
            loader = self.problem.data.val_dataloader()
            evaluate = self.trainer(1, []).validate
            _, self.found["validation"] = _timed(lambda: evaluate(module, loader, verbose=False))
        raise _EnoughError


def estimate(problem: SearchProblem) -> Iterator[Estimate]:
    """The parts of a run of `problem`, each with the time that it takes.

    The weights of the supernet are changed.

    Raises:
        UserError: see the search.
    """
    start = time.process_time()  # of the imports, above all
    if TrainingStage(problem, RunDir(Path())).trainer(1, []).world_size > 1:
        raise UserError("a trial runs on one device; give trainer.devices=1 to see that time")
    search = build_search(problem)
    search.prepare(problem)
    known: Callable[..., dict[str, Any]] = getattr(search, "work", lambda _: {})
    parts = known(problem)
    with tempfile.TemporaryDirectory() as name:
        run = RunDir(Path(name))
        if "supernet" in parts:
            yield _supernet(problem, run)
        training, files, once = _network(problem, run)
    if "ranking" in parts:
        yield _ranking(search, problem, parts["ranking"], training)
    count = problem.front
    about = f"{count} x {training:.1f} s, and {files:.1f} s for tests and files"
    yield Estimate("training of networks", about, count * (training + files))
    yield Estimate("start, page and pictures", "", start + once)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    return call(), time.monotonic() - began


def _supernet(problem: SearchProblem, run: RunDir) -> Estimate:
    """The training of the supernet: steps of its first epoch, and of its last."""
    measured = []
    for epoch in (0, 10**9):
        search, stage = build_search(problem), _Trial(problem, run, epoch=epoch)
        with suppress(_EnoughError):
            search.run(problem, stage)
        measured.append(stage.found)
    first, last = measured
    epochs = first["epochs"]
    # A warm-up of weights alone has other steps; else the first and the last epoch count alike.
    alphas = getattr(search, "leaves", "") == "alphas"
    share = getattr(search, "warmup_epochs", 0) / epochs if alphas else 0.5
    step = share * first["step"] + (1 - share) * last["step"]
    about = f"{epochs:.0f} epochs of {first['steps']:.0f} steps of {1000 * step:.0f} ms"
    each = first["steps"] * step + first.get("validation", 0.0)
    return Estimate("training of the supernet", about, epochs * each)


def _network(problem: SearchProblem, run: RunDir) -> tuple[float, float, float]:
    """Seconds of training a network drawn at random, of its files, and of what is done once."""
    arch = _drawn(problem, 1)[0]
    own = RunDir(run.front / arch.hash).create()
    with captured():  # what is not a training is the same for a network that is only evaluated
        _, once = _timed(Run(problem, RunDir(run.path / "once").create(), arch, train=False))
        result, files = _timed(Run(problem, own, arch, train=False))
    stage = _Trial(problem, own)
    trainer, training = stage.trainer(1, []), Run(problem, own, arch).training_of(arch)
    with suppress(_EnoughError):
        stage.fit(trainer, training, problem.data.weight_loader(), own.finetune_checkpoint)
    found, once = stage.found, max(0.0, once - files)  # the first imports what exports
    if problem.front > 1:
        (own.path / own.result.name).write_text(json.dumps({**result, "trained": True}))
        with suppress(UserError):  # no matplotlib
            once += _timed(lambda: write_files(run, "params", arch.hash))[1]
    epoch = found["steps"] * found["step"] + found["validation"]
    return training.epochs * epoch, files, once


def _ranking(search: Any, problem: SearchProblem, part: Part, training: float) -> Estimate:
    """Scoring as many networks as the search does; `training` is the time of a whole one."""
    ranking, count = getattr(search, "ranking", search), part.count
    if ranking.trains:
        each = training * part.work / problem.work().work  # it may train for fewer epochs
        about = f"{count:.0f} networks, each trained for {each:.1f} s"
        return Estimate("trials", about, count * each / ranking.workers)
    score, setup = _timed(lambda: ranking.evaluate(problem))
    # Ranked as a whole, a network has the first stages of the one before, see `PrefixTree`.
    space, generator = SearchSpace.of_problem(problem), torch.Generator().manual_seed(problem.seed)
    archs = list(space) if space.size <= count else _drawn(problem, RANKED + 1)
    seconds = 0.0
    for place in torch.randint(len(archs), (RANKED,), generator=generator).tolist():
        score(archs[place - 1])
        seconds += _timed(partial(score, archs[place]))[1]
    each = seconds / RANKED
    about = f"{count:.0f} networks of {1000 * each:.0f} ms"
    return Estimate("ranking", about, setup + count * each / ranking.workers)


def _drawn(problem: SearchProblem, count: int) -> list[Arch]:
    space, generator = SearchSpace.of_problem(problem), torch.Generator().manual_seed(problem.seed)
    return [space.draw(generator) for _ in range(count)]
