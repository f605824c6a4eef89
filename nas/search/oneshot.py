"""One-shot search: train one supernet for all its networks, path by path, then rank these."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import pytorch_lightning as pl
import torch
from pydantic import Field
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nas.arch import Option
from nas.config.schema import Count, NonNegative, Seed, Share, Whole, checked
from nas.cost.expected import Expected
from nas.cost.integer_program import IntegerProgram
from nas.decision import Decision, decisions, free, sample_path, split_parameters
from nas.errors import UserError
from nas.problem import SearchProblem
from nas.search.base import SearchResult, Stage, check_searchable
from nas.search.callbacks import LastCheckpoint, SpeedUp, Stopwatch
from nas.search.telemetry import TrainingTelemetry
from nas.search.trial_search import TrialSearch
from nas.supernet.choice import Relaxing
from nas.supernet.relax import constant
from nas.tasks import Task
from nas.tasks.classification import Classification
from nas.train import (
    Batch,
    OptimizerFactory,
    check_finite,
    frozen,
    log_scores,
    metrics_of,
    warmup_cosine,
)

Bins = Annotated[int, Field(ge=2, le=10**6)]
Choices = Mapping[str, Option]  # decision name -> option
Loss = Callable[[Tensor], Tensor]  # logits -> loss


class PathSampling:
    """Base of the path sampling strategies: which paths one step trains, and by which loss.

    Attributes:
        task: what the networks are for; set by the search before `start`.
    """

    task: Task = Classification()

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        """Called once before training; budgets play no part, as the supernet is to serve any."""
        self.supernet = supernet

    def start_epoch(self) -> None:
        """Called before each epoch: forget what a checkpoint does not hold."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        """For each path of a step: choose it in the supernet, then yield its loss.

        Args:
            loss: the loss by the labels of the batch.
            generator: of every draw.
        """
        raise NotImplementedError


class AllPaths(PathSampling):
    """All candidates at once, with equal weights (Bender et al. 2018, without path dropout).

    ``y = 1/K sum_k op_k(x)`` in every choice block.
    """

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        Relaxing("softmax", False, constant())(supernet)  # of alphas that stay equal

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        free(self.supernet)
        yield loss


@checked("search.path_sampling")
class UniformPath(PathSampling):
    """One path drawn uniformly (SPOS, Guo et al. 2020, section 3.2).

    With `bins`, a range of costs is drawn first and then a path of such a cost (their section 3.4).
    So small and large networks are trained as often as those of middling cost, which are most.

    Args:
        bins: number of bins of equal width between the least and the largest cost; None: no bins.
        cost: name of the cost that the bins divide.
        tries: draws for one bin; if all lie outside, the nearest of them is trained.
    """

    def __init__(self, bins: Bins | None = None, cost: str = "macs", tries: Count = 50) -> None:
        self.bins, self.cost, self.tries = bins, cost, tries

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        if self.bins is not None:
            self.priced = _known(costs, self.cost)
            least, largest = extremes(supernet, self.priced)
            ends = self.priced.of(least), self.priced.of(largest)
            self.edges = np.linspace(*ends, self.bins + 1).tolist()

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        if self.bins is None:
            sample_path(self.supernet, generator)
        else:
            self._sample_in_bin(self.bins, generator)
        yield loss

    def _sample_in_bin(self, bins: int, generator: torch.Generator) -> None:
        low, high = list(pairwise(self.edges))[int(torch.randint(bins, (), generator=generator))]
        nearest: tuple[float, Choices] | None = None
        for _ in range(self.tries):
            sample_path(self.supernet, generator)
            taken = {name: decision.best() for name, decision in decisions(self.supernet)}
            cost = self.priced.of(taken)
            outside = max(low - cost, cost - high, 0.0)
            if nearest is None or outside < nearest[0]:
                nearest = outside, taken
            if not outside:
                return
        assert nearest is not None
        choose(self.supernet, nearest[1])


class StrictFairness(PathSampling):
    """Train every option of every decision equally often (FairNAS, Chu et al. 2021, algorithm 1).

    A step goes through ``m`` paths on one batch, m the largest number of options. Each decision
    takes its options in the order of random permutations, one after another; where it has m
    options, each is taken exactly once in a step.
    """

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        self.start_epoch()

    def start_epoch(self) -> None:
        # A decision of fewer than m options is in the middle of a permutation.
        self.queues: dict[str, list[int]] = {name: [] for name, _ in decisions(self.supernet)}

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        own = dict(decisions(self.supernet))
        for _ in range(max(len(decision.options) for decision in own.values())):
            for name, decision in own.items():
                decision.choose(decision.options[self._next(name, decision, generator)])
            yield loss

    def _next(self, name: str, decision: Decision, generator: torch.Generator) -> int:
        queue = self.queues[name]
        if not queue:
            queue += torch.randperm(len(decision.options), generator=generator).tolist()
        return queue.pop()


@checked("search.path_sampling")
class Sandwich(PathSampling):
    """The largest network, random ones, and the smallest (BigNAS, Yu et al. 2020, section 3.1).

    The largest learns from the labels. The others learn from its logits, without gradient
    (in-place distillation): ``CE(student, softmax(teacher))``.

    Args:
        random: number of random networks in a step.
        cost: name of the cost by which networks are the largest and the smallest.
    """

    def __init__(self, random: Whole = 2, cost: str = "macs") -> None:
        self.random, self.cost = random, cost

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        self.least, self.largest = extremes(supernet, _known(costs, self.cost))

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        taught: list[Tensor] = []

        def by_labels(logits: Tensor) -> Tensor:
            taught.append(logits.detach())
            return loss(logits)

        def by_teacher(logits: Tensor) -> Tensor:
            return self.task.distillation(logits, taught[0])

        choose(self.supernet, self.largest)
        yield by_labels
        for _ in range(self.random):
            sample_path(self.supernet, generator)
            yield by_teacher
        choose(self.supernet, self.least)
        yield by_teacher


def _known(costs: Mapping[str, Expected], name: str) -> Expected:
    if name not in costs:
        raise UserError(f"search.path_sampling.cost={name} is not one of {sorted(costs)}")
    return costs[name]


def extremes(supernet: nn.Module, cost: Expected) -> tuple[Choices, Choices]:
    """The choices of the network of the least cost, and of that of the largest."""
    own = dict(decisions(supernet))
    found = []
    for optimum in (
        IntegerProgram(cost.options).minimise(cost.constraints),
        IntegerProgram(cost.options).maximise(cost.constraints),
    ):
        assert optimum is not None  # without limits every programme has a solution
        found.append({name: own[name].options[k] for name, k in optimum.choices.items()})
    return found[0], found[1]


def choose(supernet: nn.Module, choices: Choices) -> None:
    """Set every decision of `supernet` to one option."""
    for name, decision in decisions(supernet):
        decision.choose(choices[name])


@checked("search")
class OneShot(pl.LightningModule):
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
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.clip, self.label_smoothing, self.seed = clip, label_smoothing, seed
        self.ranking = ranking(supernet=supernet, seed=seed)
        # Not the global generator: under data parallel training every rank must draw alike here
        # while dropout must not.
        self.generator = torch.Generator()
        self.path_sampling = path_sampling
        self.task = path_sampling.task = task or Classification()
        self.metrics = metrics_of(self.task, ("train",))
        path_sampling.start(supernet, costs)

    def loaders(self, data: Any) -> Any:
        """The training loader this search reads."""
        return data.weight_loader()

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`; the constructor has checked the rest."""
        self.loaders(problem.data)
        self.ranking.prepare(problem)

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Train the supernet, then rank its networks inside the budgets with its weights."""
        watch, data = Stopwatch(), problem.data
        callbacks = [
            watch,
            SpeedUp(problem.speed, (data.batch_size, *data.input_shape)),
            TrainingTelemetry("supernet"),
            LastCheckpoint(stage.run.checkpoint),
        ]
        trainer = stage.trainer(self.epochs, callbacks)
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
        steps = max(1, int(self.trainer.estimated_stepping_batches) // self.epochs)
        schedule = warmup_cosine(self.warmup_epochs * steps, self.epochs * steps)
        return [optimizer], [LambdaLR(optimizer, schedule)]

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed + self.current_epoch + 1000 * self.global_rank)
        self.generator.manual_seed(self.seed + self.current_epoch)
        self.path_sampling.start_epoch()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        x, labels = batch
        optimizer = cast(LightningOptimizer, self.optimizers())
        optimizer.zero_grad()
        by_labels = self._loss(labels)
        # Nothing is learned of alphas here: without their gradient, paths run as they are.
        with frozen(split_parameters(self.supernet).alphas):
            for loss in self.path_sampling.paths(by_labels, self.generator):
                value = loss(self.supernet(x))
                self.manual_backward(check_finite(value, self.current_epoch))
        if self.clip:
            self.clip_gradients(optimizer.optimizer, self.clip, "norm")
        optimizer.step()
        cast(Any, self.lr_schedulers()).step()

    def _loss(self, labels: Tensor) -> Loss:
        def loss(logits: Tensor) -> Tensor:
            found = self.task.loss(logits, labels, self.label_smoothing)
            log_scores(self, "train", found, logits, labels)
            return found

        return loss

    def on_train_end(self) -> None:
        free(self.supernet)
