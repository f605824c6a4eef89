"""Regressions of latency: fitted by scikit-learn and scipy, stored as numbers; their accuracy.

A row of numbers describes what is timed: the features of a unit, or the options that a network
takes. The same fits and the same `Predictor` serve both.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from nas.errors import UserError

Array = NDArray[np.float64]
Figures = Sequence[float] | Array
Fit = Callable[[Array, Array], "Predictor"]  # rows (n, F), seconds (n,) -> model

# A time so far below what a fit of all others says is an interrupted or mistyped measurement.
# Slow times stay: a device does have bad moments, and the fits are robust.
IMPLAUSIBLE = 0.1
HUBER = 1.345  # standard deviations: 95 % as efficient as least squares where errors are normal
_STRENGTHS = np.logspace(-7, 2, 19)  # of ridge regression, for each row


@dataclass(frozen=True)
class Net:
    """A bounded correction in log space, ``out . tanh(z @ into + bias) + shift``.

    Attributes:
        into: ``(F, H)``; of several fitted networks, all hidden units side by side.
        logs: z are ``log(1 + x)`` of the columns x.
    """

    into: tuple[tuple[FiniteFloat, ...], ...]
    bias: tuple[FiniteFloat, ...]
    out: tuple[FiniteFloat, ...]
    shift: FiniteFloat
    logs: bool

    def __call__(self, x: Array) -> Array:
        """The correction ``(n,)`` of rows ``(n, F)``."""
        z = np.log1p(x) if self.logs else x
        into = np.reshape(self.into, (x.shape[-1], len(self.bias)))
        hidden: Array = np.tanh(z @ into + np.array(self.bias))
        found: Array = hidden @ np.array(self.out) + self.shift
        return found


@dataclass(frozen=True)
class Predictor:
    """Columns of numbers ``(n, F)`` -> seconds ``(n,)``.

    ``seconds = (intercept + basis(x) @ weights) * exp(net(x))``.

    Attributes:
        logs: the basis is made of ``log(1 + x)``, not of x.
        degree: 2: the basis also has the products of all pairs of columns.
        exponential: the sum is the logarithm of the seconds.
        net: a further factor; None: there is none.
    """

    weights: tuple[FiniteFloat, ...]
    intercept: FiniteFloat
    logs: bool = False
    degree: Literal[1, 2] = 1
    exponential: bool = False
    net: Net | None = None

    @property
    def additive(self) -> bool:
        """Whether the seconds are a sum over the columns."""
        return not (self.logs or self.exponential or self.degree > 1 or self.net)

    def check(self, columns: int) -> None:
        """Refuse numbers that do not belong to this many columns.

        Raises:
            UserError: too few or too many of them.
        """
        wanted = columns if self.degree == 1 else columns + columns * (columns + 1) // 2
        if len(self.weights) != wanted:
            raise UserError(f"{len(self.weights)} weights, and there must be {wanted}")
        net = self.net
        if net is None:
            return
        sizes = {len(row) for row in net.into} | {len(net.out)}
        if len(net.into) != columns or sizes != {len(net.bias)}:
            raise UserError("the sizes of the parts of its net do not agree")

    def __call__(self, x: Array) -> Array:
        """Seconds ``(n,)`` of rows ``(n, F)``."""
        columns = _basis(np.log1p(x) if self.logs else x, self.degree)
        value: Array = columns @ np.array(self.weights) + self.intercept
        value = np.exp(value) if self.exponential else value
        return value if self.net is None else value * np.exp(self.net(x))


def _basis(x: Array, degree: int) -> Array:
    """Rows ``(n, F)``; of degree 2 also the products of all pairs, ``(n, F + F (F + 1) / 2)``."""
    from sklearn.preprocessing import PolynomialFeatures

    if degree == 1 or not x.shape[1]:
        return x
    columns: Array = PolynomialFeatures(degree, include_bias=False).fit_transform(x)
    return columns


def fit_nonnegative(x: Array, y: Array) -> Predictor:
    """Fit a sum with no coefficient below 0, so that more of anything never takes less time.

    Huber loss of ``log(fitted / measured)``: errors are shares of a time, and neither a row that is
    far too high nor one far too low outweighs the others.
    """
    from scipy.optimize import least_squares, nnls

    columns = np.column_stack([np.ones(len(x)), x])
    used = np.flatnonzero(np.r_[True, np.ptp(x, axis=0) > 0])
    size = np.sqrt((columns[:, used] ** 2).mean(0))
    scaled, unit = columns[:, used] / size, float(np.median(y))
    logs = np.log(y / unit)

    def fitted(c: Array) -> Array:
        return np.asarray(np.maximum(scaled @ c, 1e-9))

    # Neither a row far too low nor one far too high decides where the search begins.
    level = np.maximum(y / unit, 1.0)
    start, _ = nnls(scaled / level[:, None], y / unit / level, maxiter=50 * len(used) + 100)
    found = least_squares(
        lambda c: np.log(fitted(c)) - logs,
        start,
        lambda c: scaled / fitted(c)[:, None],
        bounds=(0, np.inf),
        loss="huber",
        f_scale=0.1,
        x_scale="jac",
        max_nfev=200,
    )
    coefficients = np.zeros(columns.shape[1])
    coefficients[used] = np.where(found.active_mask < 0, 0.0, found.x) / size * unit
    intercept, *weights = coefficients.tolist()
    return Predictor(tuple(weights), intercept)


def huber_weights(residuals: Array) -> Array:
    """Weights of Huber's loss, its knee at 1.345 robust standard deviations (MAD) of residuals."""
    size = np.abs(residuals)
    # The floor: exact data have no deviation.
    knee = HUBER * max(float(np.median(size)) / 0.6745, 1e-9)
    return knee / np.maximum(size, knee)


def fit_ridge(
    x: Array, y: Array, *, logs: bool = False, degree: Literal[1, 2] = 1, exponential: bool = False
) -> Predictor:
    """Fit a robust ridge regression of seconds, or of their logarithm, on standardised columns.

    Its strength is the one of least leave-one-out error; Huber's loss by reweighting.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    columns = _basis(np.log1p(x) if logs else x, degree)
    scaler = StandardScaler().fit(columns)
    scaled, unit = scaler.transform(columns), float(np.median(y))
    target, weights = np.log(y / unit) if exponential else y / unit, np.ones(len(y))
    for _ in range(5):
        model = RidgeCV(_STRENGTHS * len(y)).fit(scaled, target, sample_weight=weights)
        weights = huber_weights(target - model.predict(scaled))
    slopes = model.coef_ / scaler.scale_
    intercept = float(model.intercept_ - scaler.mean_ @ slopes)
    if exponential:
        intercept += float(np.log(unit))
    else:
        slopes, intercept = slopes * unit, intercept * unit
    return Predictor(tuple(slopes.tolist()), intercept, logs, degree, exponential)


def fit_mlp(
    x: Array,
    y: Array,
    *,
    base: Fit = fit_nonnegative,
    logs: bool = False,
    strength: float = 0.1,
    seed: int = 0,
) -> Predictor:
    """Fit a model times a factor, which is the mean in log space of four small networks.

    Far outside the data the factor is bounded, and the model goes on. The same rows and seed give
    the same fit.

    Args:
        base: fits the model.
        logs: the networks see ``log(1 + x)``.
        strength: of their weight decay.
    """
    from sklearn.preprocessing import StandardScaler

    plane = base(x, y)
    residuals = np.log(y / np.maximum(plane(x), 1e-9 * np.median(y)))
    deviation = float(residuals.std())
    if deviation < 1e-6:  # nothing is left to explain
        return plane
    columns = np.log1p(x) if logs else x
    scaler = StandardScaler().fit(columns)
    members = _members(scaler.transform(columns), residuals / deviation, strength, seed)
    into = np.hstack([net.coefs_[0] for net in members]) / scaler.scale_[:, None]
    bias = np.hstack([net.intercepts_[0] for net in members]) - scaler.mean_ @ into
    share = deviation / len(members)
    out = share * np.hstack([net.coefs_[1][:, 0] for net in members])
    shift = share * float(sum(net.intercepts_[1][0] for net in members))
    rows = tuple(map(tuple, into.tolist()))
    net = Net(rows, tuple(bias.tolist()), tuple(out.tolist()), shift, logs)
    return replace(plane, net=net)


def _members(x: Array, y: Array, strength: float, seed: int) -> list[Any]:
    from sklearn.neural_network import MLPRegressor

    members = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at max_iter: early stopping, nothing to worry of
        for member in range(4):
            net = MLPRegressor(
                hidden_layer_sizes=(16,), activation="tanh", solver="lbfgs", alpha=strength,
                max_iter=300, random_state=seed + member,
            )  # fmt: skip
            members.append(net.fit(x, y))
    return members


def left_out(
    fit: Fit, x: Array, y: Array, groups: Sequence[object], folds: int, seed: int
) -> Array:
    """Seconds ``(n,)`` of each row by a model fitted without its fold; a group is in one fold."""
    from sklearn.model_selection import GroupKFold

    labels = np.unique(np.array(groups), return_inverse=True)[1]
    predicted = np.zeros(len(y))
    splits = GroupKFold(folds, shuffle=True, random_state=seed).split(x, y, labels)
    for train, test in splits:
        predicted[test] = fit(x[train], y[train])(x[test])
    return predicted


def implausible(measured: Array, fitted: Array) -> NDArray[np.bool_]:
    """Tell which rows ``(n,)`` are below a tenth of a robust fit, where it can be relied on.

    That is six times as far off as the fit usually is.
    """
    logs = np.log(np.maximum(fitted, 1e-300) / measured)
    usual = 1.4826 * float(np.median(np.abs(logs)))
    return np.asarray(logs > max(-np.log(IMPLAUSIBLE), 6 * usual))


@dataclass(frozen=True)
class Accuracy:
    """How well predicted latencies, or other figures above 0, agree with measured ones.

    Attributes:
        count: how many were compared.
        mape: mean of ``|predicted - measured| / measured``, as a share: 0.05 is 5 %.
        within_5, within_10: share of predictions that are off by at most 5 or 10 %.
        kendall, spearman: Kendall's tau-b and Spearman's rank correlation: 1 for the same order, 0
            where all are equal.
    """

    count: Annotated[int, Field(ge=1)]
    mape: FiniteFloat
    within_5: FiniteFloat
    within_10: FiniteFloat
    kendall: FiniteFloat
    spearman: FiniteFloat


def accuracy(predicted: Figures, measured: Figures) -> Accuracy:
    """Compare predictions with measurements of the same things in the same order.

    Raises:
        UserError: none, not as many, not finite, or a measurement that is not above 0.
    """
    from scipy.stats import kendalltau, spearmanr

    p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if p.shape != m.shape or p.ndim != 1 or not p.size:
        raise UserError(
            f"{p.size} predictions cannot be compared with {m.size} measurements: there must be "
            "as many, and at least one"
        )
    if not (np.isfinite(p).all() and np.isfinite(m).all() and (m > 0).all()):
        raise UserError("predictions must be finite numbers, and measurements also above 0")
    errors = np.abs(p - m) / m
    # The small allowance: a prediction at the edge itself counts, whatever its rounding.
    within = [float((errors <= share * (1 + 1e-9)).mean()) for share in (0.05, 0.1)]
    # Constant figures have no order, and scipy says NaN with a warning.
    ordered = (p != p[0]).any() and (m != m[0]).any()
    ranks = [float(rank(p, m).statistic) if ordered else 0.0 for rank in (kendalltau, spearmanr)]
    return Accuracy(len(m), float(errors.mean()), *within, *ranks)
