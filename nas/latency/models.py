"""Models of latency, chosen by the error on what was left out of the fit.

`UnitModel` predicts a unit from its features, `NetworkModel` a whole network from nothing but the
options that it takes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from nas.config.schema import checked
from nas.errors import UserError
from nas.latency.predict import (
    Accuracy,
    Array,
    Fit,
    Predictor,
    accuracy,
    fit_mlp,
    fit_nonnegative,
    fit_ridge,
    implausible,
    left_out,
)
from nas.spaces import nas_bench_201 as cell

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Choices = tuple[str, ...]  # the option of each decision, as text

FEWEST = 3  # units from which a model can be chosen
# Operations that a runtime may not run, by name, so that it can be stored. "unreachable" is for the
# cells of NAS-Bench-201: all operations but those that reach the output.
LEFT_OUT = ("nothing", "unreachable")


@checked("unit")
@dataclass(frozen=True)
class UnitTime:
    """Seconds of one unit, the features that a model sees of it, and how it was timed.

    Raises:
        UserError: seconds that are not above 0, or a feature that is not a finite number >= 0.
    """

    seconds: Seconds
    features: Mapping[str, Amount]
    timing: Mapping[str, Any] = field(default_factory=dict)  # see `nas.latency.measure.Timing`


@dataclass(frozen=True)
class UnitModel:
    """Seconds of a unit from its features, for units that were not measured.

    Attributes:
        kind: one of `UNIT_FITS`.
        names: of the features that the predictor reads, in order.
    """

    kind: Literal["linear", "mlp", "power"]
    names: tuple[str, ...]
    predictor: Predictor

    def __post_init__(self) -> None:
        self.predictor.check(len(self.names))

    def predict(self, described: Mapping[str, float]) -> float:
        """Seconds of the unit with these features."""
        row = np.array([described.get(name, 0.0) for name in self.names])
        return float(self.predictor(row[None])[0])


UNIT_FITS: dict[str, Fit] = {  # the plainest first: it wins a tie
    "linear": fit_nonnegative,
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
    wrong = implausible(seconds, fit_nonnegative(x, seconds)(x)) & x.any(1)
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


@dataclass(frozen=True)
class MeasuredNetworks:
    """A table of networks and their latencies.

    Args:
        options: decision name -> its options, as text.
        choices: of each network, in the order of `options`.
        seconds: of each network.
    """

    options: Mapping[str, tuple[str, ...]]
    choices: tuple[Choices, ...]
    seconds: tuple[float, ...]

    def subset(self, indices: Sequence[int]) -> "MeasuredNetworks":
        """Only these networks."""
        return MeasuredNetworks(
            self.options,
            tuple(self.choices[i] for i in indices),
            tuple(self.seconds[i] for i in indices),
        )


def edge_names() -> list[str]:
    """The decisions of a NAS-Bench-201 cell."""
    return [f"{source}->{to}" for source, to in cell.EDGES]


@dataclass(frozen=True)
class Encoding:
    """Options taken -> numbers.

    Args:
        options: decision name -> its options.
        basis: "onehot": decision x option ``(P,)``; "counts": how often each option is taken,
            wherever ``(O,)``.
        left_out: one of `LEFT_OUT`; operations that are left out have zeros only.

    Raises:
        UserError: decisions without options, or `left_out` that does not know these decisions.
    """

    options: Mapping[str, tuple[str, ...]]
    basis: Literal["onehot", "counts"]
    left_out: Literal["nothing", "unreachable"] = "nothing"

    def __post_init__(self) -> None:
        if not self.options or not all(self.options.values()):
            raise UserError(f"decisions without options: {dict(self.options)}")
        if self.left_out != "nothing" and list(self.options) != edge_names():
            raise UserError(
                f"left_out={self.left_out!r} is for the decisions {edge_names()}, not for "
                f"{list(self.options)}: choose left_out='nothing'"
            )

    @property
    def _places(self) -> dict[tuple[str, str], int]:
        """Decision and option -> its column."""
        pairs = [(name, option) for name, known in self.options.items() for option in known]
        if self.basis == "onehot":
            return {pair: i for i, pair in enumerate(pairs)}
        distinct = list(dict.fromkeys(option for _, option in pairs))
        return {pair: distinct.index(pair[1]) for pair in pairs}

    @property
    def columns(self) -> int:
        """How many numbers a network has."""
        return len(set(self._places.values()))

    def __call__(self, choices: Sequence[Choices]) -> Array:
        """Networks ``(n,)`` -> numbers ``(n, P)`` or ``(n, O)``.

        Raises:
            UserError: an option that its decision has not.
        """
        places = self._places
        out = np.zeros((len(choices), self.columns))
        for row, taken in zip(out, choices, strict=True):
            runs = cell.reaching(taken) if self.left_out == "unreachable" else [True] * len(taken)
            for name, option, here in zip(self.options, taken, runs, strict=True):
                if (name, option) not in places:
                    known = list(self.options[name])
                    raise UserError(f"option {option!r} of {name!r} must be one of {known}")
                row[places[name, option]] += here
        return out


# Kind of model -> the numbers that describe a network, and the fit; the plainest first: it wins a
# tie.
NETWORK_FITS: dict[str, tuple[Literal["onehot", "counts"], Fit]] = {
    "counts": ("counts", fit_nonnegative),
    "onehot": ("onehot", fit_ridge),
    "polynomial": ("counts", partial(fit_ridge, degree=2)),
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
        return self.predictor(self.encoding(choices))


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
