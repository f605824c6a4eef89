"""A model of accuracy over options, and the networks that are worth training by it."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

Floats = NDArray[np.float64]
Picks = NDArray[np.int64]  # (n, decisions): the number of the option that each decision takes

# Shares of the prior variance: options, pairs of options, and what only the whole network has.
OPTION, PAIR, WHOLE = 0.77, 0.19, 0.04

MARGIN = 0.05  # of the range of the log costs, beyond the most expensive candidate
POOL = 400  # candidates that `worth_training` compares, at most


class OptionModel:
    """Gaussian process over architectures: effects of options, of their pairs, and a rest.

    ``y(a) = m + sum_i u_i(a_i) + sum_{i<j} v_ij(a_i, a_j) + r(a) + e``, all effects independent and
    normal (Rasmussen and Williams 2006, chapter 2). So the prior correlation of two architectures
    depends on the number of decisions in which they agree alone, and effects that few scores tell
    of shrink to zero.

    Args:
        picks: ``(n, D)``, the architectures scored, as numbers of options.
        values: ``(n,)``, their scores, the less the better. Errors are taken in log scale; one of
            0, as few images give, counts as half of the least above it. Where any is negative they
            are no errors, and taken as they are.
        noise: variance of e, that of the effects being 1.
    """

    def __init__(self, picks: ArrayLike, values: ArrayLike, noise: float) -> None:
        self.picks = np.asarray(picks, dtype=np.int64)
        given = np.asarray(values, dtype=np.float64)
        self.in_logs = bool(given.min() >= 0)
        logs = _logs(given) if self.in_logs else given
        self.shift, self.scale = float(logs.mean()), float(logs.std()) or 1.0
        self.targets: Floats = (logs - self.shift) / self.scale
        self.noise = noise
        gram = correlation(self.picks, self.picks)
        gram[np.diag_indices_from(gram)] += noise
        self.factor = cho_factor(gram, lower=True)

    def mean(self, picks: ArrayLike) -> Floats:
        """Expected scores ``(m,)``, in log scale, of other architectures ``(m, D)``."""
        near = correlation(np.asarray(picks, dtype=np.int64), self.picks)
        found: Floats = self.shift + self.scale * (near @ cho_solve(self.factor, self.targets))
        return found

    def value(self, pick: ArrayLike) -> float:
        """Expected score of one architecture ``(1, D)``, on the scale of those given."""
        found = float(self.mean(pick)[0])
        return float(np.exp(found)) if self.in_logs else found

    def draws(self, picks: ArrayLike, count: int, generator: np.random.Generator) -> Floats:
        """So many joint draws ``(count, m)`` of the log scores of other architectures ``(m, D)``.

        A draw of the prior, moved by what the scores say of it (Matheron's rule; Wilson et al.
        2020, eq. 8).
        """
        own = np.asarray(picks, dtype=np.int64)
        prior = _prior(np.concatenate([self.picks, own]), count, generator)
        known, asked = prior[:, : len(self.picks)], prior[:, len(self.picks) :]
        errors = np.sqrt(self.noise) * generator.standard_normal(known.shape)
        moved = cho_solve(self.factor, (self.targets - known - errors).T)
        found: Floats = asked + (correlation(own, self.picks) @ moved).T
        return self.shift + self.scale * found


def _logs(errors: Floats) -> Floats:
    floor = errors[errors > 0].min(initial=np.inf) / 2
    found: Floats = np.log(np.maximum(errors, floor if np.isfinite(floor) else 1.0))
    return found


def correlation(a: Picks, b: Picks) -> Floats:
    """Prior correlations ``(n, m)`` of architectures ``(n, D)`` and ``(m, D)``."""
    decisions = a.shape[1]
    equal = np.zeros((len(a), len(b)))
    for i in range(decisions):
        equal += a[:, i, None] == b[None, :, i]
    share = equal / decisions
    pairs = share * (equal - 1) / (decisions - 1) if decisions > 1 else share
    found: Floats = OPTION * share + PAIR * pairs + WHOLE * (equal == decisions)
    return found


def _prior(picks: Picks, count: int, generator: np.random.Generator) -> Floats:
    """Draws ``(count, n)`` of the prior; equal architectures have equal values."""
    _, decisions = picks.shape
    sizes = picks.max(axis=0) + 1
    found = np.zeros((count, len(picks)))
    for i, size in enumerate(sizes):
        effects = generator.standard_normal((count, size))
        found += np.sqrt(OPTION / decisions) * effects[:, picks[:, i]]
    pairs = list(combinations(range(decisions), 2))
    columns = [(picks[:, i] * sizes[j] + picks[:, j], sizes[i] * sizes[j]) for i, j in pairs]
    for column, size in columns or [(picks[:, 0], sizes[0])]:
        effects = generator.standard_normal((count, size))
        found += np.sqrt(PAIR / max(1, len(pairs))) * effects[:, column]
    unique, inverse = np.unique(picks, axis=0, return_inverse=True)
    rest = generator.standard_normal((count, len(unique)))
    whole: Floats = found + np.sqrt(WHOLE) * rest[:, inverse.ravel()]
    return whole


def worth_training(draws: Floats, costs: ArrayLike, size: int) -> list[int]:
    """The `size` candidates whose front has the largest expected hypervolume.

    Taken one after another, each time the one that adds most in the mean over the draws; then any
    of them is exchanged for another as long as that adds. The volume is that of score and log cost,
    up to the worst score of a draw and a little beyond the largest cost.

    Args:
        draws: ``(S, n)``, possible scores of n candidates, the less the better.
        costs: ``(n,)``.
        size: at least 1; no more than are better than all cheaper ones in some draw.

    Returns:
        Positions, by ascending cost.
    """
    order, heights, widths = _steps(draws, costs)
    if len(order) <= size:
        return [int(i) for i in order]
    taken: list[int] = []
    for _ in range(size):
        taken.append(int(_gains(heights, widths, taken).argmax()))
    exchanged = True
    while exchanged:
        exchanged = False
        for one in sorted(taken):
            others = [i for i in taken if i != one]
            gains = _gains(heights, widths, others)
            other = int(gains.argmax())
            if gains[other] > gains[one] * (1 + 1e-9):
                taken, exchanged = [*others, other], True
    return [int(order[i]) for i in sorted(taken)]


def near_front(values: Floats, costs: ArrayLike, count: int) -> Picks:
    """Positions of the candidates that are least worse than the best that costs no more.

    Args:
        values: ``(n,)``, expected scores, the less the better.
        costs: ``(n,)``.
        count: how many; of fewer candidates all.
    """
    order = np.lexsort((values, np.asarray(costs, dtype=np.float64)))
    above = values[order] - np.minimum.accumulate(values[order])
    found: Picks = np.sort(order[np.argsort(above, kind="stable")[:count]])
    return found


def adds_most(draws: Floats, costs: ArrayLike, taken: Sequence[int]) -> int | None:
    """Position of the candidate that adds most to the expected hypervolume of those taken.

    Args:
        draws: see `worth_training`.
        costs: see `worth_training`.
        taken: positions.

    Returns:
        None where no other adds anything in any draw.
    """
    order, heights, widths = _steps(draws, costs, taken)
    gains = _gains(heights, widths, [int(i) for i in np.flatnonzero(np.isin(order, taken))])
    best = int(gains.argmax())
    return int(order[best]) if gains[best] > 0 else None


def _steps(
    draws: Floats, costs: ArrayLike, kept: Sequence[int] = ()
) -> tuple[Picks, Floats, Floats]:
    """The promising candidates and those kept, as `_gains` wants them.

    Returns:
        Positions by ascending cost ``(m,)``, heights ``(S, m)`` above the worst of each draw, and
        widths ``(m,)`` in log cost.
    """
    logs = np.log(np.maximum(np.asarray(costs, dtype=np.float64), 1e-300))
    order = np.argsort(logs, kind="stable")
    places = np.union1d(_promising(draws[:, order]), np.flatnonzero(np.isin(order, kept)))
    order = order[places]
    corner = logs[order[-1]] + MARGIN * float(np.ptp(logs[order])) + 1e-12
    heights = draws.max(axis=1, keepdims=True) - draws[:, order]
    return order, heights, np.diff(np.append(logs[order], corner))


def _promising(draws: Floats) -> Picks:
    """Positions of the candidates that are most often better than all cheaper ones."""
    best = np.minimum.accumulate(draws, axis=1)
    often = (draws <= best).mean(axis=0)
    order = np.argsort(-often, kind="stable")[:POOL]
    found: Picks = order[often[order] > 0]
    return found


def _gains(heights: Floats, widths: Floats, taken: list[int]) -> Floats:
    """What each candidate would add to the volume of those taken ``(n,)``, mean over the draws.

    Args:
        heights: ``(S, n)``, by ascending cost.
        widths: ``(n,)``, from the cost of each candidate to the next.
        taken: positions; for them it is -1.
    """
    edges = np.concatenate([[0.0], np.cumsum(widths)])
    order, found = sorted(taken), np.zeros(len(widths))
    front = np.zeros((len(heights), 1))  # its height from one of its networks to the next
    for start, end in zip([-1, *order], [*order, len(widths)], strict=True):
        if start >= 0:
            front = np.maximum(front, heights[:, start, None])
        shared = edges[end] - np.maximum(edges[max(start, 0)], edges[:-1])
        found += np.maximum(0.0, heights - front).mean(axis=0) * np.maximum(0.0, shared)
    found[taken] = -1.0
    return found
