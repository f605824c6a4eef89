"""Which paths of a supernet a step trains: one, strictly fair ones, the extremes, or all."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from nas.arch import Option
from nas.config.schema import Count, Whole, checked
from nas.cost.expected import Expected
from nas.cost.integer_program import IntegerProgram
from nas.decision import Decision, decisions, free, sample_path
from nas.errors import UserError
from nas.inputs import Inputs, run
from nas.supernet.choice import Relaxing
from nas.supernet.relax import constant
from nas.tasks import Task
from nas.tasks.classification import Classification

Bins = Annotated[int, Field(ge=2, le=10**6)]
Choices = Mapping[str, Option]  # decision name -> option
Loss = Callable[[Tensor], Tensor]  # logits -> loss
Backward = Callable[[Tensor], object]


class PathSampling:
    """Base of the path sampling strategies: which paths one step trains, and by which loss.

    Attributes:
        task: what the networks are for; set by the search before `start`.
    """

    task: Task = Classification()

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        """Called once before training; budgets play no part, as the supernet is to serve any."""
        self.supernet = supernet

    @property
    def networks(self) -> float:
        """Networks whose work a step is, roughly."""
        return 1.0

    def start_epoch(self) -> None:
        """Called before each epoch: forget what a checkpoint does not hold."""

    def paths(self, loss: Loss, generator: torch.Generator) -> Iterator[Loss]:
        """For each path of a step: choose it in the supernet, then yield its loss.

        Args:
            loss: the loss by the labels of the batch.
            generator: of every draw.
        """
        raise NotImplementedError

    def add_gradients(
        self, x: Inputs, loss: Loss, generator: torch.Generator, backward: Backward
    ) -> None:
        """Run all paths of a step on one batch; their gradients add up.

        Args:
            x: inputs of a batch.
            loss, generator: as for `paths`.
            backward: of a loss ``()``.
        """
        for one in self.paths(loss, generator):
            backward(one(run(self.supernet, x)))


class AllPaths(PathSampling):
    """All candidates at once, with equal weights (Bender et al. 2018, without path dropout).

    ``y = 1/K sum_k op_k(x)`` in every choice block.
    """

    def start(self, supernet: nn.Module, costs: Mapping[str, Expected]) -> None:
        super().start(supernet, costs)
        Relaxing("softmax", False, constant())(supernet)  # of alphas that stay equal

    @property
    def networks(self) -> float:
        return max(len(decision.options) for _, decision in decisions(self.supernet))

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

    @property
    def networks(self) -> float:
        return max(len(decision.options) for _, decision in decisions(self.supernet))

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

    @property
    def networks(self) -> float:
        return self.random + 2.0

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
