"""Successive halving: many networks trained briefly, the best of them longer, and so on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
from pydantic import Field

from nas.arch import Arch
from nas.artifacts.reading import read_tensors
from nas.config.schema import Count, checked
from nas.errors import UserError
from nas.problem import SearchProblem
from nas.search.callbacks import LastCheckpoint
from nas.search.evaluate import Scoring, TrainFromScratch, fit, quiet_trainer
from nas.search.scoring import Outcome, Outcomes
from nas.search.space import SearchSpace
from nas.search.trials import Rung, Trial, TrialLog

Eta = Annotated[int, Field(ge=2, le=1000)]  # one in so many goes on

FOLDER = "rungs"  # in that of the run: checkpoints of the networks that may go on


@checked("search.halving")
@dataclass(frozen=True)
class Halving:
    """Successive halving of each batch asked for (Jamieson and Talwalkar 2016, algorithm 1).

    All networks of a batch are trained up to ``epochs[0]``, the best ``1 / eta`` of them on to
    ``epochs[1]``, and so on, at least one each time. The schedule of the learning rate is that of
    the longest training, so a network that reaches it is what unbroken training gives. The
    searcher is told what each network had when it was left behind.

    Args:
        eta: of how many one goes on.
        epochs: where trainings pause and are compared, rising; None: no halving.

    Raises:
        UserError: a value out of its range.
    """

    eta: Eta = 3
    epochs: Sequence[Count] | None = None

    def __post_init__(self) -> None:
        if self.epochs is None:
            return
        shown = f"search.halving.epochs={list(self.epochs)}"
        if len(self.epochs) < 2:
            raise UserError(f"{shown} must be at least two, e.g. [1, 3, 9], or null (no halving)")
        if any(b <= a for a, b in zip(self.epochs[:-1], self.epochs[1:], strict=True)):
            raise UserError(f"{shown} must rise, e.g. [1, 3, 9]")

    @property
    def rungs(self) -> Sequence[int]:
        """Where trainings pause; none without halving."""
        return self.epochs or ()

    @property
    def cohort(self) -> int:
        """The smallest batch of which exactly one network, or one in `eta`, reaches the end."""
        return int(self.eta ** max(0, len(self.rungs) - 1))

    def evaluation(
        self,
        outcomes: Outcomes,
        space: SearchSpace,
        log: TrialLog,
        each: Callable[[Trial], None],
        metric: str,
        folder: Path,
    ) -> Callable[[Sequence[Arch]], None]:
        """Scores a batch; a line of `log` for each rung that a network reaches.

        What `log` knows of a network is not done again, so a batch may be scored a second time.

        Args:
            metric: the score that decides who goes on.
            folder: of the checkpoints; those no longer needed are removed.
        """

        def evaluate(archs: Sequence[Arch]) -> None:
            racing = list(archs)
            for place, epochs in enumerate(self.rungs):
                behind = [a for a in racing if len(self._reached(log.get(a))) <= place]
                for outcome in outcomes([(arch, epochs) for arch in behind]):
                    trial = self._trial(outcome, log.get(outcome.arch), space)
                    log.append(trial)
                    each(trial)
                last = place == len(self.rungs) - 1
                ahead = [] if last else self._best(racing, place, log, metric)
                for arch in set(racing) - set(ahead):
                    checkpoint_of(folder, arch).unlink(missing_ok=True)
                racing = ahead

        return evaluate

    def _reached(self, trial: Trial | None) -> list[Rung]:
        """The rungs on record, as far as they are those of this halving."""
        found: list[Rung] = []
        for rung, epochs in zip(trial.rungs if trial else (), self.rungs, strict=False):
            if rung.epochs != epochs:
                break
            found.append(rung)
        return found

    def _trial(self, outcome: Outcome, before: Trial | None, space: SearchSpace) -> Trial:
        epochs: int = outcome.job[1]
        rungs = [rung for rung in self._reached(before) if rung.epochs < epochs]
        spent = (before.seconds, before.cpu_seconds) if before and rungs else (0.0, 0.0)
        return Trial(
            outcome.arch,
            outcome.metrics,
            space.price(outcome.arch),
            spent[0] + outcome.seconds,
            spent[1] + outcome.cpu_seconds,
            outcome.message,
            (*rungs, Rung(epochs, outcome.metrics)),
        )

    def _best(self, racing: Sequence[Arch], place: int, log: TrialLog, metric: str) -> list[Arch]:
        """Those that go on, in the order of `racing`."""
        scores = {}
        for arch in racing:
            trial = log.known[arch.hash]
            value = replace(trial, metrics=trial.rungs[place].metrics).value(metric)
            if isfinite(value):
                scores[arch] = value
        taken = sorted(scores, key=lambda arch: scores[arch])  # stable: of equals the first asked
        kept = set(taken[: max(1, len(racing) // self.eta)])
        return [arch for arch in racing if arch in kept]


def in_rungs(
    evaluate: TrainFromScratch, epochs: int, folder: Path, problem: SearchProblem
) -> Scoring:
    """A function ``(arch, up to epoch) -> scores`` that trains in parts.

    Each training goes on from its own checkpoint in `folder`, where there is one.

    Args:
        epochs: of an unbroken training, which the schedule of the learning rate is for.
    """
    fresh = problem.build()

    def score(arch: Arch, until: int) -> Any:
        module = evaluate.training_of(problem, fresh, arch, epochs)
        checkpoint = checkpoint_of(folder, arch)
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        done, state = paused(checkpoint, until)
        trainer = quiet_trainer(problem, epochs, [PauseAfter(until), LastCheckpoint(checkpoint)])
        if done == until:  # and its scores were not recorded, because the run was killed
            module.load_state_dict(state)
        else:
            loader = problem.data.weight_loader()
            fit(trainer, module, loader, checkpoint if done else None)
        return evaluate.scores(problem, trainer, module)

    return score


class PauseAfter(pl.Callback):
    """Pauses a training after `epochs` of its epochs.

    The schedule of the learning rate is that of the whole training, so that going on later gives
    what unbroken training gives.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 >= self.epochs


def paused(checkpoint: Path, until: int) -> tuple[int, dict[str, Any]]:
    """Epochs done and the module's state; 0 epochs where there is no checkpoint to go on with.

    A checkpoint beyond `until` is not gone on with: its network has been trained for too long.
    """
    try:
        saved = read_tensors(checkpoint)
        done, state = int(saved["epoch"]) + 1, dict(saved["state_dict"])
    except Exception:  # missing, torn, or something else
        return 0, {}
    return (done, state) if done <= until else (0, {})


def checkpoint_of(folder: Path, arch: Arch) -> Path:
    """Where the training of `arch` pauses."""
    return folder / f"{arch.hash}.ckpt"
