"""From the sum over units to the latency of the whole network, calibrated on a few measured ones.

Measured alone, a unit pays for being called, and finds other things in the cache than it does
inside a network. Most of that is the same for every network or every unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor

from nas.cost.base import Scalar
from nas.errors import UserError
from nas.latency.robust import Array, huber_weights
from nas.latency.stored import Stored


@dataclass(frozen=True)
class Network:
    """A network that was measured as a whole.

    Args:
        predicted: sum over its units, seconds.
        units: how many of them there are.
        seconds: measured.
        transitions: how often one op follows another, by a name such as "conv_k3>identity".

    Raises:
        UserError: a time that is not above 0.
    """

    predicted: float
    units: int
    seconds: float
    transitions: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("predicted", "seconds"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise UserError(f"a network's {name}={value} s is no latency; must be above 0")


@dataclass(frozen=True)
class Correction:
    """``seconds = scale * sum + per_unit * units + offset + sum_t transitions[t] * count_t``.

    The scale is above 0. The others may be below: what every unit paid when measured alone, a
    network may pay once.
    """

    scale: float = 1.0
    per_unit: float = 0.0
    offset: float = 0.0
    transitions: Mapping[str, float] = field(default_factory=dict)

    def __call__(
        self, total: Scalar, units: Scalar, transitions: Mapping[str, Scalar] | None = None
    ) -> float | Tensor:
        """Seconds of a network; differentiable in whatever of its description is a tensor."""
        value: Any = self.scale * total + self.per_unit * units + self.offset
        for name, count in (transitions or {}).items():
            value = value + self.transitions.get(name, 0.0) * count
        return value if isinstance(value, Tensor) else float(value)

    def to_json(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "per_unit": self.per_unit,
            "offset": self.offset,
            "transitions": dict(self.transitions),
        }

    @classmethod
    def from_json(cls, raw: object) -> "Correction":
        stored = Stored(raw, "correction")
        scale = stored.number("scale")
        if scale <= 0:
            raise UserError(f"correction: scale={scale} must be above 0")
        return cls(
            scale, stored.number("per_unit"), stored.number("offset"), stored.table("transitions")
        )


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

    From the plainest form on (nothing, scale, scale and offset, scale and per unit, transitions on
    top of the best so far), a fuller one is taken only where its leave-one-out error is less by
    more than the standard error of the difference: with ten networks, most of what a second
    parameter explains is noise.

    Raises:
        UserError: no network.
    """
    if not networks:
        raise UserError("a correction needs at least one measured network")
    forms: dict[str, Fit] = {
        "nothing": lambda chosen: Correction(),
        "scale": lambda chosen: _fitted(chosen, ()),
        "scale+offset": lambda chosen: _fitted(chosen, ("offset",)),
        "scale+per_unit": lambda chosen: _fitted(chosen, ("per_unit",)),
    }
    errors = {"nothing": _left_out(networks, forms["nothing"])}
    best = "nothing"
    for name in tuple(forms)[1:]:
        # Each parameter takes at least two networks to be more than a guess.
        if len(networks) >= 2 * (name.count("+") + 1):
            errors[name] = _left_out(networks, forms[name])
            best = name if _clearly_less(errors[name], errors[best]) else best
    names = _shared_transitions(networks)
    if names and len(networks) >= 6:
        extended = f"{best}+transitions"
        forms[extended] = _with_transitions(forms[best], names)
        errors[extended] = _left_out(networks, forms[extended])
        best = extended if _clearly_less(errors[extended], errors[best]) else best
    return Calibration(
        forms[best](networks), best, {name: float(error.mean()) for name, error in errors.items()}
    )


def _left_out(networks: Sequence[Network], fit: Fit) -> Array:
    """The relative error of each network when the correction is fitted to the others ``(n,)``."""
    errors = []
    for index, network in enumerate(networks):
        correction = fit([n for i, n in enumerate(networks) if i != index])
        seconds = float(correction(network.predicted, network.units, network.transitions))
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
        "scale": [n.predicted for n in networks],
        "per_unit": [float(n.units) for n in networks],
        "offset": [1.0 for _ in networks],
    }
    names = ("scale", *extra)
    # A share of what the sum says: of the measured time, a row far too low would outweigh all.
    total = np.array([n.predicted for n in networks])
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


def _shared_transitions(networks: Sequence[Network]) -> tuple[str, ...]:
    """Transitions that at least three networks have, and not all equally often."""
    names = sorted({name for network in networks for name in network.transitions})
    counts = {name: [n.transitions.get(name, 0) for n in networks] for name in names}
    return tuple(
        name for name in names if sum(map(bool, counts[name])) >= 3 and len(set(counts[name])) > 1
    )


def _with_transitions(base: Fit, names: Sequence[str]) -> Fit:
    """`base`, and a time for each transition: ridge regression of what `base` leaves."""

    def fit(networks: Sequence[Network]) -> Correction:
        correction = base(networks)
        seconds = np.array([n.seconds for n in networks])
        plain = np.array([float(correction(n.predicted, n.units)) for n in networks])
        counts = np.array([[n.transitions.get(name, 0.0) for name in names] for n in networks])
        times = _shrunk(counts / seconds[:, None], (seconds - plain) / seconds)
        return Correction(
            correction.scale,
            correction.per_unit,
            correction.offset,
            dict(zip(names, times.tolist(), strict=True)),
        )

    return fit


def _shrunk(columns: Array, y: Array) -> Array:
    """Ridge coefficients, without intercept, of the strength with least leave-one-out error."""
    size = np.sqrt((columns**2).mean(0))
    size[size == 0] = 1.0
    u, s, vt = np.linalg.svd(columns / size, full_matrices=False)
    inner = u.T @ y
    best, coefficients = np.inf, np.zeros(columns.shape[1])
    for strength in len(y) * np.logspace(-4, 3, 15):
        factor = s**2 / (s**2 + strength)
        leverage = (u**2) @ factor
        error = float(np.mean(np.abs((y - u @ (factor * inner)) / np.maximum(1 - leverage, 1e-3))))
        if error < best:
            best, coefficients = error, vt.T @ (s / (s**2 + strength) * inner)
    return np.asarray(coefficients / size, dtype=np.float64)
