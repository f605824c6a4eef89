"""Path sampling strategies of one-shot search: which paths one step trains, by which loss."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nas.config.schema import Count, Whole, checked
from nas.cost.expected import Expected
from nas.cost.integer_program import IntegerProgram
from nas.decision import Decision, decisions, free, sample_path
from nas.errors import UserError
from nas.supernet.choice import Relaxing
from nas.supernet.relax import constant
from nas.tasks import Task
from nas.tasks.classification import Classification

Bins = Annotated[int, Field(ge=2, le=10**6)]
Loss = Callable[[Tensor], Tensor]  # logits -> loss


class PathSampling(Protocol):
    """Sets the supernet to one path after another; the step adds up their gradients.

    Attributes:
        task: what the networks are for; set by the search before `start`.
    """

    task: Task

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        """Before training; budgets play no part, as the supernet is to serve any."""
        ...

    def epoch(self) -> None:
        """At the start of every epoch: what is not in the checkpoint is forgotten."""
        ...

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        """Choose a path, then yield the loss that its logits take; and so on for one batch."""
        ...


class AllPaths:
    """All candidates at once, with equal weights (Bender et al. 2018, without path dropout).

    ``y = 1/K sum_k op_k(x)`` in every choice block.
    """

    task: Task = Classification()

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        self.supernet = supernet
        Relaxing("softmax", False, constant())(supernet)  # of alphas that stay equal

    def epoch(self) -> None:
        """Nothing to forget."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        free(self.supernet)
        yield loss


@checked("search.scheme")
class UniformPath:
    """One path drawn uniformly (SPOS, Guo et al. 2020, section 3.2).

    With `bins`, a path is drawn whose cost lies in a bin that is drawn first, so that small and
    large networks are trained as often as the middling ones, which are most (their section 3.4).

    Args:
        bins: number of bins of equal width between the least and the largest cost; None: no bins.
        cost: that the bins divide.
        tries: draws for one bin; of those all outside, the nearest is trained.
    """

    task: Task = Classification()

    def __init__(self, bins: Bins | None = None, cost: str = "macs", tries: Count = 50) -> None:
        self.bins, self.cost, self.tries = bins, cost, tries

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        self.supernet = supernet
        if self.bins is not None:
            self.priced = _known(costs, self.cost)
            least, largest = _extremes(supernet, self.priced)
            ends = self.priced.of(least), self.priced.of(largest)
            self.edges = np.linspace(*ends, self.bins + 1).tolist()

    def epoch(self) -> None:
        """Nothing to forget."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        if self.bins is None:
            sample_path(self.supernet, generator)
        else:
            self._in_a_bin(self.bins, generator)
        yield loss

    def _in_a_bin(self, bins: int, generator: torch.Generator) -> None:
        low, high = list(pairwise(self.edges))[int(torch.randint(bins, (), generator=generator))]
        nearest: tuple[float, dict[str, object]] | None = None
        for _ in range(self.tries):
            sample_path(self.supernet, generator)
            taken: dict[str, object] = {n: d.best() for n, d in decisions(self.supernet)}
            cost = self.priced.of(taken)
            outside = max(low - cost, cost - high, 0.0)
            if nearest is None or outside < nearest[0]:
                nearest = outside, taken
            if not outside:
                return
        assert nearest is not None
        _choose(self.supernet, nearest[1])


class StrictFairness:
    """Every option of every decision trained equally often (FairNAS, Chu et al. 2021, algorithm 1).

    A step goes through ``m`` paths on one batch, m the largest number of options. Each decision
    takes its options in the order of random permutations, one after another; where it has m
    options, each is taken exactly once in a step.
    """

    task: Task = Classification()

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        self.own = dict(decisions(supernet))
        self.epoch()

    def epoch(self) -> None:
        # A decision of fewer than m options is in the middle of a permutation.
        self.queues: dict[str, list[int]] = {name: [] for name in self.own}

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        for _ in range(max(len(decision.options) for decision in self.own.values())):
            for name, decision in self.own.items():
                decision.choose(decision.options[self._next(name, decision, generator)])
            yield loss

    def _next(self, name: str, decision: Decision, generator: torch.Generator) -> int:
        queue = self.queues[name]
        if not queue:
            queue += torch.randperm(len(decision.options), generator=generator).tolist()
        return queue.pop()


@checked("search.scheme")
class Sandwich:
    """The largest network, random ones, and the smallest (BigNAS, Yu et al. 2020, section 3.1).

    The largest learns from the labels; its logits, without gradient, are what the others learn
    from (in-place distillation): ``CE(student, softmax(teacher))``.

    Args:
        random: random networks in a step, between the two.
        cost: that tells the largest and the smallest.
    """

    task: Task = Classification()

    def __init__(self, random: Whole = 2, cost: str = "macs") -> None:
        self.random, self.cost = random, cost

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        self.supernet = supernet
        self.least, self.largest = _extremes(supernet, _known(costs, self.cost))

    def epoch(self) -> None:
        """Nothing to forget."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        taught: list[Tensor] = []

        def by_labels(logits: Tensor) -> Tensor:
            taught.append(logits.detach())
            return loss(logits)

        def by_teacher(logits: Tensor) -> Tensor:
            return self.task.distillation(logits, taught[0])

        _choose(self.supernet, self.largest)
        yield by_labels
        for _ in range(self.random):
            sample_path(self.supernet, generator)
            yield by_teacher
        _choose(self.supernet, self.least)
        yield by_teacher


def _known(costs: Mapping[str, Expected], name: str) -> Expected:
    if name not in costs:
        raise UserError(f"search.scheme.cost={name} is not one of {sorted(costs)}")
    return costs[name]


def _extremes(
    supernet: nn.Module, cost: Expected
) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """The choices of the smallest and of the largest network."""
    own = dict(decisions(supernet))
    found = []
    for optimum in (
        IntegerProgram(cost.options).minimise(cost.constraints),
        IntegerProgram(cost.options).maximise(cost.constraints),
    ):
        assert optimum is not None  # without limits every program has a solution
        found.append({name: own[name].options[k] for name, k in optimum.choices.items()})
    return found[0], found[1]


def _choose(supernet: nn.Module, choices: Mapping[str, object]) -> None:
    for name, decision in decisions(supernet):
        decision.choose(choices[name])  # type: ignore[arg-type]
