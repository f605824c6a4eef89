"""One measurement as models are fitted to it, and which measurements cannot be right."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas.cost.base import Scalar
from nas.errors import UserError
from nas.latency.features import Features

# A row so far below what is comparable to it is an interrupted or mistyped measurement: real
# tables hold some. Slow rows stay: a device does have bad moments, and fits are robust.
IMPLAUSIBLE = 0.1


@dataclass(frozen=True)
class Sample:
    """A unit, by its key, with its features and the seconds that it took.

    Raises:
        UserError: seconds are not above 0, or a feature is not a finite number of 0 or more.
    """

    key: str
    features: Mapping[str, float]
    seconds: float

    def __post_init__(self) -> None:
        if not (isfinite(self.seconds) and self.seconds > 0):
            raise UserError(f"{self.key}: {self.seconds} s is no latency; it must be above 0")
        for name, value in self.features.items():
            if not (isfinite(value) and value >= 0):
                raise UserError(f"{self.key}: feature {name}={value} must be 0 or more")


def check_enough(samples: Sequence[Sample], least: int = 2) -> None:
    """Refuse to fit to nothing.

    Raises:
        UserError: fewer than `least` samples.
    """
    if len(samples) < least:
        raise UserError(
            f"{len(samples)} measurements are too few to fit a latency model: at least {least}"
        )


def varying(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The features that are not the same in all samples; nothing can be learnt of the others."""
    names = list(dict.fromkeys(name for sample in samples for name in sample.features))
    found = []
    for name in names:
        values = {sample.features.get(name, 0.0) for sample in samples}
        if len(values) > 1:
            found.append(name)
    return tuple(found)


def matrix(samples: Sequence[Sample], names: Sequence[str]) -> NDArray[np.float64]:
    """Features ``(n, len(names))``, zero where a sample lacks one."""
    rows = [[float(sample.features.get(name, 0.0)) for name in names] for sample in samples]
    return np.array(rows, dtype=np.float64).reshape(len(samples), len(names))


def seconds_of(samples: Sequence[Sample]) -> NDArray[np.float64]:
    """Latencies ``(n,)`` in seconds."""
    return np.array([sample.seconds for sample in samples], dtype=np.float64)


def vector(features: Features, names: Sequence[str]) -> Tensor:
    """Features of one unit ``(len(names),)``, float64; keeps the gradient of tensors."""
    values: list[Scalar] = [features.get(name, 0.0) for name in names]
    if not values:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([torch.as_tensor(value).to(torch.float64).cpu() for value in values])


def scalar(value: Tensor, features: Features) -> float | Tensor:
    """`value` as a number, unless some feature is a tensor: then with its gradient."""
    differentiable = any(isinstance(f, Tensor) for f in features.values())
    return value if differentiable else float(value)


def far_below_their_key(samples: Sequence[Sample]) -> set[int]:
    """Indices of samples below a tenth of the median of the samples of the same key."""
    groups: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        groups[sample.key].append(sample.seconds)
    medians = {key: float(np.median(values)) for key, values in groups.items()}
    return {i for i, s in enumerate(samples) if s.seconds < IMPLAUSIBLE * medians[s.key]}
