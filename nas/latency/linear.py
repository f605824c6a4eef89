"""Lookup table and regressions in closed form."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from nas.errors import UserError
from nas.latency.features import Features
from nas.latency.robust import positive_relative, ridge
from nas.latency.sample import (
    Sample,
    check_enough,
    far_below_their_key,
    matrix,
    scalar,
    seconds_of,
    varying,
    vector,
)
from nas.latency.stored import Stored


@dataclass(frozen=True)
class LookupTable:
    """Seconds by key, the median where a key was measured several times."""

    seconds: Mapping[str, float]
    kind: ClassVar[str] = "table"

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "LookupTable":
        """Keep what was measured.

        Raises:
            UserError: no sample.
        """
        check_enough(samples, 1)
        groups: dict[str, list[float]] = defaultdict(list)
        implausible = far_below_their_key(samples)
        for index, sample in enumerate(samples):
            if index not in implausible:
                groups[sample.key].append(sample.seconds)
        return cls({key: float(np.median(values)) for key, values in groups.items()})

    def __contains__(self, key: str) -> bool:
        return key in self.seconds

    def predict(self, key: str, features: Features) -> float:
        """The measured seconds of `key`.

        Raises:
            UserError: it was not measured.
        """
        if key not in self.seconds:
            raise UserError(
                f"{key!r} was not measured: profile it, or let the regression predict it"
            )
        return self.seconds[key]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "seconds": dict(self.seconds)}

    @classmethod
    def from_json(cls, raw: object) -> "LookupTable":
        return cls(Stored(raw, "lookup table").table("seconds"))


@dataclass(frozen=True)
class Linear:
    """``seconds = intercept + sum_f rate_f * f``; all >= 0, so that more work never costs less.

    Fitted to relative errors, robustly.
    """

    names: tuple[str, ...]
    rates: tuple[float, ...]  # seconds per unit of each feature
    intercept: float
    kind: ClassVar[str] = "linear"

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "Linear":
        """Fit to relative errors.

        Raises:
            UserError: fewer than two samples.
        """
        check_enough(samples)
        names = varying(samples)
        columns = np.column_stack([np.ones(len(samples)), matrix(samples, names)])
        intercept, *rates = positive_relative(columns, seconds_of(samples)).tolist()
        return cls(names, tuple(rates), intercept)

    def predict(self, key: str, features: Features) -> float | Tensor:
        """Seconds; a tensor with gradient where features are tensors."""
        rates = torch.tensor(self.rates, dtype=torch.float64)
        return scalar(vector(features, self.names) @ rates + self.intercept, features)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "names": list(self.names),
            "rates": list(self.rates),
            "intercept": self.intercept,
        }

    @classmethod
    def from_json(cls, raw: object) -> "Linear":
        stored = Stored(raw, "linear model")
        names = stored.texts("names")
        return cls(names, stored.numbers("rates", len(names)), stored.number("intercept"))


@dataclass(frozen=True)
class Scaling:
    """Features as the regressions in log space see them: ``(log(1 + f) - mean) / deviation``."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "Scaling":
        names = varying(samples)
        logs = np.log1p(matrix(samples, names))
        return cls(names, tuple(logs.mean(0).tolist()), tuple(logs.std(0).tolist()))

    def of(self, features: Features) -> Tensor:
        """Features of one unit ``(F,)``."""
        return self(vector(features, self.names).log1p())

    def of_samples(self, samples: Sequence[Sample]) -> Tensor:
        """Features of many ``(n, F)``."""
        return self(torch.from_numpy(np.log1p(matrix(samples, self.names))))

    def __call__(self, logs: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(v, dtype=torch.float64) for v in (self.means, self.deviations)
        )
        return (logs - mean) / deviation

    def to_json(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "means": list(self.means),
            "deviations": list(self.deviations),
        }

    @classmethod
    def from_json(cls, stored: Stored) -> "Scaling":
        names = stored.texts("names")
        deviations = stored.numbers("deviations", len(names))
        if min(deviations, default=1.0) <= 0:
            raise UserError(f"{stored.what}: deviations must be above 0")
        return cls(names, stored.numbers("means", len(names)), deviations)


@dataclass(frozen=True)
class Polynomial:
    """``log(seconds)`` as a polynomial of degree 2 in the logs of the features.

    Products of powers of layer parameters are planes in log space, and what departs from them
    (an overhead, a cache) bends the plane. Huber ridge regression; its strength is the one of
    least leave-one-out error.
    """

    scaling: Scaling
    weights: tuple[float, ...]  # of the F features, then of their products, `pairs` in order
    intercept: float
    kind: ClassVar[str] = "polynomial"

    @classmethod
    def fit(cls, samples: Sequence[Sample]) -> "Polynomial":
        """Fit to errors of the logarithm.

        Raises:
            UserError: fewer than two samples.
        """
        check_enough(samples)
        scaling = Scaling.fit(samples)
        columns = _with_products(scaling.of_samples(samples)).numpy()
        weights, intercept, _ = ridge(columns, np.log(seconds_of(samples)))
        return cls(scaling, tuple(weights.tolist()), intercept)

    def predict(self, key: str, features: Features) -> float | Tensor:
        """Seconds; a tensor with gradient where features are tensors."""
        row = _with_products(self.scaling.of(features))
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return scalar((row @ weights + self.intercept).exp(), features)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "scaling": self.scaling.to_json(),
            "weights": list(self.weights),
            "intercept": self.intercept,
        }

    @classmethod
    def from_json(cls, raw: object) -> "Polynomial":
        stored = Stored(raw, "polynomial")
        scaling = Scaling.from_json(stored.child("scaling"))
        count = len(scaling.names)
        weights = stored.numbers("weights", count + count * (count + 1) // 2)
        return cls(scaling, weights, stored.number("intercept"))


def _with_products(z: Tensor) -> Tensor:
    """``(*, F) -> (*, F + F (F + 1) / 2)``: the features and the products of all pairs."""
    pairs = torch.tensor(list(combinations_with_replacement(range(z.shape[-1]), 2))).long()
    pairs = pairs.reshape(-1, 2)
    return torch.cat([z, z[..., pairs[:, 0]] * z[..., pairs[:, 1]]], dim=-1)
