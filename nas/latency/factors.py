"""The correction that has a factor for each unit: a ridge regression around one common scale.

In a network, a unit finds its weights in a farther cache than alone, or is fused with the next one:
more or less so by its size and kind. What the networks say little of stays near the common scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nas.latency.correction import Correction, Network, Spill
from nas.latency.robust import Array, huber_weights

_FACTORS = (0.1, 10.0)  # what can still be the same unit
_STRENGTHS = np.logspace(-4, 3, 22)
_ROOMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # quantiles of the networks' weights
_ROUNDS = 3  # of reweighting


@dataclass(frozen=True)
class _Shape:
    """What stands beside the factors, and is not shrunk."""

    offset: bool
    room: float | None


@dataclass
class _Fit:
    error: float
    shape: _Shape
    free: Array  # of scale, offset and spill, as far as there
    shrunk: Array  # of each unit, beside the scale
    fitted: Array = field(default_factory=lambda: np.zeros(0))


def fit_factors(networks: Sequence[Network], spill: bool) -> Correction:
    """The correction with least leave-one-out error, of all strengths, with and without an offset.

    Relative errors, by Huber's loss. A common scale that is not above 0 gives no correction.

    Args:
        spill: with a `Spill`, its room among quantiles of the networks' weights.
    """
    names = sorted({name for network in networks for name in network.parts})
    seconds = np.array([n.seconds for n in networks])
    parts = np.array([[n.parts.get(name, 0.0) for name in names] for n in networks])
    weights = np.array([n.weights for n in networks])
    rooms: list[float | None] = [None]
    if spill and len(set(weights)) > 1:
        rooms = [float(q) for q in np.quantile(weights, _ROOMS)]
    shapes = [_Shape(offset, room) for offset in (False, True) for room in rooms]
    best, loads = None, np.ones_like(seconds)
    for _ in range(_ROUNDS):
        fits = [_ridge(shape, parts, weights, seconds, loads) for shape in shapes]
        best = min((fit for fit in fits if _physical(fit)), key=lambda f: f.error, default=None)
        if best is None:
            break
        loads = huber_weights(1 - best.fitted)
    if best is None:
        return Correction()
    scale = float(best.free[0])
    factors = np.clip(1 + best.shrunk / scale, *_FACTORS).tolist()
    offset = float(best.free[1] * seconds.mean()) if best.shape.offset else 0.0
    found = None
    if best.shape.room is not None:
        found = Spill(best.shape.room, float(best.free[-1]) * float(seconds.mean() / weights.max()))
    return Correction(
        scale, offset=offset, factors=dict(zip(names, factors, strict=True)), spill=found
    )


def _physical(fit: _Fit) -> bool:
    return bool(fit.free[0] > 0 and (fit.shape.room is None or fit.free[-1] > 0))


def _ridge(shape: _Shape, parts: Array, weights: Array, seconds: Array, loads: Array) -> _Fit:
    """Of the relative times 1: free columns by least squares, those of the units shrunk."""
    columns = [parts.sum(1)]
    if shape.offset:
        columns.append(np.full_like(seconds, seconds.mean()))
    if shape.room is not None:
        columns.append(np.maximum(0, weights - shape.room) * (seconds.mean() / weights.max()))
    free, own = np.column_stack(columns) / seconds[:, None], parts / seconds[:, None]
    root = np.sqrt(loads)
    q, r = np.linalg.qr(free * root[:, None])
    rest = own * root[:, None] - q @ (q.T @ (own * root[:, None]))
    target = root - q @ (q.T @ root)
    u, s, vt = np.linalg.svd(rest, full_matrices=False)
    inner, taken = u.T @ target, (q**2).sum(1)
    best = _Fit(np.inf, shape, np.zeros(free.shape[1]), np.zeros(own.shape[1]))
    for strength in _STRENGTHS:
        factor = s**2 / (s**2 + strength)
        left = np.maximum(1 - taken - (u**2) @ factor, 1e-3)
        error = float(np.mean(np.abs((target - u @ (factor * inner)) / left)))
        if error < best.error:
            shrunk = vt.T @ (s / (s**2 + strength) * inner)
            solved = np.linalg.lstsq(r, q.T @ (root - own @ shrunk * root))[0]
            best = _Fit(error, shape, solved, shrunk, free @ solved + own @ shrunk)
    return best
