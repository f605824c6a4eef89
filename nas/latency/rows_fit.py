"""The choice among models of whole networks, by cross-validation within the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.errors import UserError
from nas.latency.network import (
    LEFT_OUT,
    NetworkModel,
    fit_mlp,
    fit_nonnegative,
    fit_ridge,
)
from nas.latency.rows import Table, edge_names
from nas.latency.sample import IMPLAUSIBLE

Fit = Callable[[Table, str], NetworkModel]  # table, what is left out -> model

# From the plainest on: of equally good ones the first is taken.
KINDS: dict[str, Fit] = {
    "counts": lambda table, left_out: fit_nonnegative(table, "counts", left_out),
    "onehot": lambda table, left_out: fit_ridge(table, "onehot", False, left_out),
    "onehot_log": lambda table, left_out: fit_ridge(table, "onehot", True, left_out),
    "polynomial": lambda table, left_out: fit_ridge(table, "products", False, left_out),
    "mlp": lambda table, left_out: fit_mlp(table, left_out),
}


@dataclass(frozen=True)
class RowsReport:
    """The model chosen, and the error of every one that it was chosen from."""

    kind: str
    left_out: str
    model: NetworkModel
    errors: Mapping[str, float]  # "kind, without what is left out" -> on rows left out
    dropped: tuple[int, ...]  # implausible rows of the table

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "left_out": self.left_out,
            "model": self.model.to_json(),
            "errors": dict(self.errors),
            "dropped": list(self.dropped),
        }


def fit_rows(
    table: Table,
    kinds: Sequence[str] = tuple(KINDS),
    left_out: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> RowsReport:
    """Fit the model with the least error on rows left out; implausible rows are dropped first.

    What is left out is chosen with the first kind, then the kind. The error is the mean of the
    relative ones, each counted as 100 % at most: one corrupt row must not decide.

    Args:
        kinds: of `KINDS`, to choose from.
        left_out: of `LEFT_OUT`, to choose from; by default all that know these decisions.
        folds: of the cross-validation.
        seed: of the division into folds.

    Raises:
        UserError: an unknown name, or fewer rows than folds.
    """
    ways = tuple(left_out or (LEFT_OUT if list(table.options) == edge_names() else ["nothing"]))
    unknown = [*(k for k in kinds if k not in KINDS), *(w for w in ways if w not in LEFT_OUT)]
    if unknown or not kinds:
        raise UserError(f"{unknown} must be of the kinds {list(KINDS)}; left out: {list(LEFT_OUT)}")
    dropped = implausible(table, ways)
    kept = table.rows(sorted(set(range(len(table.seconds))) - set(dropped)))
    if len(kept.seconds) < max(folds, 2):
        raise UserError(
            f"{len(kept.seconds)} usable networks are too few for {folds} folds: measure more"
        )
    parts = np.array_split(np.random.default_rng(seed).permutation(len(kept.seconds)), folds)
    errors: dict[str, float] = {}

    def error(kind: str, way: str) -> float:
        name = f"{kind}, without {way}"
        if name not in errors:
            errors[name] = _cross_validated(kept, parts, kind, way)
        return errors[name]

    way = min(ways, key=lambda way: error(kinds[0], way))
    kind = min(kinds, key=lambda kind: error(kind, way))
    return RowsReport(kind, way, KINDS[kind](kept, way), errors, dropped)


def implausible(table: Table, left_out: Sequence[str] = ("nothing",)) -> tuple[int, ...]:
    """Rows below a tenth of what robust fits of them all say, whatever is left out."""
    seconds = np.array(table.seconds)
    if len(seconds) < 2:
        return ()
    low = np.ones(len(seconds), dtype=bool)
    for way in left_out:
        low &= seconds < IMPLAUSIBLE * fit_nonnegative(table, "counts", way).predict(table.choices)
    return tuple(np.flatnonzero(low).tolist())


def _cross_validated(table: Table, parts: Sequence[NDArray[np.intp]], kind: str, way: str) -> float:
    seconds, every = np.array(table.seconds), set(range(len(table.seconds)))
    errors = np.zeros(len(seconds))
    for part in parts:
        model = KINDS[kind](table.rows(sorted(every - set(part.tolist()))), way)
        predicted = model.predict(table.rows(part.tolist()).choices)
        errors[part] = np.minimum(np.abs(predicted / seconds[part] - 1), 1.0)
    return float(errors.mean())
