"""A unit's latency from its features: the model that predicts units left out best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from nas.errors import UserError
from nas.latency.accuracy import Accuracy, accuracy
from nas.latency.predict import (
    Array,
    Fit,
    Predictor,
    fit_mlp,
    fit_nonnegative,
    fit_ridge,
    implausible,
    left_out,
)

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[float, Field(ge=0, allow_inf_nan=False)]

FEWEST = 3  # units from which a model can be chosen


@dataclass(frozen=True)
class UnitTime:
    """Seconds of one unit, the features that a model sees of it, and how it was timed.

    Raises:
        UserError: seconds that are not above 0, or a feature that is not a finite number >= 0.
    """

    seconds: Seconds
    features: Mapping[str, Count]
    timing: Mapping[str, Any] = field(default_factory=dict)  # see `nas.latency.measure.Timing`

    def __post_init__(self) -> None:
        if not 0 < self.seconds < np.inf:
            raise UserError(f"seconds={self.seconds} is no latency; it must be above 0")
        for name, value in self.features.items():
            if not 0 <= value < np.inf:
                raise UserError(f"feature {name}={value} must be a finite number of 0 or more")


@dataclass(frozen=True)
class UnitModel:
    """Seconds of a unit from its features, for units that were not measured.

    Attributes:
        kind: one of `UNIT_FITS`.
        names: of the features that the predictor reads, in order.
    """

    kind: Literal["linear", "polynomial", "mlp", "power"]
    names: tuple[str, ...]
    predictor: Predictor

    def __post_init__(self) -> None:
        self.predictor.check(len(self.names))

    def predict(self, described: Mapping[str, float]) -> float:
        """Seconds of a unit of these features."""
        values = [described.get(name, 0.0) for name in self.names]
        return float(self.predictor(torch.tensor([values], dtype=torch.float64))[0])


UNIT_FITS: dict[str, Fit] = {  # the plainest first: it wins a tie
    "linear": fit_nonnegative,
    "polynomial": partial(fit_ridge, logs=True, degree=2, exponential=True),
    "mlp": partial(fit_mlp, logs=True, strength=0.1),  # the linear model times a bounded factor
    # A product of powers of the features times a bounded factor.
    "power": partial(
        fit_mlp, base=partial(fit_ridge, logs=True, exponential=True), logs=True, strength=0.01
    ),
}


@dataclass(frozen=True)
class UnitFit:
    """The model that predicts unmeasured units best.

    Attributes:
        scores: kind of model -> accuracy on units left out, by cross-validation.
        dropped: keys of implausible units.
    """

    model: UnitModel
    scores: Mapping[str, Accuracy]
    dropped: tuple[str, ...]


def fit_units(
    units: Mapping[str, UnitTime],
    kinds: Sequence[str] = tuple(UNIT_FITS),
    folds: int = 5,
    seed: int = 0,
) -> UnitFit:
    """Fit the kind of model with the least mean relative error on units left out.

    Implausible units are dropped first, but for those without any feature, of which no fit knows.

    Args:
        kinds: of `UNIT_FITS`, to choose from.
        folds: of the cross-validation; as many as there are units where these are fewer.
        seed: of the division into folds.

    Raises:
        UserError: an unknown kind, none, or fewer than three units.
    """
    unknown = [kind for kind in kinds if kind not in UNIT_FITS]
    if unknown or not kinds or len(units) < FEWEST:
        raise UserError(
            f"{len(units)} units and the kinds of model {list(kinds)}: to choose one takes at "
            f"least {FEWEST} units, and kinds out of {list(UNIT_FITS)}"
        )
    keys, seconds = np.array(list(units)), np.array([unit.seconds for unit in units.values()])
    x, names = _matrix([unit.features for unit in units.values()])
    wrong = implausible(seconds, fit_nonnegative(x, seconds).seconds(x)) & x.any(1)
    dropped, keys, seconds = tuple(keys[wrong].tolist()), keys[~wrong], seconds[~wrong]
    x, kept = x[~wrong], min(folds, int((~wrong).sum()))
    predicted = {k: left_out(UNIT_FITS[k], x, seconds, keys.tolist(), kept, seed) for k in kinds}
    scores = {kind: accuracy(found, seconds) for kind, found in predicted.items()}
    best: Any = min(kinds, key=lambda kind: scores[kind].mape)
    return UnitFit(UnitModel(best, names, UNIT_FITS[best](x, seconds)), scores, dropped)


def _matrix(rows: Sequence[Mapping[str, float]]) -> tuple[Array, tuple[str, ...]]:
    """Features ``(n, F)`` and their names; only those that differ, the others tell nothing."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    x = np.array([[float(row.get(name, 0.0)) for name in names] for row in rows])
    x = x.reshape(len(rows), len(names))
    varying = np.flatnonzero(np.ptp(x, axis=0) > 0)
    return x[:, varying], tuple(names[i] for i in varying)
