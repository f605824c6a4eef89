"""From the sum over units to the latency of the whole network, calibrated on a few measured ones.

Measured alone, a unit pays for being called, and finds other things in the cache than it does
inside a network. Most of that is the same for every network or every unit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from nas.errors import UserError
from nas.latency.stored import Stored


@dataclass(frozen=True)
class Network:
    """A network that was measured as a whole.

    Args:
        parts: unit -> seconds of all its uses in this network, measured alone.
        units: how many uses there are of all.
        seconds: measured.
        weights: numbers that one call reads besides its input.

    Raises:
        UserError: a time that is not above 0.
    """

    parts: Mapping[str, float]
    units: int
    seconds: float
    weights: float = 0.0

    @property
    def total(self) -> float:
        """The plain sum."""
        return sum(self.parts.values())

    def __post_init__(self) -> None:
        for name in ("total", "seconds"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise UserError(f"a network's {name}={value} s is no latency; must be above 0")


@dataclass(frozen=True)
class Spill:
    """Weights that no cache holds from one call to the next are fetched again.

    A unit measured alone finds its weights in the cache, as long as it is a small one.

    Args:
        room: as many weights stay.
        per_weight: seconds for each one more; above 0.
    """

    room: float
    per_weight: float

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
        spill: None: it does not matter where weights lie.
    """

    scale: float = 1.0
    per_unit: float = 0.0
    offset: float = 0.0
    factors: Mapping[str, float] = field(default_factory=dict)
    spill: Spill | None = None

    def unit(self, key: str, seconds: float) -> float:
        """What one use of a unit adds to a network, `seconds` being its time alone."""
        return self.scale * self.factors.get(key, 1.0) * seconds + self.per_unit

    def __call__(self, network: Network) -> float:
        """Seconds of a network; what was measured of it is not looked at."""
        parts = network.parts.items()
        alone = sum(self.factors.get(key, 1.0) * seconds for key, seconds in parts)
        spilled = 0.0 if self.spill is None else self.spill(network.weights)
        return self.offset + self.scale * alone + self.per_unit * network.units + spilled

    def to_json(self) -> dict[str, Any]:
        return {
            "scale": self.scale,
            "per_unit": self.per_unit,
            "offset": self.offset,
            "factors": dict(self.factors),
            "spill": None if self.spill is None else asdict(self.spill),
        }

    @classmethod
    def from_json(cls, raw: object) -> "Correction":
        stored = Stored(raw, "correction")
        scale, factors = stored.number("scale"), stored.table("factors")
        for name, value in {"scale": scale, **factors}.items():
            if value <= 0:
                raise UserError(f"correction: {name}={value} must be above 0")
        spill = stored.optional("spill")
        return cls(
            scale,
            stored.number("per_unit"),
            stored.number("offset"),
            factors,
            None if spill is None else Spill(spill.number("room"), spill.number("per_weight")),
        )
