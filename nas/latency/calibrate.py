"""The latency of a network from the sum over its units, corrected by a few measured networks.

Measured alone, a unit pays for being called, and finds other things in the cache than it does
inside a network. Most of that is the same for every network or every unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, FiniteFloat

from nas.config.schema import checked
from nas.errors import UserError
from nas.latency.models import Amount, Seconds, UnitTime
from nas.latency.predict import Array, huber_weights
from nas.latency.units import weights_of

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Units = Mapping[str, UnitTime]
Role = Literal["calibration", "validation"]

_FACTORS = (0.1, 10.0)  # of one unit beside the common scale
_STRENGTHS = np.logspace(-4, 3, 22)
_ROOMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # quantiles of the networks' weights
_UNSHRUNK = 1e3  # a column so much larger than the others is hardly touched by a ridge regression
_ROUNDS = 3  # of reweighting


@checked("network")
@dataclass(frozen=True)
class MeasuredNetwork:
    """A whole network and its time.

    Attributes:
        choices: decision -> option.
        uses: unit -> how often this network executes it.
        role: a correction is calibrated on some networks, and validated on the others.
        timing: see `nas.latency.measure.Timing`.
        total: sum of the times of its units; `predicted` is that, corrected.
        macs: multiply-accumulates of its units, to compare with.

    Raises:
        UserError: seconds that are not above 0.
    """

    choices: Mapping[str, Any]
    seconds: Seconds
    uses: Mapping[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    role: Role = "calibration"
    timing: Mapping[str, Any] = field(default_factory=dict)
    total: FiniteFloat = 0.0
    predicted: FiniteFloat = 0.0
    macs: Amount = 0.0


def sum_of(uses: Mapping[str, int], units: Units) -> float:
    """Sum the seconds of all units that a network executes, each measured alone.

    Raises:
        UserError: the network executes nothing that takes time.
    """
    total = sum(count * units[key].seconds for key, count in uses.items())
    if not total > 0:
        raise UserError(f"a network's total={total} s is no latency; must be above 0")
    return total


@dataclass(frozen=True)
class Spill:
    """The time to fetch weights again that no cache holds from one call to the next.

    A unit measured alone finds its weights in the cache, as long as it is a small one.

    Args:
        room: as many weights stay.
        per_weight: seconds for each one more; above 0.
    """

    room: FiniteFloat
    per_weight: FiniteFloat

    def __call__(self, weights: float) -> float:
        """Seconds."""
        return self.per_weight * max(0.0, weights - self.room)


@dataclass(frozen=True)
class Correction:
    """``seconds = offset + sum_units (scale * factors[unit] * alone + per_unit) + spill``.

    Scale and factors are above 0. The offset and `per_unit` may be below: what every unit paid when
    measured alone, a network may pay once.

    Args:
        factors: of units; 1 where there is none.
        spill: None: there is no such term.
    """

    scale: Positive = 1.0
    per_unit: FiniteFloat = 0.0
    offset: FiniteFloat = 0.0
    factors: Mapping[str, Positive] = field(default_factory=dict)
    spill: Spill | None = None

    def unit(self, key: str, seconds: float) -> float:
        """Seconds that one use of a unit adds to a network; `seconds` is its time alone."""
        return self.scale * self.factors.get(key, 1.0) * seconds + self.per_unit

    def __call__(self, uses: Mapping[str, int], units: Units) -> float:
        """Seconds of the network that executes each unit `uses` times."""
        added = sum(n * self.unit(key, units[key].seconds) for key, n in uses.items())
        weights = sum(n * weights_of(units[key].features) for key, n in uses.items())
        return self.offset + added + (0.0 if self.spill is None else self.spill(weights))


@dataclass(frozen=True)
class Calibration:
    """The correction chosen, and the mean relative error of every form on networks left out."""

    correction: Correction
    chosen: str
    errors: Mapping[str, float]


Fit = Callable[[Sequence[MeasuredNetwork], Units], Correction]


def calibrate(networks: Sequence[MeasuredNetwork], units: Units) -> Calibration:
    """Choose the form of correction that predicts left-out networks best, and fit it to all.

    Forms are tried from the plainest on (nothing, scale, scale and offset, scale and per unit, a
    factor of each unit, the same and a spill). A fuller one is taken only where its leave-one-out
    error is less by more than the standard error of the difference: with ten networks, most of what
    a second parameter explains is noise.

    Raises:
        UserError: no network, or one that executes nothing.
    """
    if not networks:
        raise UserError("a correction needs at least one measured network")
    for network in networks:
        sum_of(network.uses, units)
    best, errors = "nothing", {"nothing": _left_out(networks, units, FORMS["nothing"].fit)}
    for name, form in tuple(FORMS.items())[1:]:
        if len(networks) >= form.networks:
            errors[name] = _left_out(networks, units, form.fit)
            best = name if _clearly_less(errors[name], errors[best]) else best
    return Calibration(
        FORMS[best].fit(networks, units),
        best,
        {name: float(error.mean()) for name, error in errors.items()},
    )


def _left_out(networks: Sequence[MeasuredNetwork], units: Units, fit: Fit) -> Array:
    """The relative error of each network ``(n,)`` when the correction is fitted to the others."""
    errors = []
    for index, network in enumerate(networks):
        correction = fit([n for i, n in enumerate(networks) if i != index], units)
        errors.append(abs(correction(network.uses, units) / network.seconds - 1))
    return np.array(errors)


def _clearly_less(error: Array, than: Array) -> bool:
    gain = than - error
    # The floor: gains of a millionth are rounding, not knowledge.
    doubt = float(gain.std()) / max(len(gain) - 1, 1) ** 0.5
    return bool(gain.mean() > max(doubt, 1e-6))


def _common(
    networks: Sequence[MeasuredNetwork], units: Units, extra: tuple[str, ...] = ()
) -> Correction:
    """Scale and the `extra` parameters by a robust fit of relative errors."""
    from scipy.optimize import least_squares

    # A share of what the sum says: of the measured time, a row far too low would outweigh all.
    total = np.array([sum_of(n.uses, units) for n in networks])
    target = np.array([n.seconds for n in networks]) / total
    columns = {
        "scale": np.ones(len(total)),
        "per_unit": np.array([sum(n.uses.values()) for n in networks]) / total,
        "offset": 1 / total,
    }
    design = np.column_stack([columns[name] for name in ("scale", *extra)])
    # Columns of one size, or the solver takes a count beside microseconds for rounding.
    size = np.sqrt((design**2).mean(0))
    found = least_squares(
        lambda c: design / size @ c - target,
        np.linalg.lstsq(design / size, target)[0],
        lambda c: design / size,
        loss="huber",
        f_scale=0.03,
    )
    values = dict(zip(("scale", *extra), (found.x / size).tolist(), strict=True))
    if values["scale"] <= 0:  # nothing physical: longer units make a faster network
        return Correction() if not extra else _common(networks, units)
    return Correction(**values)


class _Ridge(NamedTuple):
    """A fit of relative times.

    Attributes:
        score: minus the leave-one-out error.
        offset, room: what it was fitted with.
        fitted: relative time of each network; 1 is right.
    """

    score: float
    offset: bool
    room: float | None
    fitted: Array
    correction: Correction


def _factors(networks: Sequence[MeasuredNetwork], units: Units, spill: bool) -> Correction:
    """A factor for each unit by ridge regression around one common scale.

    In a network, a unit finds its weights in a farther cache than alone, or is fused with the next
    one: more or less so by its size and kind. Units that the networks say little of stay near the
    common scale. Relative errors, by Huber's loss; strength, offset and room are those of least
    leave-one-out error. A scale that is not above 0 gives no correction.

    Args:
        spill: with a `Spill`, its room among quantiles of the networks' weights.
    """
    from sklearn.linear_model import RidgeCV

    names = sorted({key for network in networks for key in network.uses})
    counts = np.array([[network.uses.get(key, 0) for key in names] for network in networks])
    parts = counts * np.array([units[key].seconds for key in names])  # (n, U)
    weights = counts @ np.array([weights_of(units[key].features) for key in names])
    seconds = np.array([network.seconds for network in networks])

    def ridge(loads: Array, offset: bool, room: float | None) -> _Ridge | None:
        """None: longer units, or more weights, would make a faster network."""
        columns = [parts.sum(1)]
        if offset:
            columns.append(np.full_like(seconds, seconds.mean()))
        if room is not None:
            columns.append(np.maximum(0, weights - room) * (seconds.mean() / weights.max()))
        free = np.column_stack(columns)
        design = np.hstack([_UNSHRUNK * free, parts]) / seconds[:, None]
        model = RidgeCV(_STRENGTHS, fit_intercept=False)
        model.fit(design, np.ones(len(seconds)), sample_weight=loads)
        split = free.shape[1]
        found, shrunk = (_UNSHRUNK * model.coef_[:split]).tolist(), model.coef_[split:]
        scale = found[0]
        if scale <= 0 or (room is not None and found[-1] <= 0):
            return None
        factors = np.clip(1 + shrunk / scale, *_FACTORS).tolist()
        spilled = None
        if room is not None:
            spilled = Spill(room, found[-1] * float(seconds.mean() / weights.max()))
        correction = Correction(
            scale,
            offset=found[1] * float(seconds.mean()) if offset else 0.0,
            factors=dict(zip(names, factors, strict=True)),
            spill=spilled,
        )
        return _Ridge(float(model.best_score_), offset, room, model.predict(design), correction)

    rooms: list[float | None] = [None]
    if spill and len(set(weights)) > 1:
        rooms = [float(q) for q in np.quantile(weights, _ROOMS)]
    shapes = [(offset, room) for offset in (False, True) for room in rooms]
    loads = huber_weights(1 - _common(networks, units).scale * parts.sum(1) / seconds)
    correction = Correction()
    for _ in range(_ROUNDS):
        fits = [fit for shape in shapes if (fit := ridge(loads, *shape)) is not None]
        if not fits:
            return Correction()
        best = max(fits, key=lambda fit: fit.score)
        loads, shapes = huber_weights(1 - best.fitted), [(best.offset, best.room)]
        correction = best.correction
    return correction


@dataclass(frozen=True)
class Form:
    """What a correction may have, and from how many networks on it is more than a guess."""

    fit: Fit
    networks: int


FORMS: Mapping[str, Form] = {
    "nothing": Form(lambda networks, units: Correction(), 1),
    "scale": Form(_common, 2),
    "scale+offset": Form(partial(_common, extra=("offset",)), 4),
    "scale+per_unit": Form(partial(_common, extra=("per_unit",)), 4),
    "factors": Form(partial(_factors, spill=False), 6),
    "factors+spill": Form(partial(_factors, spill=True), 10),
}
