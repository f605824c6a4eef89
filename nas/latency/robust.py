"""Robust fits of what is linear in its coefficients, by reweighted least squares."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HUBER = 1.345  # in standard deviations: 95 % as efficient as least squares where errors are normal
_FLOOR = 1e-9  # of the scale: exact data have none


def huber_weights(residuals: Array) -> Array:
    """Weights of Huber's loss, its knee at 1.345 robust standard deviations (MAD) of residuals."""
    size = np.abs(residuals)
    knee = HUBER * max(float(np.median(size)) / 0.6745, _FLOOR)
    return knee / np.maximum(size, knee)


def positive_relative(columns: Array, y: Array, rounds: int = 30) -> Array:
    """Coefficients >= 0 of ``y ~ columns @ c`` for errors that are a share of the value.

    Each residual is divided by the *fitted* value: divided by the measured one, a row that is far
    too low would outweigh all others.

    Shapes: columns ``(n, p)`` of values >= 0, y ``(n,)`` above 0 -> ``(p,)``.
    """
    from scipy.optimize import nnls

    size = np.sqrt((columns**2).mean(0))
    size[size == 0] = 1.0
    scaled = columns / size
    fitted, weights = np.maximum(y, np.median(y) * 1e-3), np.ones_like(y)
    coefficients = np.zeros(columns.shape[1])
    for _ in range(rounds):
        rows = np.sqrt(weights) / fitted
        before = coefficients
        coefficients, _ = nnls(scaled * rows[:, None], y * rows, maxiter=50 * columns.shape[1])
        # Never far below the measured ones: a fitted 0 would claim an exact row.
        fitted = np.maximum(scaled @ coefficients, 1e-3 * np.median(y))
        weights = huber_weights((y - fitted) / fitted)
        if np.allclose(coefficients, before, rtol=1e-7, atol=0):
            break
    return np.asarray(coefficients / size, dtype=np.float64)


def ridge(columns: Array, y: Array, rounds: int = 10) -> tuple[Array, float, float]:
    """Huber ridge regression; its strength is the one of least leave-one-out error.

    Columns should be of one scale. Returns coefficients ``(p,)``, the intercept, which is not
    shrunk, and the strength.

    Shapes: columns ``(n, p)``, y ``(n,)``.
    """
    weights = np.ones_like(y)
    strengths = len(y) * np.logspace(-7, 2, 19)
    coefficients, intercept, strength = np.zeros(columns.shape[1]), float(np.median(y)), 1.0
    for _ in range(rounds):
        before = coefficients
        coefficients, intercept, strength = _weighted_ridge(columns, y, weights, strengths)
        weights = huber_weights(y - columns @ coefficients - intercept)
        if np.allclose(coefficients, before, rtol=1e-6, atol=1e-12):
            break
    return coefficients, intercept, strength


def _weighted_ridge(
    columns: Array, y: Array, weights: Array, strengths: Array
) -> tuple[Array, float, float]:
    total = weights.sum()
    means, middle = weights @ columns / total, float(weights @ y / total)
    root = np.sqrt(weights)
    u, s, vt = np.linalg.svd((columns - means) * root[:, None], full_matrices=False)
    target = (y - middle) * root
    inner = u.T @ target
    errors, shrunk = [], []
    for strength in strengths:
        factor = s**2 / (s**2 + strength)
        residuals = target - u @ (factor * inner)
        # The intercept's own leverage is w_i / sum(w).
        leverage = (u**2) @ factor + weights / total
        errors.append(float(np.mean(np.abs(residuals / np.maximum(1 - leverage, 1e-3)))))
        shrunk.append(s / (s**2 + strength) * inner)
    best = int(np.argmin(errors))
    coefficients = vt.T @ shrunk[best]
    return coefficients, middle - float(means @ coefficients), float(strengths[best])
