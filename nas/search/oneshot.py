"""One-shot search: train one supernet for all its networks, path by path, then rank these."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nas.config.calls import called
from nas.config.schema import Count, NonNegative, Seed, Share, checked
from nas.cost.expected import Expected
from nas.decision import free, split_parameters
from nas.epochs import Trained, plain
from nas.inputs import zeros
from nas.problem import SearchProblem
from nas.progress import Part, current
from nas.search.base import SearchResult, Stage, check_searchable
from nas.search.callbacks import LastCheckpoint, SpeedUp, Stopwatch
from nas.search.path_sampling import Loss, PathSampling
from nas.search.telemetry import TrainingTelemetry
from nas.search.trial_search import TrialSearch
from nas.tasks import Task, check_finite
from nas.tasks.classification import Classification
from nas.train import (
    Batch,
    OptimizerFactory,
    frozen,
    warmup_cosine,
)


@checked("search")
class OneShot(Trained):
    """Train the weights of a supernet on sampled paths; alphas stay as they are, equal.

    One optimizer step on one batch adds up the gradients of several paths. What no path of a step
    has run has no gradient, and the optimizer leaves it alone.

    Args:
        supernet: a model that holds decisions.
        costs: cost name -> exact cost of `supernet`.
        path_sampling: which paths a step trains.
        ranking: ``supernet, seed -> TrialSearch``, which ranks the networks afterwards.
        optimizer: parameters -> optimizer.
        epochs: of training, by a cosine schedule.
        warmup_epochs: linear warm-up before it, in (parts of) epochs.
        clip: largest norm of the gradient of a step; 0 does not clip.
        label_smoothing: of the targets, see `Task.loss`.
        seed: of every random draw; each epoch starts from ``seed + epoch``.
        task: what the networks are for; None: classification.

    Raises:
        UserError: nothing to search, or a value out of its range.
    """

    leaves: ClassVar[Literal["supernet"]] = "supernet"

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        path_sampling: PathSampling,
        ranking: Callable[..., TrialSearch],
        optimizer: OptimizerFactory,
        epochs: Count,
        warmup_epochs: NonNegative = 1.0,
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        check_searchable(supernet)
        self.automatic_optimization = False
        self.supernet, self.optimizer_factory = supernet, optimizer
        self.alphas = split_parameters(supernet).alphas
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.clip, self.label_smoothing, self.seed = clip, label_smoothing, seed
        # Not the global generator: under data parallel training every rank must draw alike here
        # while dropout must not.
        self.generator = torch.Generator()
        self.path_sampling = path_sampling
        self.task = path_sampling.task = task or Classification()
        known = {"task": self.task}
        self.ranking: TrialSearch = called(ranking, known, supernet=supernet, seed=seed)
        self.score_by(self.task, ("train",))
        path_sampling.start(supernet, costs)

    def loaders(self, data: Any) -> Any:
        """The training loader this search reads."""
        return data.weight_loader()

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`; the constructor has checked the rest."""
        self.loaders(problem.data)
        self.ranking.prepare(problem)

    def work(self, problem: SearchProblem) -> dict[str, Part]:
        """What is to be done, for the time that it takes."""
        train, _ = problem.images
        work = 3 * train * self.epochs * self.path_sampling.networks
        return {"supernet": Part(1, work), **self.ranking.work(problem)}

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Train the supernet, then rank its networks inside the budgets with its weights."""
        watch, data = Stopwatch(), problem.data
        callbacks = [
            watch,
            SpeedUp(problem.speed, zeros(data.example, data.batch_size)),
            TrainingTelemetry("supernet"),
            LastCheckpoint(stage.run.checkpoint),
        ]
        trainer = stage.trainer(self.epochs, callbacks)
        current().begin("supernet", "training supernet")
        # No validation: its networks are ranked afterwards, each by itself.
        stage.fit(trainer, self, self.loaders(data), stage.run.checkpoint, validate=False)
        ranked = self.ranking.run(problem, stage)
        return replace(
            ranked,
            seconds=watch.seconds + ranked.seconds,
            cpu_seconds=watch.cpu_seconds + ranked.cpu_seconds,
        )

    def configure_optimizers(self) -> Any:
        weights = split_parameters(self.supernet).weights
        optimizer = self.optimizer_factory([p for p in weights if p.requires_grad])
        steps = self.steps_of(self.epochs)
        schedule = warmup_cosine(self.warmup_epochs * steps, self.epochs * steps)
        return [optimizer], [LambdaLR(optimizer, schedule)]

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed + self.current_epoch + 1000 * self.global_rank)
        self.generator.manual_seed(self.seed + self.current_epoch)
        self.path_sampling.start_epoch()

    def step(self, batch: Batch, index: int) -> None:
        """See `Trained`."""
        x, labels = batch
        (optimizer,) = self.moving()
        optimizer.zero_grad()
        by_labels = self._loss(labels)
        # Nothing is learned of alphas here: without their gradient, paths run as they are.
        with frozen(self.alphas):
            self.path_sampling.add_gradients(x, by_labels, self.generator, self._backward)
        self.clip_norm(plain(optimizer), self.clip)
        optimizer.step()
        cast(Any, self.lr_schedulers()).step()

    def _backward(self, loss: Tensor) -> None:
        self.back(check_finite(loss, self.current_epoch))

    def _loss(self, labels: Tensor) -> Loss:
        def loss(logits: Tensor) -> Tensor:
            found = self.task.loss(logits, labels, self.label_smoothing)
            self.score("train", found, logits, labels)
            return found

        return loss

    def on_train_end(self) -> None:
        free(self.supernet)
