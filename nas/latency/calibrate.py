"""Which correction makes the sums over units agree with a few whole networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.errors import UserError
from nas.latency.correction import Correction, Network
from nas.latency.factors import fit_factors
from nas.latency.robust import Array, huber_weights


@dataclass(frozen=True)
class Calibration:
    """The correction chosen, and the mean relative error of every form on networks left out."""

    correction: Correction
    chosen: str
    errors: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "correction": self.correction.to_json(),
            "chosen": self.chosen,
            "errors": dict(self.errors),
        }


Fit = Callable[[Sequence[Network]], Correction]


def calibrate(networks: Sequence[Network]) -> Calibration:
    """The form of correction that predicts networks left out best, fitted to all of them.

    From the plainest form on (nothing, scale, scale and offset, scale and per unit, a factor of
    each unit, the same and a spill), a fuller one is taken only where its leave-one-out error is
    less by more than the standard error of the difference: with ten networks, most of what a second
    parameter explains is noise.

    Raises:
        UserError: no network.
    """
    if not networks:
        raise UserError("a correction needs at least one measured network")
    errors, best = {"nothing": _left_out(networks, FORMS["nothing"].fit)}, "nothing"
    for name, form in tuple(FORMS.items())[1:]:
        if len(networks) >= form.networks:
            errors[name] = _left_out(networks, form.fit)
            best = name if _clearly_less(errors[name], errors[best]) else best
    return Calibration(
        FORMS[best].fit(networks),
        best,
        {name: float(error.mean()) for name, error in errors.items()},
    )


def _left_out(networks: Sequence[Network], fit: Fit) -> Array:
    """The relative error of each network when the correction is fitted to the others ``(n,)``."""
    errors = []
    for index, network in enumerate(networks):
        correction = fit([n for i, n in enumerate(networks) if i != index])
        seconds = correction(network)
        errors.append(abs(seconds - network.seconds) / network.seconds)
    return np.array(errors)


def _clearly_less(error: Array, than: Array) -> bool:
    gain = than - error
    # The floor: gains of a millionth are rounding, not knowledge.
    doubt = float(gain.std()) / max(len(gain) - 1, 1) ** 0.5
    return bool(gain.mean() > max(doubt, 1e-6))


def _fitted(networks: Sequence[Network], extra: tuple[str, ...]) -> Correction:
    """Scale and the `extra` parameters by a robust fit of relative errors."""
    columns = {
        "scale": [n.total for n in networks],
        "per_unit": [float(n.units) for n in networks],
        "offset": [1.0 for _ in networks],
    }
    names = ("scale", *extra)
    # A share of what the sum says: of the measured time, a row far too low would outweigh all.
    total = np.array([n.total for n in networks])
    target = np.array([n.seconds for n in networks]) / total
    design = np.column_stack([columns[name] for name in names]) / total[:, None]
    # Columns of one size, or the solver takes a count beside microseconds for rounding.
    size = np.sqrt((design**2).mean(0))
    values, weights = np.ones(len(names)), np.ones(len(total))
    for _ in range(20):
        root = np.sqrt(weights)
        values = np.linalg.lstsq(design / size * root[:, None], target * root)[0]
        weights = huber_weights(target - design / size @ values)
    found = dict(zip(names, (values / size).tolist(), strict=True))
    if found["scale"] <= 0:  # nothing physical: longer units make a quicker network
        return Correction() if not extra else _fitted(networks, ())
    return Correction(**found)


@dataclass(frozen=True)
class Form:
    """What a correction may have, and of how many networks on it is more than a guess."""

    fit: Fit
    networks: int


FORMS: Mapping[str, Form] = {
    "nothing": Form(lambda networks: Correction(), 1),
    "scale": Form(lambda networks: _fitted(networks, ()), 2),
    "scale+offset": Form(lambda networks: _fitted(networks, ("offset",)), 4),
    "scale+per_unit": Form(lambda networks: _fitted(networks, ("per_unit",)), 4),
    "factors": Form(lambda networks: fit_factors(networks, spill=False), 6),
    "factors+spill": Form(lambda networks: fit_factors(networks, spill=True), 10),
}
