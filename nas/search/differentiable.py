"""The base of differentiable search: weights and alphas trained together by gradient descent."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import ceil
from typing import Any, ClassVar, Literal, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nas.arch import Arch
from nas.config.schema import Count, NonNegative, Seed, Share, Whole, checked
from nas.cost.expected import Expected
from nas.decision import decisions, free, resample, split_parameters
from nas.epochs import Trained, plain
from nas.errors import UserError
from nas.inputs import run, zeros
from nas.objective import Objective
from nas.problem import SearchProblem
from nas.progress import Part, current
from nas.ranks import averaged, broadcast
from nas.recalibrate import kept_statistics
from nas.search.base import ScoredArch, SearchResult, Stage, agreed, check_searchable
from nas.search.callbacks import (
    DiscretizationGap,
    LastCheckpoint,
    SpeedUp,
    Stopwatch,
)
from nas.search.guards import StopWhenStable
from nas.search.path_sampling import AllPaths, PathSampling, UniformPath
from nas.search.regularizers import Perturbing, Regularizer
from nas.search.telemetry import SearchTelemetry
from nas.selection import front, log_probability
from nas.supernet.choice import AuxiliarySkip
from nas.supernet.relax import Schedule, constant
from nas.tasks import Task, check_finite
from nas.tasks.classification import Classification
from nas.train import (
    Batch,
    OptimizerFactory,
    frozen,
    warmup_cosine,
)

FRONT = 8  # architectures of the front that a search ends with, at most
UPDATES = 20  # of the objective's strengths in a search, at least


@checked("search")
class DifferentiableSearch(Trained):
    """Base of the differentiable searches: phases, optimizers, schedules, logging.

    The first `warmup_epochs` train weights alone, on sampled paths, so that no candidate is judged
    before it has learned. Then alphas move, while tau follows `temperature`, and weights too unless
    they are frozen. The rate of the weights ends with their training.

    The objective adapts its strengths once an epoch, and more often in a search of few epochs.
    A subclass says which loaders it reads, and defines `step`.

    Args:
        supernet: a model that holds decisions.
        costs: name -> expected cost of `supernet`, which `objective` joins to the loss.
        objective: task loss and costs -> the loss that alphas descend.
        weight_optimizer, alpha_optimizer: parameters -> optimizer.
        epochs: all epochs, warm-up included.
        warmup_epochs: epochs of weights alone.
        path_sampling: which paths a step of the warm-up trains; None: one drawn uniformly.
        freeze_weights: train weights during warm-up only. BatchNorm goes on using batches.
        temperature: progress of the alpha phase in [0, 1] -> tau.
        clip: largest norm of the weights' gradient; 0 does not clip.
        label_smoothing: in the weights' loss only, as in ProxylessNAS.
        seed: of every random draw; each epoch starts from ``seed + epoch``.
        targets: cost name -> budget, for the objectives that know budgets.
        regularizers: name -> a term that alphas descend too.
        perturbation: of alphas while weights learn.
        task: what the networks are for; None: classification.

    Raises:
        UserError: nothing to search, a number out of its range, epochs that leave no time for
            alphas, or for weights that are then frozen, or budgets that the objective cannot work
            with.
    """

    leaves: ClassVar[Literal["alphas"]] = "alphas"
    hidden = ("alpha",)

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        objective: Objective,
        weight_optimizer: OptimizerFactory,
        alpha_optimizer: OptimizerFactory,
        epochs: Count,
        warmup_epochs: Whole = 0,
        path_sampling: PathSampling | None = None,
        freeze_weights: bool = False,
        temperature: Schedule | None = None,
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
        targets: Mapping[str, float] | None = None,
        regularizers: Mapping[str, Regularizer] | None = None,
        perturbation: Perturbing | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        check_searchable(supernet)
        if warmup_epochs >= epochs:
            raise UserError(
                f"search.warmup_epochs={warmup_epochs} must be below "
                f"epochs={epochs}: alphas are searched in the epochs after it. Give both, e.g. "
                f"search.epochs={epochs} search.warmup_epochs={epochs // 3}"
            )
        if freeze_weights and not warmup_epochs:
            raise UserError(
                "search.freeze_weights=true needs search.warmup_epochs of at least 1: weights "
                "would never be trained"
            )
        if isinstance(path_sampling, AllPaths):
            raise UserError(
                "search.path_sampling: a warm-up trains sampled paths, and AllPaths samples none. "
                "Take StrictFairness, UniformPath or Sandwich"
            )
        self.automatic_optimization = False
        self.supernet, self.costs, self.targets = supernet, dict(costs), dict(targets or {})
        self.objective = objective
        # Here, where a wrong budget ends the run before it has begun; a checkpoint is loaded later.
        objective.start({name: cost.mean() for name, cost in self.costs.items()}, self.targets)
        self.weight_factory, self.alpha_factory = weight_optimizer, alpha_optimizer
        self.epochs, self.warmup_epochs = epochs, warmup_epochs
        self.freeze_weights, self.path_sampling = freeze_weights, path_sampling or UniformPath()
        self.temperature = temperature or constant()
        self.clip, self.label_smoothing, self.seed = clip, label_smoothing, seed
        self.parameters_of = split_parameters(supernet)
        self.task = self.path_sampling.task = task or Classification()
        self.path_sampling.start(supernet, self.costs)
        self.score_by(self.task, ("train", "alpha", "supernet_val"))
        self.regularizers, self.perturbation = dict(regularizers or {}), perturbation
        self.done = 0.0  # share of the steps in which alphas move
        self.skips = tuple(m for m in supernet.modules() if isinstance(m, AuxiliarySkip))
        # Not the global generator: under data parallel training every rank must draw alike here
        # while dropout must not.
        self.generator = torch.Generator()

    def loaders(self, data: Any) -> dict[str, Any]:
        """The training loaders that this search reads, by name."""
        raise NotImplementedError

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`; the constructor has checked the rest."""
        self.loaders(problem.data)  # a batch larger than a split is an error now

    def work(self, problem: SearchProblem) -> dict[str, Part]:
        """What is to be done, for the time that it takes."""
        train, val = problem.images
        options = [len(decision.options) for _, decision in decisions(self.supernet)]
        mixed = sum(options) / len(options)  # candidates that a step runs, unless paths are sampled
        alphas = self.epochs - self.warmup_epochs
        work = 3 * train * (self.warmup_epochs + 2 * mixed * alphas) + 2 * val * self.epochs
        return {"supernet": Part(1, work)}

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Train weights and alphas; the result is the front of the most probable architectures."""
        data, watch = problem.data, Stopwatch()
        kept = (f"supernet_val_{self.task.primary}", "supernet_val_loss")
        saving = LastCheckpoint(stage.run.checkpoint, kept)
        callbacks = [
            watch,
            DiscretizationGap(),
            StopWhenStable(problem.stable_epochs),
            *problem.guards.values(),
            SpeedUp(problem.speed, zeros(data.example, data.batch_size)),
            SearchTelemetry(),
            saving,
        ]
        trainer = stage.trainer(self.epochs, callbacks)
        current().begin("supernet", "search")
        stage.fit(trainer, self, self.loaders(data), stage.run.checkpoint)
        free(self.supernet)
        cost = next(iter(problem.cost_models), "params")
        selected = agreed(problem.select)
        return SearchResult(
            selected,
            probable_front(problem, selected, cost),
            "log_probability",
            cost,
            probable_archs(problem, cost, problem.front) if problem.front > 1 else [selected],
            dict(saving.metrics),
            watch.seconds,
            watch.cpu_seconds,
        )

    @property
    def warming_up(self) -> bool:
        """Whether this epoch trains weights alone."""
        return self.current_epoch < self.warmup_epochs

    def configure_optimizers(self) -> Any:
        weights, alphas = self.parameters_of
        weight_optimizer = self.weight_factory([p for p in weights if p.requires_grad])
        learning = self.warmup_epochs if self.freeze_weights else self.epochs
        schedule = LambdaLR(weight_optimizer, warmup_cosine(0, learning, floor=0.04))
        return [weight_optimizer, self.alpha_factory(alphas)], [schedule]

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(self.seed + self.current_epoch + 1000 * self.global_rank)
        self.generator.manual_seed(self.seed + self.current_epoch)
        self.path_sampling.start_epoch()
        if not self.warming_up:
            free(self.supernet)

    def before_step(self, index: int) -> None:
        """Set what changes over the search."""
        # By step, so that a search of a single alpha epoch anneals too.
        self.done = max(0.0, self.progress(index))
        tau = self.temperature(self.done)
        for _, decision in decisions(self.supernet):
            decision.tau.fill_(tau)
        for skip in self.skips:
            skip.advance(self.done)

    def after_step(self, index: int) -> None:
        """Let the objective adapt, several times in an epoch where there are few."""
        if self.warming_up:
            return
        often = ceil(UPDATES / (self.epochs - self.warmup_epochs))  # updates in this epoch
        batches = self.steps
        if (index + 1) * often // batches > index * often // batches:
            with torch.no_grad():
                self.objective.update(self.noise_free_costs(), self.progress(index + 1))

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        cast(Any, self.lr_schedulers()).step()
        costs = self.noise_free_costs().items()
        self.record({f"cost_{name}": c.detach().float() for name, c in costs})

    def progress(self, batches: int) -> float:
        """The share of the steps in which alphas move, done after `batches` of this epoch."""
        epoch = self.current_epoch - self.warmup_epochs + batches / self.steps
        return epoch / (self.epochs - self.warmup_epochs)

    def noise_free_costs(self) -> dict[str, Tensor]:
        """Expected costs at the present alphas, without the noise of the last draw."""
        free(self.supernet)  # every step draws anew, so none reads what is forgotten here
        return {name: cost() for name, cost in self.costs.items()}

    def draw(self) -> None:
        """Draw the noise of the relaxation for one step."""
        resample(self.supernet, self.generator)

    def step_weights(self, batch: Batch) -> None:
        """Train the weights on one batch, unless they are frozen by now; alphas stay."""
        optimizer, _ = self.moving()
        with frozen(self.parameters_of.alphas):
            if self.warming_up:
                self._warm_up(optimizer, batch)
            elif not self.freeze_weights:
                self._descend(optimizer, lambda: self._weight_loss(batch))

    def _warm_up(self, optimizer: Optimizer, batch: Batch) -> None:
        x, labels = batch
        optimizer.zero_grad()
        self.path_sampling.add_gradients(
            x, lambda logits: self._scored(logits, labels, "train"), self.generator, self._backward
        )
        self._clip(optimizer)
        optimizer.step()

    def _backward(self, loss: Tensor) -> None:
        self.back(check_finite(loss, self.current_epoch))

    def _weight_loss(self, batch: Batch) -> Tensor:
        """The task loss, at perturbed alphas if there is a perturbation."""
        if self.perturbation is None:
            return self.task_loss(batch, "train")
        alphas = self.parameters_of.alphas
        slopes = partial(self._alpha_slopes, batch)
        with self.perturbation.around(alphas, slopes, self.done, self.generator):
            return self.task_loss(batch, "train")

    def _alpha_slopes(self, batch: Batch) -> Sequence[Tensor]:
        with kept_statistics(self.supernet):
            slopes = torch.autograd.grad(
                self.unlogged_loss(batch), self.parameters_of.alphas, materialize_grads=True
            )
        return averaged(slopes)

    def _descend(self, optimizer: Optimizer, loss: Callable[[], Tensor]) -> None:
        self.draw()
        optimizer.zero_grad()
        self._backward(loss())
        self._clip(optimizer)
        optimizer.step()

    def _clip(self, optimizer: Optimizer) -> None:
        if optimizer is self.moving()[0]:
            self.clip_norm(plain(optimizer), self.clip)

    def task_loss(self, batch: Batch, split: str) -> Tensor:
        """The task loss ``()`` of a batch, logged for `split`."""
        x, labels = batch
        return self._scored(run(self.supernet, x), labels, split)

    def _scored(self, logits: Tensor, labels: Tensor, split: str) -> Tensor:
        smoothing = self.label_smoothing if split == "train" else 0.0
        loss = self.task.loss(logits, labels, smoothing)
        self.score(split, loss, logits, labels)
        return loss

    def unlogged_loss(self, batch: Batch) -> Tensor:
        """The weights' task loss ``()`` in an extra pass, such as for a finite difference."""
        x, labels = batch
        return self.task.loss(run(self.supernet, x), labels, self.label_smoothing)

    def alpha_loss(self, task: Tensor) -> Tensor:
        """The loss ``()`` that alphas descend: the objective, and the regularizers.

        Task loss and cost are of the same theta, that of one draw. But a budget holds for the
        expected cost: else single draws that exceed it would be penalised for ever.
        """
        if self.objective.needs_targets:
            costs = self.noise_free_costs()
        else:
            costs = {name: cost() for name, cost in self.costs.items()}
        joined: Tensor = self.objective(task, costs)
        if self.regularizers:
            found = [d for _, d in decisions(self.supernet) if not d.derived]
            for regularizer in self.regularizers.values():
                joined = joined + regularizer(found, self.done)
        return joined

    def on_validation_epoch_start(self) -> None:
        # Without noise and with all options open; every training step draws anew anyway.
        free(self.supernet)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, labels = batch
        logits = run(self.supernet, x)
        self.score("supernet_val", self.task.loss(logits, labels), logits, labels)


def probable_archs(problem: SearchProblem, cost: str, size: int) -> list[Arch]:
    """The most probable architectures along a cost, found exactly, the cheapest first."""

    def find() -> list[str]:
        archs = front(problem.supernet, problem.space, problem.costs, problem.budgets, cost, size)
        return [arch.to_json() for arch in archs]

    return [Arch.from_json(text) for text in broadcast(find)]


def probable_front(problem: SearchProblem, selected: Arch, cost: str) -> list[ScoredArch]:
    """The scored architectures of a search's end, `selected` among them."""
    archs = {arch.hash: arch for arch in [*probable_archs(problem, cost, FRONT), selected]}
    score = log_probability(problem.supernet)
    return [
        ScoredArch(
            arch,
            score(arch),
            {name: priced.of(arch.choices) for name, priced in problem.costs.items()},
        )
        for arch in archs.values()
    ]


class Options(TypedDict, total=False):
    """The arguments of `DifferentiableSearch`, for the signatures of its subclasses."""

    supernet: nn.Module
    costs: Mapping[str, Expected]
    objective: Objective
    weight_optimizer: OptimizerFactory
    alpha_optimizer: OptimizerFactory
    epochs: Count
    warmup_epochs: Whole
    path_sampling: PathSampling | None
    freeze_weights: bool
    temperature: Schedule | None
    clip: NonNegative
    label_smoothing: Share
    seed: Seed
    targets: Mapping[str, float] | None
    task: Task | None
