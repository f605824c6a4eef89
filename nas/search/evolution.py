"""Evolution: regularised evolution, and NSGA-II through pymoo."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from nas.arch import Arch
from nas.config.schema import Count, checked
from nas.errors import UserError
from nas.search.space import Searcher, SearchSpace
from nas.search.trials import Trial

FAILED = 1e30  # stands for an infinite objective: libraries sort, and subtract


@checked()
class RegularisedEvolution(Searcher):
    """Tournaments among the youngest, whose winner is mutated (Real et al. 2019, algorithm 1).

    With several objectives every tournament weighs them anew, by the augmented Chebyshev norm with
    random weights (Knowles 2006, ParEGO), so that the population spreads over the front.

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`.
        population: number of the youngest that take part; as many come first, those of
            `SearchSpace.start` and random ones.
        tournament: number of those that are drawn for one tournament.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        population: Count = 30,
        tournament: Count = 10,
    ) -> None:
        if tournament > population:
            raise UserError(f"tournament={tournament} must be at most population={population}")
        self.space, self.objectives, self.tournament = space, objectives, tournament
        self.generator = torch.Generator().manual_seed(seed)
        self.living: deque[tuple[Arch, NDArray[np.float64]]] = deque(maxlen=population)
        self.population = population
        self.born = 0
        self.seen: set[str] = set()
        self.first = space.start(objectives, seed)

    def ask(self, count: int) -> Sequence[Arch]:
        asked = [self._one() for _ in range(count)]
        self.born += len(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self.living.append((trial.arch, values(trial, self.objectives)))

    def _one(self) -> Arch:
        if self.first:
            arch = self.first.pop(0)
        elif self.born < self.population or not self.living:
            arch = self.space.draw(self.generator)
        else:
            arch = self._child()
        self.seen.add(arch.hash)
        return arch

    def _child(self) -> Arch:
        parent = self._winner()
        child = mutated(self.space, parent, self.generator)
        for _ in range(10):  # on to one not seen before, as far as that is easily found
            if child.hash not in self.seen:
                break
            child = mutated(self.space, child, self.generator)
        return child

    def _winner(self) -> Arch:
        order = torch.randperm(len(self.living), generator=self.generator)[: self.tournament]
        members = [self.living[i] for i in order.tolist()]
        points = np.array([point for _, point in self.living])
        low, span = points.min(0), np.ptp(points, axis=0)
        weight = torch.empty(points.shape[1]).exponential_(generator=self.generator).numpy()
        scaled = (np.array([p for _, p in members]) - low) / np.where(span > 0, span, 1)
        weighed = scaled * (weight / weight.sum())
        return members[int((weighed.max(1) + 0.05 * weighed.sum(1)).argmin())][0]


@checked()
class NSGA2(Searcher):
    """NSGA-II (Deb et al. 2002) by pymoo: uniform crossover, one gene drawn anew on average.

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`.
        population: size of a generation; the first are those of `SearchSpace.start` and random.

    Raises:
        UserError: pymoo is not installed, or a population below 2.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        population: Annotated[int, Field(ge=2, le=10**6)] = 20,
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.names = tuple(space.options)
        first = [list(space.indices(arch).values()) for arch in space.start(objectives, seed)]
        self.algorithm = _nsga2(space, len(self.objectives), population, seed, first[:population])
        self.asked: Any = None  # pymoo's population of this generation
        self.left: deque[Arch] = deque()
        self.told: list[NDArray[np.float64]] = []

    def ask(self, count: int) -> Sequence[Arch]:
        if not self.left:
            self._next_generation()
        return [self.left.popleft() for _ in range(min(count, len(self.left)))]

    def tell(self, trials: Sequence[Trial]) -> None:
        self.told += [values(trial, self.objectives) for trial in trials]
        if self.asked is not None and len(self.told) == len(self.asked):
            self.asked.set("F", np.array(self.told))
            self.algorithm.tell(infills=self.asked)
            self.asked, self.told = None, []

    def _next_generation(self) -> None:
        self.asked = self.algorithm.ask()
        genes = self.asked.get("X").astype(int).tolist()
        archs = [self.space.arch(dict(zip(self.names, row, strict=True))) for row in genes]
        fitting = [self.space.repaired(arch) for arch in archs]
        indices = [list(self.space.indices(arch).values()) for arch in fitting]
        self.asked.set("X", np.array(indices))
        self.left.extend(fitting)


def _nsga2(
    space: SearchSpace, objectives: int, population: int, seed: int, first: list[list[int]]
) -> Any:
    try:
        from pymoo.algorithms.moo import nsga2
        from pymoo.core.mutation import Mutation
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination
        from pymoo.operators.crossover.ux import UniformCrossover
    except ImportError:
        raise UserError(
            "the searcher nsga2 needs pymoo: pip install 'dnas[search]', or take "
            "search.searcher=evolution or predictor"
        ) from None

    counts = np.array([len(options) for options in space.options.values()])
    draws = np.random.default_rng(seed)
    random = draws.integers(0, counts, (population - len(first), len(counts)))

    class Redraw(Mutation):  # type: ignore[misc]
        """Each gene drawn anew with probability 1 / genes: options have no order."""

        def _do(self, problem: Any, X: Any, **_: Any) -> Any:
            drawn = draws.integers(0, counts, X.shape)
            return np.where(draws.random(X.shape) < 1 / len(counts), drawn, X)

    problem = Problem(n_var=len(counts), n_obj=objectives, xl=0, xu=counts - 1, vtype=int)
    algorithm = nsga2.NSGA2(
        pop_size=population,
        sampling=np.array([*first, *random]),
        crossover=UniformCrossover(),
        mutation=Redraw(),
        eliminate_duplicates=True,
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
    return algorithm


def mutated(space: SearchSpace, parent: Arch, generator: torch.Generator) -> Arch:
    """`parent` with another option in one decision that it reads, inside the budgets.

    What only the child reads, as blocks that it has more, is drawn.
    """
    unread = space.distinct.unread(parent)
    open_to = [n for n, options in space.options.items() if len(options) > 1 and n not in unread]
    if not open_to:
        return parent
    for name in unread:
        options = space.options[name]
        drawn = options[int(torch.randint(len(options), (), generator=generator))]
        parent = replace(parent, choices={**parent.choices, name: drawn})
    name = open_to[int(torch.randint(len(open_to), (), generator=generator))]
    others = [option for option in space.options[name] if option != parent.choices[name]]
    pick = others[int(torch.randint(len(others), (), generator=generator))]
    return space.repaired(replace(parent, choices={**parent.choices, name: pick}))


def values(trial: Trial, objectives: Sequence[str]) -> NDArray[np.float64]:
    """The objectives ``(d,)`` of a trial, finite."""
    found = [trial.value(name) for name in objectives]
    return np.array([value if isfinite(value) else FAILED for value in found])
