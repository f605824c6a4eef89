"""Once-for-All: train one supernet from large to small networks in phases, then rank them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from nas.arch import Arch, Option
from nas.config.schema import Count, NonNegative, Positive, Seed, Share, checked
from nas.cost.expected import Expected
from nas.decision import Decision, decisions, split_parameters
from nas.discretization import discretize
from nas.errors import UserError
from nas.search.oneshot import OneShot
from nas.search.path_sampling import Choices, Loss, PathSampling, choose, extremes
from nas.search.trial_search import TrialSearch
from nas.supernet.elastic_ops import sort_channels
from nas.tasks import Task
from nas.train import Batch, OptimizerFactory, warmup_cosine

PHASES = "search.phases"
KINDS = ("kernel", "dilation", "depth", "expand", "channels", "resolution", "ops")


@checked(PHASES)
@dataclass(frozen=True)
class Phase:
    """Some epochs in which the decisions of some kinds may shrink.

    Args:
        epochs: of this phase.
        open: kind of decision (one of `KINDS`) -> how many of its largest options are sampled from,
            or "all"; every other decision stays at its largest option.
        subnets: number of networks in a step, whose gradients add up.
        lr: factor on the optimizer's rate.
        warmup_epochs: linear warm-up at the start of the phase.
    """

    epochs: Count
    open: Mapping[str, Count | Literal["all"]] = field(default_factory=dict)
    subnets: Count = 1
    lr: Positive = 1.0
    warmup_epochs: NonNegative = 0.0


def read_phases(rows: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The phases, from the mappings of a configuration.

    Raises:
        UserError: no phase, an unknown key or kind, or a number out of its range.
    """
    if isinstance(rows, str | Mapping) or not rows:
        raise UserError(f"search.phases must be a list of at least one phase, got {rows!r}")
    return [_read(row, f"{PHASES}[{i}]") for i, row in enumerate(rows)]


def _read(row: Mapping[str, Any], where: str) -> Phase:
    known = [entry.name for entry in fields(Phase)]
    if not isinstance(row, Mapping):
        raise UserError(f"{where}={row!r} must be a mapping with keys of {known}")
    for key in row:
        if key not in known:
            raise UserError(f"{where} has an unknown key {key!r}{_hint(key, known)}")
    if "epochs" not in row:
        raise UserError(f"{where} lacks the key 'epochs', got only {list(row)}")
    try:
        phase = Phase(**row)
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(PHASES)}") from None
    for kind in phase.open:
        if kind not in KINDS:
            raise UserError(f"{where}.open: no kind of decision {kind!r}{_hint(kind, KINDS)}")
    return phase


def _hint(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(str(word), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; there are {list(known)}"


def kind_of(name: str, decision: Decision) -> str:
    """What a decision is about, one of `KINDS`, from its name."""
    if not decision.ordered:
        return "ops"
    last = name.rpartition(".")[2]
    return "channels" if last in ("in_channels", "out_channels") else last


@checked("search")
class Shrinking(PathSampling):
    """The paths of a step in each phase (Cai et al. 2020, Section 3.3).

    In a phase that opens nothing, the largest network learns from the labels. Later each sampled
    network also learns from the largest one as it was then:
    ``CE(y, labels) + distill * CE(y, softmax(teacher))``.

    Args:
        phases: the search sets `phase` to the present one.
        distill: weight of the teacher's part of the loss.
        cost: name of the cost by which options without an order are the largest.
    """

    def __init__(
        self, phases: Sequence[Phase], distill: NonNegative = 1.0, cost: str = "macs"
    ) -> None:
        self.phases, self.distill, self.cost = tuple(phases), distill, cost
        self.phase = self.phases[0]
        self.taught: Tensor | None = None  # logits of the teacher on the batch of this step

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        if self.cost not in costs:
            raise UserError(f"search.cost={self.cost} is not one of {sorted(costs)}")
        self.own = dict(decisions(supernet))
        kinds = {kind_of(name, decision) for name, decision in self.own.items()}
        for phase in self.phases:
            for kind in phase.open:
                if kind not in kinds:
                    raise UserError(
                        f"search.phases opens {kind!r}, but the space has no such decision, only "
                        f"{sorted(kinds)}: take an elastic space (space=ofa_mobilenet_small) or "
                        "phases of what there is"
                    )
        _, largest = extremes(supernet, costs[self.cost])
        self.largest: Choices = {
            name: decision.options[-1] if decision.ordered else largest[name]
            for name, decision in self.own.items()
        }

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        if not self.phase.open:
            choose(self.supernet, self.largest)
            yield loss
            return

        def taught(logits: Tensor) -> Tensor:
            total = loss(logits)
            if self.taught is None:
                return total
            return total + self.distill * self.task.distillation(logits, self.taught)

        for _ in range(self.phase.subnets):
            drawn = {n: self._draw(n, d, generator) for n, d in self.own.items()}
            choose(self.supernet, drawn)
            yield taught

    def _draw(self, name: str, decision: Decision, generator: torch.Generator) -> Option:
        count = self.phase.open.get(kind_of(name, decision), 1)
        if count == 1:
            return self.largest[name]
        options = decision.options
        if decision.ordered and isinstance(count, int):
            options = options[-count:]
        return options[int(torch.randint(len(options), (), generator=generator))]


@checked("search")
class OnceForAll(OneShot):
    """Progressive shrinking with distillation (Cai et al. 2020).

    At the start of each phase the learning rate starts anew, without momentum. Where the first
    phase that opens anything starts, the largest network becomes the teacher: a copy, frozen, whose
    BatchNorms go on using batch statistics as theirs do. Before phases of elastic widths, channels
    are put in order of importance.

    Args:
        supernet, costs, ranking, optimizer, clip, label_smoothing, seed, task: see `OneShot`.
        phases: mappings with the keys of `Phase`.
        distill: weight of the teacher's part of the loss; 0: no teacher.
        cost: name of the cost by which options without an order are the largest.

    Raises:
        UserError: a phase with a wrong value, or that opens a kind that the space does not have.
    """

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        phases: Sequence[Mapping[str, Any]],
        ranking: Callable[..., TrialSearch],
        optimizer: OptimizerFactory,
        distill: NonNegative = 1.0,
        cost: str = "macs",
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
        task: Task | None = None,
    ) -> None:
        self.shrinking = Shrinking(read_phases(phases), distill, cost)
        super().__init__(
            supernet,
            costs,
            self.shrinking,
            ranking,
            optimizer,
            epochs=sum(phase.epochs for phase in self.shrinking.phases),
            clip=clip,
            label_smoothing=label_smoothing,
            seed=seed,
            task=task,
        )
        # From the start, so that every checkpoint has a place for its weights.
        self.teacher = self._largest_network() if distill else None

    @property
    def starts(self) -> list[int]:
        """The first epoch of each phase, and the number of all epochs."""
        return list(accumulate((phase.epochs for phase in self.shrinking.phases), initial=0))

    def configure_optimizers(self) -> Any:
        own = [p for p in split_parameters(self.supernet).weights if p.requires_grad]
        # No weight decay on biases and norms, which are vectors (their Appendix).
        groups: list[dict[str, Any]] = [
            {"params": [p for p in own if p.ndim > 1]},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer_factory(groups)  # type: ignore[arg-type]
        steps = self.steps_of(self.epochs)
        return [optimizer], [LambdaLR(optimizer, self._rate(steps))]

    def _rate(self, steps: int) -> Callable[[int], float]:
        """Step -> factor on the rate, for `steps` steps in an epoch: one cosine for each phase."""
        starts, phases = self.starts, self.shrinking.phases
        cosines = [warmup_cosine(p.warmup_epochs * steps, p.epochs * steps) for p in phases]

        def factor(step: int) -> float:
            index = self._index(step // steps)
            return phases[index].lr * cosines[index](step - starts[index] * steps)

        return factor

    def _index(self, epoch: int) -> int:
        passed = [index for index, start in enumerate(self.starts[:-1]) if start <= epoch]
        return passed[-1]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        index = self._index(self.current_epoch)
        self.shrinking.phase = self.shrinking.phases[index]
        if index and self.current_epoch == self.starts[index]:
            self._begin(self.shrinking.phases[index], self.shrinking.phases[index - 1])

    def _begin(self, phase: Phase, before: Phase) -> None:
        if phase.open and not before.open and self.teacher is not None:
            self.teacher.load_state_dict(self._largest_network().state_dict())
        if {"expand", "channels"} & phase.open.keys():
            sort_channels(self.supernet)
        # Momentum of channels that have moved is of no use, nor that of a rate long past.
        self.trainer.optimizers[0].state.clear()

    def _largest_network(self) -> nn.Module:
        name = str(getattr(self.supernet, "name", type(self.supernet).__name__))
        network = discretize(self.supernet, Arch(name, self.shrinking.largest))
        return network.requires_grad_(False).train()

    def step(self, batch: Batch, index: int) -> None:
        self.shrinking.taught = None
        if self.shrinking.phase.open and self.teacher is not None:
            with torch.no_grad():
                self.shrinking.taught = self.teacher(batch[0])
        super().step(batch, index)
