"""A network's latency from nothing but the options it takes, fitted to a table of such networks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, FiniteFloat

from nas.artifacts.files import write_json
from nas.errors import UserError
from nas.latency.measured_networks import (
    LEFT_OUT,
    Choices,
    Encoding,
    MeasuredNetworks,
    edge_names,
    read_networks,
)
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
from nas.latency.profile import decode

SCHEMA = 2
KIND = "rows"  # in the file; a profile of units has no such field

# Kind of model -> the numbers that describe a network, and the fit; the plainest first: it wins a
# tie. The networks of the MLP are decayed strongly: rows are few, and noisy.
NETWORK_FITS: dict[str, tuple[Literal["onehot", "counts"], Fit]] = {
    "counts": ("counts", fit_nonnegative),
    "onehot": ("onehot", fit_ridge),
    "onehot_log": ("onehot", partial(fit_ridge, exponential=True)),
    "polynomial": ("counts", partial(fit_ridge, degree=2)),
    "mlp": ("counts", partial(fit_mlp, strength=3.0)),
}


@dataclass(frozen=True)
class NetworkModel:
    """Seconds of a network from the options it takes."""

    encoding: Encoding
    predictor: Predictor

    def __post_init__(self) -> None:
        self.predictor.check(self.encoding.columns)

    @property
    def additive(self) -> bool:
        """Whether the seconds of a network are the sum of those of its options."""
        return self.predictor.additive and self.encoding.left_out == "nothing"

    def predict(self, choices: Sequence[Choices]) -> Array:
        """Seconds ``(n,)``."""
        return self.predictor.seconds(self.encoding(choices))


def fit_network_model(table: MeasuredNetworks, kind: str, way: str = "nothing") -> NetworkModel:
    """A model of one of `NETWORK_FITS`, with one of `LEFT_OUT` left out."""
    basis, fit = NETWORK_FITS[kind]
    encoding = Encoding(table.options, basis, way)  # type: ignore[arg-type]
    return NetworkModel(encoding, fit(encoding(table.choices), np.array(table.seconds)))


@dataclass(frozen=True)
class NetworkFit:
    """The model chosen, and the error of every one that it was chosen from.

    Attributes:
        chosen: "kind, without what is left out".
        errors: the same for every model -> mean relative error on rows left out.
        dropped: implausible rows of the table.
    """

    model: NetworkModel
    chosen: str
    left_out: str
    errors: Mapping[str, float]
    dropped: tuple[int, ...]


def fit_networks(
    table: MeasuredNetworks,
    kinds: Sequence[str] = tuple(NETWORK_FITS),
    ways: Sequence[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> NetworkFit:
    """Fit the model with the least error on rows left out; implausible rows are dropped first.

    What is left out is chosen with the first kind, then the kind. The error is the mean of the
    relative ones, each counted as 100 % at most: one corrupt row must not decide.

    Args:
        kinds: of `NETWORK_FITS`, to choose from.
        ways: of `LEFT_OUT`, to choose from; by default all that know these decisions.
        folds: of the cross-validation.
        seed: of the division into folds.

    Raises:
        UserError: an unknown name, or fewer rows than folds.
    """
    ways = tuple(ways or (LEFT_OUT if list(table.options) == edge_names() else ["nothing"]))
    unknown = [
        *(k for k in kinds if k not in NETWORK_FITS),
        *(w for w in ways if w not in LEFT_OUT),
    ]
    if unknown or not kinds:
        raise UserError(
            f"{unknown} must be of the kinds {list(NETWORK_FITS)}; left out: {list(LEFT_OUT)}"
        )
    dropped = implausible_rows(table, ways)
    kept = table.subset(sorted(set(range(len(table.seconds))) - set(dropped)))
    if len(kept.seconds) < max(folds, 2):
        raise UserError(
            f"{len(kept.seconds)} usable networks are too few for {folds} folds: measure more"
        )
    seconds, errors = np.array(kept.seconds), dict[str, float]()

    def error(kind: str, way: str) -> float:
        name = f"{kind}, without {way}"
        if name not in errors:
            basis, fit = NETWORK_FITS[kind]
            x = Encoding(kept.options, basis, way)(kept.choices)  # type: ignore[arg-type]
            predicted = left_out(fit, x, seconds, range(len(seconds)), folds, seed)
            errors[name] = float(np.minimum(np.abs(predicted / seconds - 1), 1.0).mean())
        return errors[name]

    way = min(ways, key=lambda way: error(kinds[0], way))
    kind = min(kinds, key=lambda kind: error(kind, way))
    model = fit_network_model(kept, kind, way)
    return NetworkFit(model, f"{kind}, without {way}", way, errors, dropped)


def implausible_rows(
    table: MeasuredNetworks, ways: Sequence[str] = ("nothing",)
) -> tuple[int, ...]:
    """Rows far below what robust fits of them all say, whatever is left out."""
    seconds = np.array(table.seconds)
    if len(seconds) < 2:
        return ()
    low = np.ones(len(seconds), dtype=bool)
    for way in ways:
        low &= implausible(seconds, fit_network_model(table, "counts", way).predict(table.choices))
    return tuple(np.flatnonzero(low).tolist())


@dataclass(frozen=True)
class NetworksProfile:
    """A profile file of whole networks: a model fitted to a table.

    Attributes:
        errors, chosen: see `NetworkFit`.
        rows: how many of the table were used; `dropped` were implausible.
    """

    space: str
    device: str
    model: NetworkModel
    chosen: str
    errors: Mapping[str, FiniteFloat]
    rows: Annotated[int, Field(ge=0)]
    dropped: Annotated[int, Field(ge=0)]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = asdict(self)
        validation = {key: content.pop(key) for key in ("chosen", "errors")}
        head = {"schema": SCHEMA, "kind": KIND, "unit": "s"}
        write_json(path, {**head, **content, "validation": validation})

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], where: str) -> "NetworksProfile":
        """Read what `save` wrote.

        Raises:
            UserError: another schema, or a field that is missing or of the wrong type.
        """
        if raw.get("schema") != SCHEMA:
            raise UserError(
                f"{where} has schema {raw.get('schema')!r}, this version of nas reads {SCHEMA}: "
                "fit the table again with `nas profile import_csv=FILE`"
            )
        validation = raw.get("validation")
        return decode(cls, {**raw, **(validation if isinstance(validation, dict) else {})}, where)


def fit_table(
    path: Path,
    column: str,
    unit: str,
    space: str,
    device: str,
    options: Mapping[str, Sequence[object]],
    additive: bool,
) -> NetworksProfile:
    """Fit the networks of a CSV file; see `read_networks` and `fit_networks`.

    Args:
        options: the decisions of the space and their options.
        additive: only models that add up over decisions: the space is too large to write out.

    Raises:
        UserError: faulty lines, by number; or too few of them.
    """
    table = read_networks(path, column, unit, options)
    if additive:
        found = fit_networks(table, ("counts", "onehot"), ("nothing",))
    else:
        found = fit_networks(table)
    used = len(table.seconds) - len(found.dropped)
    return NetworksProfile(
        space, device, found.model, found.chosen, found.errors, used, len(found.dropped)
    )
