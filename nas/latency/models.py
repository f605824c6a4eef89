"""The latency models, and the choice among them by cross-validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from nas.errors import UserError
from nas.latency.accuracy import Accuracy, accuracy
from nas.latency.features import Features
from nas.latency.linear import Linear, LookupTable, Polynomial
from nas.latency.mlp import MLP
from nas.latency.sample import IMPLAUSIBLE, Sample, check_enough, far_below_their_key
from nas.latency.stored import Stored

__all__ = [
    "MLP", "FitReport", "Linear", "LookupTable", "Model", "Polynomial", "Sample", "fit_best",
    "model_from_json",
]  # fmt: skip


class Model(Protocol):
    """Seconds of one unit, from its key or its features."""

    @property
    def kind(self) -> str: ...

    def predict(self, key: str, features: Features) -> float | Tensor:
        """Seconds; a tensor with gradient where features are tensors, unless it is a table."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the model's `kind`."""
        ...


# From the plainest on: of equally good ones the first is taken.
REGRESSIONS: dict[str, type[Linear] | type[Polynomial] | type[MLP]] = {
    model.kind: model for model in (Linear, Polynomial, MLP)
}


def model_from_json(raw: object) -> Model:
    """The model that `to_json` wrote.

    Raises:
        UserError: an unknown kind, or a field that is missing or of the wrong type.
    """
    kinds = {LookupTable.kind: LookupTable, **REGRESSIONS}
    kind = Stored(raw, "latency model").text("kind")
    if kind not in kinds:
        raise UserError(f"latency model: kind={kind!r} is not one of {list(kinds)}")
    model: Model = kinds[kind].from_json(raw)
    return model


@dataclass(frozen=True)
class FitReport:
    """What was measured, and the regression that predicts the rest best."""

    table: LookupTable
    regression: Model
    scores: Mapping[str, Accuracy]  # kind -> on units that the fit had not seen
    dropped: tuple[Sample, ...]  # implausible rows

    def predict(self, key: str, features: Features) -> float | Tensor:
        """The measured seconds of a known key, the regression's of any other."""
        if key in self.table and not any(isinstance(value, Tensor) for value in features.values()):
            return self.table.predict(key, features)
        return self.regression.predict(key, features)

    def to_json(self) -> dict[str, Any]:
        """For reading only: `table` and `regression` can be loaded again, each by its kind."""
        return {
            "table": self.table.to_json(),
            "regression": self.regression.to_json(),
            "scores": {kind: score.to_json() for kind, score in self.scores.items()},
            "dropped": [{"key": s.key, "seconds": s.seconds} for s in self.dropped],
        }


def fit_best(
    samples: Sequence[Sample],
    kinds: Sequence[str] = tuple(REGRESSIONS),
    folds: int = 5,
    seed: int = 0,
) -> FitReport:
    """Fit the regression whose mean relative error on units left out is the least.

    All samples of one key are left out together. Implausible rows are dropped first.

    Args:
        kinds: of `REGRESSIONS`, to choose from.
        folds: of the cross-validation; as many as there are keys where these are fewer.
        seed: of the division into folds.

    Raises:
        UserError: an unknown kind, or fewer than three keys.
    """
    for kind in kinds:
        if kind not in REGRESSIONS:
            raise UserError(f"latency model {kind!r} is not one of {list(REGRESSIONS)}")
    kept, dropped = plausible(samples)
    keys = len({sample.key for sample in kept})
    if not kinds or keys < 3:
        raise UserError(
            f"{keys} units measured and {len(kinds)} kinds of model: to choose one by "
            "cross-validation takes at least 3 units and 1 kind"
        )
    parts = _folds(kept, min(folds, keys), seed)
    scores = {kind: _cross_validated(kept, parts, kind) for kind in kinds}
    best = min(kinds, key=lambda kind: scores[kind].mape)
    return FitReport(LookupTable.fit(kept), REGRESSIONS[best].fit(kept), scores, tuple(dropped))


def plausible(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples kept, and those dropped.

    Dropped are those below a tenth of their key's median, or of what a robust fit to the others
    says where it can be relied on: six times as far off as it usually is, and something to go by.
    """
    check_enough(samples)
    wrong = far_below_their_key(samples)
    model = Linear.fit([sample for index, sample in enumerate(samples) if index not in wrong])
    logs = np.log(
        [max(float(model.predict(s.key, s.features)), 1e-300) / s.seconds for s in samples]
    )
    limit = max(-np.log(IMPLAUSIBLE), 6 * 1.4826 * float(np.median(np.abs(logs))))
    for index, sample in enumerate(samples):
        if logs[index] > limit and any(sample.features.values()):
            wrong.add(index)
    return (
        [sample for index, sample in enumerate(samples) if index not in wrong],
        [sample for index, sample in enumerate(samples) if index in wrong],
    )


def _folds(samples: Sequence[Sample], count: int, seed: int) -> list[list[int]]:
    """Indices of the samples of each fold; a key is in one of them only."""
    keys = list(dict.fromkeys(sample.key for sample in samples))
    order = np.random.default_rng(seed).permutation(len(keys))
    fold = {keys[k]: place % count for place, k in enumerate(order)}
    parts: list[list[int]] = [[] for _ in range(count)]
    for index, sample in enumerate(samples):
        parts[fold[sample.key]].append(index)
    return parts


def _cross_validated(samples: Sequence[Sample], parts: list[list[int]], kind: str) -> Accuracy:
    predicted, measured = [], []
    for part in parts:
        held = set(part)
        model = REGRESSIONS[kind].fit([s for i, s in enumerate(samples) if i not in held])
        for index in part:
            sample = samples[index]
            predicted.append(float(model.predict(sample.key, sample.features)))
            measured.append(sample.seconds)
    return accuracy(predicted, measured)
