"""What an architecture is worth: trained alone for a short while, or with inherited weights."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.arch import Arch
from nas.cost.base import Expected
from nas.discretization import discretize
from nas.errors import InterruptedRunError, NotFiniteError
from nas.recalibrate import recalibrate
from nas.search.callbacks import LastCheckpoint
from nas.search.halving import checkpoint_of
from nas.search.paused import PauseAfter, paused
from nas.search.scoring import Scoring
from nas.train import Training, interruptible, strategy_of
from nas.values import Count, Whole, checked


class Made(Protocol):
    """What a run is made of, see `nas.plan.Plan`."""

    data: Any
    finetune: Callable[..., Training]
    trainer: Callable[..., pl.Trainer]
    seed: int


class Searched(Protocol):
    """A supernet with its costs and budgets, see `nas.plan.Problem`."""

    @property
    def plan(self) -> Any: ...

    @property
    def supernet(self) -> nn.Module: ...

    @property
    def space(self) -> str: ...

    @property
    def costs(self) -> Mapping[str, Expected]: ...

    @property
    def budgets(self) -> Mapping[str, float]: ...

    def build(self) -> nn.Module:
        """A supernet as the seed initialises it."""
        ...


@checked("search.evaluate")
@dataclass(frozen=True)
class StandAlone:
    """Trains each architecture from fresh weights by the recipe `finetune`, then validates it.

    The weights start as the run's seed initialises the space, and batches come in the run's
    order: the same architecture has the same scores, whoever asks and when.

    Args:
        epochs: instead of those of the recipe.
        test: also evaluate the test part, for a table of the truth; never to search by.
    """

    epochs: Count | None = None
    test: bool = False

    def __call__(self, problem: Searched) -> Scoring:
        """The function that scores architectures of `problem`."""
        made: Made = problem.plan
        fresh = problem.build()

        def score(arch: Arch) -> Mapping[str, float]:
            module = self._module(made, fresh, arch, self.epochs)
            trainer = quiet_trainer(made, module.epochs)
            fit(trainer, module, made.data.weight_loader())
            return self._evaluated(made, trainer, module)

        return score

    def in_rungs(self, epochs: int, folder: Path, problem: Searched) -> Scoring:
        """As a call, of trainings of `epochs` that pause: ``(arch, up to epoch) -> scores``.

        Each goes on from its own checkpoint in `folder`, where there is one.
        """
        made: Made = problem.plan
        fresh = problem.build()

        def score(arch: Arch, until: int) -> Mapping[str, float]:
            module = self._module(made, fresh, arch, epochs)
            checkpoint = checkpoint_of(folder, arch)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            done, state = paused(checkpoint, until)
            trainer = quiet_trainer(made, epochs, [PauseAfter(until), LastCheckpoint(checkpoint)])
            if done == until:  # and what it gave was not recorded, because the run was killed
                module.load_state_dict(state)
            else:
                loader = made.data.weight_loader()
                fit(trainer, module, loader, checkpoint if done else None)
            return self._evaluated(made, trainer, module)

        return score

    def _module(self, made: Made, fresh: nn.Module, arch: Arch, epochs: int | None) -> Training:
        options = {} if epochs is None else {"epochs": epochs}
        return made.finetune(network=discretize(fresh, arch), seed=made.seed, **options)

    def _evaluated(self, made: Made, trainer: pl.Trainer, module: Training) -> dict[str, float]:
        with interruptible():
            trainer.validate(module, made.data.val_dataloader(), verbose=False)
            metrics = dict(trainer.callback_metrics)
            if self.test:
                trainer.test(module, made.data.test_dataloader(), verbose=False)
                metrics |= trainer.callback_metrics
        wanted = ("val_acc", "val_loss", "test_acc", "test_loss")
        return {name: float(metrics[name]) for name in wanted if name in metrics}


@checked("search.ranking.evaluate")
@dataclass(frozen=True)
class Inherited:
    """Validates each architecture with the weights it has in the trained supernet.

    Args:
        calibration: training images that BatchNorm is measured anew on, for each architecture
            (the supernet's own statistics are those of a mixture); 0: as the supernet left it.
        raw: also record ``raw_val_acc`` and ``raw_val_loss``, without that measurement.
    """

    calibration: Whole = 1024
    raw: bool = False

    def __call__(self, problem: Searched) -> Scoring:
        """The function that scores architectures of `problem`."""
        made: Made = problem.plan
        device = quiet_trainer(made, 1).strategy.root_device
        supernet = problem.supernet.to(device)
        batches: list[Tensor] = []
        if self.calibration:
            loader = made.data.calibration_loader(self.calibration)
            batches = [x.to(device) for x, _ in loader]

        def score(arch: Arch) -> Mapping[str, float]:
            network = discretize(supernet, arch).eval()
            metrics: dict[str, float] = {}
            if self.raw:
                raw = validated(network, made.data.val_dataloader(), device)
                metrics = {f"raw_{name}": value for name, value in raw.items()}
            if batches:
                recalibrate(network, batches)
            return {**validated(network, made.data.val_dataloader(), device), **metrics}

        return score


def validated(
    network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> dict[str, float]:
    """``val_acc`` and ``val_loss`` (cross-entropy) over all images of a loader.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    right, loss, seen = 0, 0.0, 0
    with torch.inference_mode():
        for x, labels in loader:
            logits, labels = network(x.to(device)), labels.to(device)
            right += int((logits.argmax(-1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            seen += len(labels)
    if not isfinite(loss):
        raise NotFiniteError(f"the validation loss is {loss}")
    return {"val_acc": right / seen, "val_loss": loss / seen}


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
            trainer.fit(module, loaders, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise InterruptedRunError("interrupted")


def quiet_trainer(made: Made, epochs: int, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """A trainer that leaves nothing behind, but for what `callbacks` do, and shows nothing.

    It is of one device: of a distributed run, this process's own.
    """
    return made.trainer(
        **_own_device(made.trainer),
        max_epochs=epochs,
        logger=False,
        callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks),  # else Lightning refuses ours
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders know their rank
    )


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
