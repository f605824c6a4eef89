"""A model-guided searcher: predict the scores, propose what enlarges the front most.

The surrogate is Bayesian linear regression on one-hot options and on their pairs.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from nas.arch import Arch
from nas.config.schema import Count
from nas.pareto import non_dominated
from nas.search.evolution import FAILED, mutated, values
from nas.search.space import START, WHOLE, Searcher, SearchSpace
from nas.search.trials import Trial

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

AROUND = 500  # of a larger space, candidates of each kind: neighbours, their neighbours, random
REFIT = 1.03  # the models are fitted anew to so many times the trials


class Encoding:
    """Architectures as rows of zeros and ones: each option, and each pair of options."""

    def __init__(self, counts: Sequence[int]) -> None:
        starts, at = [], 0
        for count in counts:
            starts.append(at)
            at += count
        self.single, self.starts, self.counts = at, np.array(starts), np.array(counts)
        self.pairs = list(combinations(range(len(counts)), 2))
        self.offsets = []
        for i, j in self.pairs:
            self.offsets.append(at)
            at += counts[i] * counts[j]
        self.size = at

    def places(self, picks: Indices) -> Indices:
        """Columns of the ones, ``(n, decisions) -> (n, decisions + pairs)``."""
        single: Indices = picks + self.starts
        if not self.pairs:
            return single
        first, second = np.array(self.pairs).T
        pairs = picks[:, first] * self.counts[second] + picks[:, second] + np.array(self.offsets)
        joined: Indices = np.concatenate([single, pairs], axis=1)
        return joined


class Surrogate:
    """Bayesian linear regression of one objective, in log scale.

    ``log y = w . x + e`` with ``w ~ N(0, s^2 D)``, D smaller for pairs than for single options.
    The scale of the noise is the one of `NOISE` with the largest evidence.
    """

    NOISE = (0.03, 0.1, 0.3, 1.0)  # variance, relative to that of the weights' prior
    PAIR = 0.15  # prior standard deviation of a pair's weight over that of an option's

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        scale = np.ones(encoding.size)
        scale[encoding.single :] = self.PAIR
        self.scale = scale

    def fit(self, places: Indices, y: Floats) -> None:
        """Fit to the objective values `y` ``(n,)`` of architectures at `places` ``(n, ones)``."""
        target = np.log(np.maximum(y, 1e-9))
        self.mid = float(np.median(target))
        spread = float(np.std(target)) or 1.0
        X = np.zeros((len(y), self.encoding.size))
        np.put_along_axis(X, places, 1.0, axis=1)
        X *= self.scale
        z = (target - self.mid) / spread
        gram = X @ X.T
        fits = [(self._evidence(gram, z, noise), noise) for noise in self.NOISE]
        _, noise = max(fits)
        self.spread = spread
        # Posterior N(m, s^2 A^-1), A = X'X / noise + I.
        A = X.T @ X / noise
        A[np.diag_indices_from(A)] += 1.0
        self.factor = cholesky(A, lower=True)
        self.weights = cho_solve((self.factor, True), X.T @ z / noise)
        residual = z - X @ self.weights
        variance = (residual @ residual / noise + self.weights @ self.weights) / len(z)
        self.deviation = float(np.sqrt(variance))

    @staticmethod
    def _evidence(gram: Floats, z: Floats, noise: float) -> float:
        """Log marginal likelihood at the maximum-likelihood scale of the weights."""
        K = gram + noise * np.eye(len(z))
        factor = cholesky(K, lower=True)
        half = solve_triangular(factor, z, lower=True)
        n = len(z)
        return float(-np.log(np.diag(factor)).sum() - n / 2 * np.log(half @ half / n + 1e-12))

    def mean(self, places: Indices) -> Floats:
        """Expected objectives ``(m,)`` of other architectures: their median, as logs are fitted."""
        return self._objectives(self.weights, places)

    def drawn(self, places: Indices, generator: np.random.Generator) -> Floats:
        """Objectives ``(m,)`` of other architectures, under one draw from the posterior."""
        noise = generator.standard_normal(self.encoding.size)
        step = solve_triangular(self.factor, noise, lower=True, trans="T")
        return self._objectives(self.weights + self.deviation * step, places)

    def _objectives(self, weights: Floats, places: Indices) -> Floats:
        scaled = weights * self.scale
        out: Floats = np.exp(self.mid + self.spread * scaled[places].sum(axis=1))
        return out


class Predictor(Searcher):
    """Proposes the architecture that by the models' means adds most hypervolume; where none adds
    any, by one draw from the models.

    The first architectures are on the front of counted MACs over the cost, see
    `SearchSpace.most_macs`. Objectives that are exact costs of the space are priced, not predicted.
    The hypervolume reaches up to what is known before, the budget of a cost or its largest value in
    the space, not up to the front found so far: what lies beyond that would never be looked at.

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`; all above 0.
        startup: number of architectures before the first that is predicted.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        startup: Count = START,
    ) -> None:
        self.space, self.objectives, self.startup = space, tuple(objectives), startup
        self.generator = torch.Generator().manual_seed(seed)
        self.noise = np.random.default_rng(seed)
        self.seen: dict[str, tuple[Arch, Floats]] = {}
        self.known: set[str] = set()  # proposed or scored
        self.models: dict[str, Surrogate] = {}
        self.fitted = 0  # trials that the models have seen
        self.encoding = Encoding([len(options) for options in space.options.values()])
        self.pool = Pool(space) if space.size <= WHOLE else None
        self.largest = space.largest(self.objectives)
        generator = np.random.default_rng(seed)
        self.first = space.most_macs(self.objectives[-1], startup, generator)

    def ask(self, count: int) -> Sequence[Arch]:
        finite = [trial for trial in self.seen.values() if (trial[1] < FAILED).all()]
        if len(finite) < self.startup:
            return self._unseen(count)
        asked = self._promising(count, finite)
        self._mark(asked)
        return asked

    def tell(self, trials: Sequence[Trial]) -> None:
        self._mark([trial.arch for trial in trials])
        for trial in trials:
            self.seen[trial.arch.hash] = trial.arch, values(trial, self.objectives)

    def _mark(self, archs: Sequence[Arch]) -> None:
        self.known.update(arch.hash for arch in archs)
        if self.pool is not None:
            self.pool.take(archs)

    def _unseen(self, count: int) -> list[Arch]:
        """The zero-cost front, then random ones."""
        asked: list[Arch] = []
        while len(asked) < count and (self.pool is None or self.pool.free.any()):
            asked.append(self.first.pop(0) if self.first else self._random())
            self._mark(asked[-1:])
        return asked

    def _random(self) -> Arch:
        if self.pool is not None:
            left = np.flatnonzero(self.pool.free)
            return self._arch(self.pool.picks[self.noise.choice(left)])
        for _ in range(20):
            arch = self.space.draw(self.generator)
            if arch.hash not in self.known:
                break
        return arch

    def _arch(self, row: Indices) -> Arch:
        return self.space.arch(dict(zip(self.space.options, row.tolist(), strict=True)))

    def _promising(self, count: int, finite: Sequence[tuple[Arch, Floats]]) -> list[Arch]:
        points = np.array([point for _, point in finite])
        picks = self._candidates(finite, points)
        if not len(picks):
            return []
        # While there are few trials each counts; later a fit serves for some.
        if len(finite) >= REFIT * self.fitted:
            self._fit(finite, points)
        expected = self._predicted(picks, drawn=False)
        free = np.ones(len(picks), dtype=bool)
        asked: list[Arch] = []
        for _ in range(min(count, len(picks))):
            gains = self._gains(expected, points)
            if expected.shape[1] == 2 and not (gains[free] > 0).any():
                gains = self._gains(self._predicted(picks, drawn=True), points)
            pick = int(np.where(free, gains, -np.inf).argmax())
            free[pick] = False
            points = np.concatenate([points, expected[pick : pick + 1]])
            asked.append(self._arch(picks[pick]))
        return asked

    def _fit(self, finite: Sequence[tuple[Arch, Floats]], points: Floats) -> None:
        rows = np.array([list(self.space.indices(arch).values()) for arch, _ in finite])
        places = self.encoding.places(rows)
        self.fitted = len(finite)
        for k, name in enumerate(self.objectives):
            if name not in self.space.costs:
                self.models[name] = Surrogate(self.encoding)
                self.models[name].fit(places, points[:, k])

    def _predicted(self, picks: Indices, drawn: bool) -> Floats:
        """Objectives ``(m, d)`` of candidates ``(m, decisions)``, expected, or one draw of them."""
        found, places = [], self.encoding.places(picks)
        for name in self.objectives:
            if name in self.space.costs:
                found.append(self.space.prices(name, picks))
            elif drawn:
                found.append(self.models[name].drawn(places, self.noise))
            else:
                found.append(self.models[name].mean(places))
        return np.stack(found, axis=1)

    def _candidates(self, finite: Sequence[tuple[Arch, Floats]], points: Floats) -> Indices:
        """Option numbers ``(n, decisions)`` of architectures not proposed yet."""
        if self.pool is not None:
            return self.pool.picks[self.pool.free]
        front = [finite[i][0] for i in np.flatnonzero(non_dominated(points)).tolist()]
        near = [front[i % len(front)] for i in range(AROUND)]
        archs = [mutated(self.space, arch, self.generator) for arch in near]
        archs += [mutated(self.space, arch, self.generator) for arch in archs]
        archs += [self.space.draw(self.generator) for _ in range(AROUND)]
        fresh = {arch.hash: arch for arch in archs if arch.hash not in self.known}
        rows = [list(self.space.indices(arch).values()) for arch in fresh.values()]
        return np.array(rows, dtype=np.int64).reshape(-1, len(self.space.options))

    def _gains(self, found: Floats, points: Floats) -> Floats:
        """What each of predicted objectives ``(m, d)`` is worth ``(m,)``; larger is better."""
        if found.shape[1] == 2:
            corner = self._corner(points)
            found, points = self._scaled(found), self._scaled(points)
            return enlarged(found, points[non_dominated(points)], self._scaled(corner[None])[0])
        # Any number of objectives: a random weighing of the distances to the best of each.
        low, span = points.min(0), np.ptp(points, axis=0)
        weight = self.noise.dirichlet(np.ones(found.shape[1]))
        worst: Floats = (weight * (found - low) / np.where(span > 0, span, 1)).max(1)
        return -worst

    def _corner(self, points: Floats) -> Floats:
        """The worst that counts: of the score, the first objective, what 85 % of those seen are
        better than; of a cost what is known before, else the largest seen.

        Networks that learn next to nothing are on a front, too, as the cheapest; up to the worst
        of them, most of the hypervolume lies where nobody looks.
        """
        worst: Floats = points.max(0)
        worst[0] = np.quantile(points[:, 0], 0.85)
        known = [self.largest.get(name, worst[k]) for k, name in enumerate(self.objectives)]
        return np.array(known)

    def _scaled(self, points: Floats) -> Floats:
        """With exact costs in log scale, as fronts are thinned."""
        exact = [name in self.space.costs for name in self.objectives]
        scaled: Floats = np.where(exact, np.log(np.maximum(points, 1e-9)), points)
        return scaled


class Pool:
    """Every architecture inside the budgets, and which of them have not been proposed yet."""

    def __init__(self, space: SearchSpace) -> None:
        archs = list(space)
        rows = [list(space.indices(arch).values()) for arch in archs]
        self.picks: Indices = np.array(rows, dtype=np.int64)
        self.row = {arch: i for i, arch in enumerate(archs)}
        self.free = np.ones(len(archs), dtype=bool)

    def take(self, archs: Sequence[Arch]) -> None:
        """Mark as proposed."""
        for arch in archs:
            self.free[self.row[arch]] = False


def enlarged(found: Floats, front: Floats, corner: Floats) -> Floats:
    """The area ``(m,)`` that each of `found` ``(m, 2)`` adds to what `front` dominates."""
    inside = front[(front < corner).all(axis=1)]
    inside = inside[np.lexsort((inside[:, 1], inside[:, 0]))]
    # Steps of the front: from x to the next x nothing below y is dominated.
    left = np.concatenate([[-np.inf], inside[:, 0]])
    right = np.concatenate([inside[:, 0], corner[:1]])
    height = np.concatenate([corner[1:], np.minimum.accumulate(inside[:, 1])])
    width = np.maximum(0.0, right - np.maximum(left, found[:, :1]))
    area: Floats = (width * np.maximum(0.0, height - found[:, 1:])).sum(axis=1)
    return area
