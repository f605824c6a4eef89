"""Scores of an architecture: trained from scratch, or with the weights of a supernet."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import pytorch_lightning as pl
from torch import nn

from nas.arch import Arch
from nas.config.calls import called
from nas.config.schema import Count, Whole, checked
from nas.discretization import discretize
from nas.epochs import by_epochs
from nas.errors import InterruptedRunError
from nas.inputs import Inputs, device_of, moved, zeros
from nas.problem import SearchProblem
from nas.search.prefix_tree import PrefixTree
from nas.supernet.speed import prepare_network
from nas.tasks.classification import task_of
from nas.train import Training, interruptible, strategy_of

# What scores: ``(arch) -> metrics``, or ``(arch, epochs) -> metrics`` of a training in rungs.
Scoring = Callable[..., Mapping[str, float]]


@checked("search.evaluate")
@dataclass(frozen=True)
class TrainFromScratch:
    """Trains each architecture from fresh weights by the recipe `finetune`, then validates it.

    The weights start as the run's seed initialises the space, and batches come in the run's
    order: the same architecture has the same scores, whoever asks and when.

    Args:
        epochs: instead of those of the recipe.
        test: also evaluate the test part, for a table of the truth; never to search by.
    """

    epochs: Count | None = None
    test: bool = False

    def metrics(self, problem: SearchProblem) -> list[str]:
        """Names of the scores that a search may judge by."""
        return score_names(problem, "val")

    def __call__(self, problem: SearchProblem) -> Scoring:
        """The function that scores architectures of `problem`."""
        fresh, epochs = problem.build(), self.epochs_of(problem)

        def score(arch: Arch) -> Mapping[str, float]:
            module = self.training_of(problem, fresh, arch, epochs)
            trainer = quiet_trainer(problem, module.epochs)
            fit(trainer, module, problem.data.weight_loader())
            return self.scores(problem, trainer, module)

        return score

    def epochs_of(self, problem: SearchProblem) -> int | None:
        """Epochs of each training; None: those of the recipe."""
        return self.epochs

    def training_of(
        self, problem: SearchProblem, fresh: nn.Module, arch: Arch, epochs: int | None
    ) -> Training:
        """The training of `arch` from the weights of the supernet `fresh`; None: own epochs."""
        options = {} if epochs is None else {"epochs": epochs}
        network, known = discretize(fresh, arch), {"task": task_of(problem.data)}
        prepare_network(network, problem.speed, sample_of(problem))
        made = called(problem.finetune, known, network=network, seed=problem.seed, **options)
        return cast(Training, made)

    def scores(
        self, problem: SearchProblem, trainer: pl.Trainer, module: Training
    ) -> dict[str, float]:
        """Validation scores, and with `test` those of the test part."""
        with interruptible():
            trainer.validate(module, problem.data.val_dataloader(), verbose=False)
            metrics = dict(trainer.callback_metrics)
            if self.test:
                trainer.test(module, problem.data.test_dataloader(), verbose=False)
                metrics |= trainer.callback_metrics
        names = [*score_names(problem, "val"), *score_names(problem, "test")]
        return {name: float(metrics[name]) for name in names if name in metrics}


@checked("search.evaluate")
@dataclass(frozen=True)
class ShortTraining(TrainFromScratch):
    """Trains each architecture from fresh weights for a part of the recipe's epochs.

    The recipe's own schedule is shortened with it. A few dozen such scores and the model of
    `nas.search.model` tell which of all networks are worth their whole training.

    Args:
        epochs: None: a quarter of those of the recipe, and at least two; after one, the warm-up of
            the learning rate has hardly ended.

    Attributes:
        noise: see `WeightSharing`.
        usual_trials: see `WeightSharing`.
    """

    noise: ClassVar[float] = 0.3
    usual_trials: ClassVar[int] = 32

    def epochs_of(self, problem: SearchProblem) -> int | None:
        """See `TrainFromScratch`."""
        return self.epochs or max(2, round(problem.epochs / 4))


@checked("search.ranking.evaluate")
@dataclass(frozen=True)
class WeightSharing:
    """Validates each architecture with the weights it has in the trained supernet.

    Args:
        calibration: training images that BatchNorm is measured anew on, for each architecture
            (the supernet's own statistics are those of a mixture); 0: keep the supernet's.
        raw: also record ``raw_val_acc`` and ``raw_val_loss``, without that measurement.
        kept_mb: MB of activations that are kept of the network before, so that equal first layers
            are not run again, see `nas.search.prefix_tree`; 0: none; twice as many where `raw`.

    Attributes:
        noise: by how much a network trained alone departs from its score here, as a variance
            beside 1, that of the scores. No ranking tells it, as all of its networks share their
            weights; it is that of experiments/ground_truth (tau about .65).
        usual_trials: how many networks are scored where no number is given and not all are.
    """

    noise: ClassVar[float] = 0.3
    usual_trials: ClassVar[int] = 100

    calibration: Whole = 1024
    raw: bool = False
    kept_mb: Whole = 1000

    def metrics(self, problem: SearchProblem) -> list[str]:
        """Names of the scores that a search may judge by."""
        return score_names(problem, "val")

    def __call__(self, problem: SearchProblem) -> Scoring:
        """The function that scores architectures of `problem`."""
        device = device_of(sample_of(problem))
        batches: list[Inputs] = []
        if self.calibration:
            loader = problem.data.calibration_loader(self.calibration)
            batches = [moved(x, device) for x, _ in loader]
        calibrated, plain = (
            PrefixTree(
                problem.supernet.to(device),
                task_of(problem.data),
                problem.data.val_dataloader,
                calibration,
                device,
                problem.speed,
                self.kept_mb * 10**6,
            )
            for calibration in (batches, ())
        )

        def score(arch: Arch) -> Mapping[str, float]:
            raw = {f"raw_{name}": value for name, value in plain(arch).items()}
            return {**calibrated(arch), **raw}

        return score if self.raw else calibrated


def score_names(problem: SearchProblem, split: str) -> list[str]:
    """Names of the scores of a split, those of the task's metrics and of its loss."""
    return [f"{split}_{name}" for name in (*task_of(problem.data).metrics(), "loss")]


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, loaders: Any, checkpoint: Path | None = None
) -> None:
    """Train without validating, from `checkpoint` on where there is one.

    Raises:
        InterruptedRunError: by Ctrl-C, or a scheduler's signal.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*but have no `val_dataloader`.*")
        with interruptible():
            loaders, _ = by_epochs(trainer, module, loaders)
            trainer.fit(module, loaders, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise InterruptedRunError("interrupted")


def quiet_trainer(
    problem: SearchProblem, epochs: int, callbacks: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """A trainer on one device that prints nothing and writes no files but those of `callbacks`.

    In a distributed run the device is this process's own.
    """
    return problem.trainer(
        **_own_device(problem.trainer),
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),  # else Lightning refuses ours
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders know their rank
    )


def sample_of(problem: SearchProblem) -> Inputs:
    """Two empty samples, on the device where this process trains."""
    device = quiet_trainer(problem, 1).strategy.root_device
    return zeros(problem.data.example, 2, device)


def _own_device(trainer: Callable[..., pl.Trainer]) -> dict[str, Any]:
    given = getattr(trainer, "keywords", {})
    if not strategy_of(given.get("strategy", "auto"), given.get("devices", 1)):
        return {}
    root = trainer(logger=False, enable_checkpointing=False).strategy.root_device
    return {
        "strategy": "auto",
        "num_nodes": 1,
        "devices": 1 if root.index is None else [root.index],
    }
