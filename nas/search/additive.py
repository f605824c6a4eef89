"""A searcher for budgets: a linear model of the scores, and the exact best inside the budgets."""

from collections.abc import Sequence
from math import isfinite, log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from nas.arch import Arch
from nas.config.schema import Count, checked
from nas.cost.integer_program import IntegerProgram
from nas.cost.polynomial import Term
from nas.search.evolution import mutated
from nas.search.space import Searcher, SearchSpace
from nas.search.trials import Trial
from nas.selection import least_of, limits

Floats = NDArray[np.float64]

START = 6  # architectures before the first that is predicted
DRAWS = 20  # changes of an architecture that is known already
RANGE = 4.0  # between the smallest and the largest network, in deviations of the scores
NOISE = 0.1  # variance of a score beside what the model says, that of the scores being 1
FAR = 0.3  # and more of it, for each deviation that a score is worse than the best


@checked()
class Additive(Searcher):
    """The best network inside the budgets by one draw of an additive model of the scores.

    ``log y = m + sum_i sum_{k <= a_i} w_ik + e``: each option of an ordered decision adds to the
    one below, and of the others each has a weight. ``w`` is normal, with a mean by which the
    largest network is the best before anything is known, each further step worth less, as the
    logarithm: else a budget would go to the decisions whose steps cost least. One draw is taken of
    its posterior (Thompson sampling), and the architecture of the least sum inside all budgets is
    found by an integer program. Where there is no budget, and else a third of the times, the last
    objective, if it is a cost, is limited to a random part of its range, so that a front is found
    as well.

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`. Those that are no exact costs are modelled, and
            of several their sum with random weights is minimised.
        startup: number of architectures before the first that is predicted.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        startup: Count = START,
    ) -> None:
        self.space, self.objectives = space, tuple(objectives)
        self.draws = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.counts = [len(options) for options in space.options.values()]
        self.ordered = [name in space.ordered for name in space.options]
        self.program = IntegerProgram(dict(zip(space.options, self.counts, strict=True)))
        self.modelled = [name for name in self.objectives if name not in space.costs]
        self.known: dict[str, tuple[NDArray[np.int64], list[float]]] = {}
        self.asked: set[str] = set()
        self.startup = startup
        last = self.objectives[-1]
        self.cost = last if last in space.costs else None
        if self.cost is not None:
            self.least = least_of(space.costs[self.cost])
            self.largest = space.largest([self.cost])[self.cost]

    def ask(self, count: int) -> Sequence[Arch]:
        return [self._one() for _ in range(count)]

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            scores = [trial.value(name) for name in self.modelled]
            if all(map(isfinite, scores)):
                self.known[trial.arch.hash] = self.space.picks([trial.arch])[0], scores

    def _one(self) -> Arch:
        arch = self._drawn()
        for _ in range(DRAWS):  # on to one not seen before, as far as that is easily found
            if arch.hash not in self.asked:
                break
            arch = mutated(self.space, arch, self.generator)
        self.asked.add(arch.hash)
        return arch

    def _drawn(self) -> Arch:
        """The best architecture of one draw of the model."""
        shares = self.draws.dirichlet(np.ones(len(self.modelled)))
        drawn = [share * self._weights(k) for k, share in enumerate(shares)]
        weights: Floats = np.sum(drawn, axis=0)
        effects: dict[Term, float] = {}
        at = 0
        for name, count, ordered in zip(self.space.options, self.counts, self.ordered, strict=True):
            own = weights[at : at + count]
            own = np.cumsum(own) if ordered else own
            effects |= {frozenset({(name, k)}): float(own[k]) for k in range(count)}
            at += count
        found = self.program.minimise([effects], limits(self.space.costs, self._budgets()))
        assert found is not None  # the space has checked that the budgets can be met
        return self.space.arch(found.choices)

    def _budgets(self) -> dict[str, float]:
        """Those of the space, and often one of the cost that the front is drawn over."""
        budgets = dict(self.space.budgets)
        if self.cost is not None and (not budgets or self.draws.random() < 1 / 3):
            low, high = log(max(self.least, 1e-9)), log(max(self.largest, 1e-9))
            bound = float(np.exp(self.draws.uniform(low, high))) * (1 + 1e-9)
            within = {**budgets, self.cost: min(bound, budgets.get(self.cost, bound))}
            if self.program.minimise([{}], limits(self.space.costs, within)) is not None:
                return within
        return budgets

    def _weights(self, objective: int) -> Floats:
        """One draw of the weights ``(options of all decisions,)``, in deviations of the scores."""
        numbers = [count for count, o in zip(self.counts, self.ordered, strict=True) if o]
        steps = max(1, sum(numbers) - len(numbers))
        mean = np.zeros(sum(self.counts))
        at = 0
        for count, ordered in zip(self.counts, self.ordered, strict=True):
            if ordered and count > 1:
                shares = np.diff(np.log(np.arange(1, count + 1))) / log(count)
                mean[at + 1 : at + count] = -RANGE * shares * (count - 1) / steps
            at += count
        deviation = np.where(mean < 0, RANGE / steps, RANGE / len(self.counts) / 2)
        noise = self.draws.standard_normal(len(mean))
        if len(self.known) < self.startup:
            drawn: Floats = mean + deviation * noise
            return drawn
        rows = self._rows(np.array([picks for picks, _ in self.known.values()])) * deviation
        scores = np.array([scores[objective] for _, scores in self.known.values()])
        values = np.log(np.maximum(scores, 1e-9)) if scores.min() >= 0 else scores
        z = (values - values.mean()) / (values.std() or 1.0)
        left = z - rows @ (mean / deviation)
        variance = NOISE + FAR * (z - z.min())
        # Posterior N(b, A^-1) of (w - mean) / deviation, A = R'R / variance + I.
        weighed = rows / variance[:, None]
        shift = np.average(left, weights=1 / variance)  # m: nothing is known of it before
        A = weighed.T @ rows + np.eye(len(mean))
        factor = cho_factor(A, lower=True)
        best = cho_solve(factor, weighed.T @ (left - shift))
        step = solve_triangular(factor[0], noise, lower=True, trans="T")
        found: Floats = mean + deviation * (best + step)
        return found

    def _rows(self, picks: NDArray[np.int64]) -> Floats:
        """Which weights each architecture adds up ``(n, options of all decisions)``."""
        columns = []
        for i, (count, ordered) in enumerate(zip(self.counts, self.ordered, strict=True)):
            numbers = np.arange(count)
            own = picks[:, i, None]
            columns.append(numbers <= own if ordered else numbers == own)
        return np.concatenate(columns, axis=1).astype(float)
