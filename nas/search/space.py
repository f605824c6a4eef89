"""`SearchSpace`: a space without its modules, as searchers need it: options, costs, budgets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isclose, log
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from nas.arch import Arch, Option
from nas.cost.expected import Expected
from nas.cost.integer_program import IntegerProgram, worst
from nas.cost.polynomial import AnyOf
from nas.decision import decisions
from nas.distinct import Distinct, Picks, read_if
from nas.errors import UserError
from nas.pareto import thinned
from nas.problem import SearchProblem
from nas.search.base import check_searchable
from nas.search.trials import Trial
from nas.selection import check_feasible, largest_of, least_of, limits

WHOLE = 20_000  # spaces up to this size are looked at as a whole
START = 6  # networks of the front of counted MACs that a searcher asks for first
NEARLY = 0.05  # share of the MACs that may be missing there in a space that is larger
TRIES = 50  # draws outside the budgets before one is repaired


@dataclass(frozen=True)
class SearchSpace:
    """The architectures that a searcher may propose: one for each network, see `nas.distinct`.

    Args:
        name: of the space, for `Arch`.
        options: decision name -> its options, in the order of their numbers.
        costs: cost name -> exact cost of an architecture.
        budgets: cost name -> largest cost of an architecture that may be proposed.
        read_if: of the decisions that not every network reads, see `nas.distinct.read_if`.
        ordered: names of decisions whose options go from the smallest network to the largest.
    """

    name: str
    options: Mapping[str, tuple[Option, ...]]
    costs: Mapping[str, Expected] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    read_if: Mapping[str, AnyOf] = field(default_factory=dict)
    ordered: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        supernet: nn.Module,
        name: str,
        costs: Mapping[str, Expected],
        budgets: Mapping[str, float],
    ) -> "SearchSpace":
        """The space of a supernet's decisions.

        Raises:
            UserError: no decision, or budgets that no network meets, with the least reachable.
        """
        check_searchable(supernet)
        own = dict(decisions(supernet))
        options = {path: decision.options for path, decision in own.items()}
        ordered = frozenset(path for path, decision in own.items() if decision.ordered)
        check_feasible(costs, budgets)
        return cls(name, options, costs, budgets, read_if(supernet), ordered)

    @classmethod
    def of_problem(cls, problem: SearchProblem) -> "SearchSpace":
        """The space of a problem's supernet, with its costs and inside its budgets; see `of`."""
        return cls.of(problem.supernet, problem.space, problem.costs, problem.budgets)

    @cached_property
    def distinct(self) -> Distinct:
        """Which architectures are one network."""
        return Distinct(self.options, self.read_if)

    @property
    def size(self) -> int:
        """Number of networks, budgets aside."""
        return self.distinct.count

    def arch(self, indices: Mapping[str, int]) -> Arch:
        """The architecture of the network of the option numbers `indices`."""
        choices = {name: o[indices[name]] for name, o in self.options.items()}
        return self.distinct.canonical(Arch(self.name, choices))

    def indices(self, arch: Arch) -> dict[str, int]:
        """Decision name -> number of the option that `arch` takes."""
        return {name: o.index(arch.choices[name]) for name, o in self.options.items()}

    def holds(self, arch: Arch) -> bool:
        """Whether `arch` is in the space, budgets aside."""
        known = arch.space == self.name and arch.choices.keys() == self.options.keys()
        return known and all(arch.choices[name] in o for name, o in self.options.items())

    def __iter__(self) -> Iterator[Arch]:
        """Every network inside the budgets, in a fixed order."""
        for row in self.distinct.all().tolist():
            arch = self.arch(dict(zip(self.options, row, strict=True)))
            if self.fits(arch):
                yield arch

    def price(self, arch: Arch) -> dict[str, float]:
        """The exact costs of `arch` by name; counts as whole numbers."""
        values = {name: cost.of(arch.choices) for name, cost in self.costs.items()}
        return {n: round(v) if isclose(v, round(v), rel_tol=1e-9) else v for n, v in values.items()}

    def prices(self, name: str, picks: Picks) -> NDArray[np.float64]:
        """Cost `name` of many architectures ``(n,)``, rows of option numbers ``(n, decisions)``."""
        columns = {decision: picks[:, i] for i, decision in enumerate(self.options)}
        totals = []
        for terms in self.costs[name].constraints:
            total = np.zeros(len(picks))
            for term, factor in terms.items():
                present = [columns[decision] == k for decision, k in term]
                total += factor * np.logical_and.reduce(present) if present else factor
            totals.append(total)
        largest: NDArray[np.float64] = np.max(totals, axis=0)
        return largest

    def fits(self, arch: Arch) -> bool:
        """Whether `arch` is inside every budget."""
        return all(self._at_most(name, bound, arch) for name, bound in self.budgets.items())

    def _at_most(self, name: str, bound: float, arch: Arch) -> bool:
        cost = self.costs[name]
        # Plain sums first: most draws are clearly outside, and `of` is twenty times slower.
        near = worst(cost.constraints, self.indices(arch)) <= bound * (1 + 1e-9)
        return near and cost.of(arch.choices) <= bound

    def picks(self, archs: Sequence[Arch]) -> Picks:
        """Numbers of the options that architectures take ``(n, decisions)``."""
        rows = [list(self.indices(arch).values()) for arch in archs]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.options))

    def around(self, picks: Picks) -> Picks:
        """The networks inside the budgets ``(n, decisions)`` of a space of at most `WHOLE`.

        Of a larger one, those of `picks` and all that differ from one of them in one decision.
        """
        counts = [len(options) for options in self.options.values()]
        if self.size <= WHOLE:
            found = self.distinct.all()
        else:
            near = [picks]
            for i, count in enumerate(counts):
                for option in range(count):
                    near.append(picks.copy())
                    near[-1][:, i] = option
            found = np.unique(self.distinct.canonical_picks(np.concatenate(near)), axis=0)
        inside = np.ones(len(found), dtype=bool)
        for name, bound in self.budgets.items():
            inside &= self.prices(name, found) <= bound * (1 + 1e-9)
        return found[inside]

    def draw(self, generator: torch.Generator) -> Arch:
        """A random architecture inside the budgets, by rejection: each option as likely as others.

        Where `TRIES` draws in a row lie outside, the last is repaired instead.
        """
        for _ in range(TRIES):
            picks = {n: _below(len(options), generator) for n, options in self.options.items()}
            arch = self.arch(picks)
            if self.fits(arch):
                return arch
        return self.repaired(arch)

    def largest(self, names: Sequence[str]) -> dict[str, float]:
        """The largest value inside the budgets of each of `names` that is a cost, and a twentieth
        more, so that who has it counts.

        Budgets of several costs are taken one by one.
        """
        known = [name for name in names if name in self.costs]
        tops = {name: self.budgets.get(name, inf) for name in known}
        return {name: 1.05 * min(tops[name], largest_of(self.costs[name])) for name in known}

    def start(self, objectives: Sequence[str], seed: int) -> list[Arch]:
        """What a searcher asks for first: `most_macs` over the last of its objectives.

        None where that cost is not known before: then counting may be far from its front, and is no
        better a start than chance (see experiments/one_shot/searchers.md).
        """
        if objectives[-1] not in self.costs:
            return []
        return self.most_macs(objectives[-1], START, np.random.default_rng(seed))

    def most_macs(self, cost: str, count: int, generator: np.random.Generator) -> list[Arch]:
        """At most `count` networks of the front of counted MACs over `cost`, the cheapest first.

        Known before anything is trained: who computes more is likely the better. Where `cost` is
        the MACs themselves, or not known before, parameters stand in for it. Of the front those are
        taken that hold the most hypervolume of both in log scale, see `nas.pareto.thinned`; of
        equal ones, one at random. None where MACs or parameters are not counted.
        """
        cost = cost if cost in self.costs and cost != "macs" else "params"
        if "macs" not in self.costs or cost not in self.costs:
            return []
        if self.size <= WHOLE:
            archs = list(self)
        else:
            low, high = least_of(self.costs[cost]), self.largest([cost])[cost]
            bounds = np.geomspace(max(low, 1e-3 * high), high, 2 * count)
            archs = [arch for bound in bounds if (arch := self._most(cost, float(bound)))]
        order = generator.permutation(len(archs)).tolist()
        prices = [self.price(archs[i]) for i in order]
        points = np.array([[-log(max(p["macs"], 1e-9)), log(max(p[cost], 1e-9))] for p in prices])
        # Of points that are equal, `thinned` takes the first.
        return [archs[order[i]] for i in thinned(points, count)]

    def _most(self, cost: str, bound: float) -> Arch | None:
        """A network of nearly the most MACs of those inside the budgets with `cost` at most so.

        Where the budget is one of MACs, to prove the last MAC would take minutes: a subset sum.
        """
        budgets = {**self.budgets, cost: bound * (1 + 1e-9)}
        program = IntegerProgram({name: len(options) for name, options in self.options.items()})
        inside = limits(self.costs, budgets)
        found = program.maximise(self.costs["macs"].constraints, inside, gap=NEARLY)
        return self.arch(found.choices) if found else None

    def repaired(self, arch: Arch) -> Arch:
        """The architecture inside the budgets that differs from `arch` in the fewest decisions."""
        if self.fits(arch):
            return self.distinct.canonical(arch)
        taken = self.indices(arch)
        unlike = {
            frozenset({(name, k)}): 1.0
            for name, options in self.options.items()
            for k in range(len(options))
            if k != taken[name]
        }
        counts = {name: len(options) for name, options in self.options.items()}
        found = IntegerProgram(counts).minimise([unlike], limits(self.costs, self.budgets))
        if found is None:
            check_feasible(self.costs, self.budgets)
            raise UserError(f"no network of this space meets the budgets {dict(self.budgets)}")
        return self.arch(found.choices)


class Searcher(Protocol):
    """Proposes architectures and learns from their scores.

    What it proposes depends only on the draws of its own seeded generator and on what it was told.
    So a search is resumed by asking again from the start and telling the recorded scores: no
    searcher, nor the library behind it, has to save its state.
    """

    def ask(self, count: int) -> Sequence[Arch]:
        """At most `count` architectures to score, inside the budgets; none: it is done."""
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Learn from the scores of what was asked last, in that order; by default nothing."""


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
