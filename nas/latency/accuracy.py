"""How well predicted latencies, or other figures above 0, agree with measured ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from nas.errors import UserError

Figures = Sequence[float] | NDArray[np.float64]


def mape(predicted: Figures, measured: Figures) -> float:
    """Mean of ``|predicted - measured| / measured``, as a share: 0.05 is 5 %."""
    return float(_relative(predicted, measured).mean())


def within(predicted: Figures, measured: Figures, share: float = 0.1) -> float:
    """The share of predictions that are off by at most `share` of what was measured."""
    # The small allowance: a prediction at the edge itself counts, whatever its rounding.
    return float((_relative(predicted, measured) <= share * (1 + 1e-9)).mean())


def kendall(predicted: Figures, measured: Figures) -> float:
    """Kendall's tau-b: 1 for the same order, 0 for an unrelated one or where all are equal."""
    from scipy.stats import kendalltau

    return _rank(kendalltau, predicted, measured)


def spearman(predicted: Figures, measured: Figures) -> float:
    """Spearman's rank correlation: 1 for the same order, 0 where all are equal."""
    from scipy.stats import spearmanr

    return _rank(spearmanr, predicted, measured)


@dataclass(frozen=True)
class Accuracy:
    """All figures at once; shares, not per cent."""

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
    return Accuracy(
        len(measured),
        mape(predicted, measured),
        within(predicted, measured, 0.05),
        within(predicted, measured, 0.1),
        kendall(predicted, measured),
        spearman(predicted, measured),
    )


def _checked(
    predicted: Figures, measured: Figures
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, m = np.asarray(predicted, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if p.shape != m.shape or p.ndim != 1 or not p.size:
        raise UserError(
            f"{p.size} predictions cannot be compared with {m.size} measurements: there must be "
            "as many, and at least one"
        )
    if not (np.isfinite(p).all() and np.isfinite(m).all() and (m > 0).all()):
        raise UserError("predictions must be finite numbers, and measurements also above 0")
    return p, m


def _relative(predicted: Figures, measured: Figures) -> NDArray[np.float64]:
    p, m = _checked(predicted, measured)
    return np.abs(p - m) / m


def _rank(statistic: object, predicted: Figures, measured: Figures) -> float:
    p, m = _checked(predicted, measured)
    # Constant figures have no order, and scipy says NaN with a warning.
    if (p == p[0]).all() or (m == m[0]).all():
        return 0.0
    return float(statistic(p, m).statistic)  # type: ignore[operator]
