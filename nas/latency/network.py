"""Models of whole networks' latency from nothing but the options they take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

from nas.errors import UserError
from nas.latency.mlp import HIDDEN, MEMBERS, Net
from nas.latency.robust import Array, positive_relative, ridge
from nas.latency.rows import Choices, Table, edge_names
from nas.latency.stored import Stored
from nas.spaces import nas_bench_201 as cell

# What a runtime does not run: by name, so that it can be stored. All but "nothing" know the
# cells of NAS-Bench-201 only.
LEFT_OUT: dict[str, Callable[[Choices], Sequence[bool]] | None] = {
    "nothing": None,
    "unreachable": cell.reaching,  # cannot reach the output
    "dead": cell.live,  # these, and what the input does not reach
}


@dataclass(frozen=True)
class Encoding:
    """Options taken -> numbers.

    Args:
        options: decision name -> its options.
        basis: "onehot": decision x option ``(P,)``; "counts": how often each option is taken,
            wherever ``(O,)``; "products": counts and their products in pairs.
        left_out: one of `LEFT_OUT`; what is left out has zeros only.

    Raises:
        UserError: an unknown name, or an omission that does not know these decisions.
    """

    options: Mapping[str, tuple[str, ...]]
    basis: str
    left_out: str = "nothing"

    def __post_init__(self) -> None:
        if self.basis not in ("onehot", "counts", "products"):
            raise UserError(f"basis={self.basis!r} is not one of onehot, counts, products")
        if self.left_out not in LEFT_OUT:
            raise UserError(f"left_out={self.left_out!r} is not one of {list(LEFT_OUT)}")
        if self.left_out != "nothing" and list(self.options) != edge_names():
            raise UserError(
                f"left_out={self.left_out!r} is for the decisions {edge_names()}, not for "
                f"{list(self.options)}: choose left_out='nothing'"
            )

    @property
    def additive(self) -> bool:
        """Whether the numbers of a network are the sum of those of its options."""
        return self.basis != "products" and self.left_out == "nothing"

    def __call__(self, choices: Sequence[Choices]) -> Array:
        """``(n, P)``."""
        onehot = _onehot(tuple(self.options.items()), self.left_out, tuple(choices))
        if self.basis == "onehot":
            return onehot
        counts = onehot @ self._sums()
        if self.basis == "counts":
            return counts
        i, j = np.array([*combinations_with_replacement(range(counts.shape[1]), 2)]).T
        return np.concatenate([counts, counts[:, i] * counts[:, j]], axis=1)

    def _sums(self) -> Array:
        every = [option for known in self.options.values() for option in known]
        distinct = list(dict.fromkeys(every))
        return np.array([[float(option == other) for other in distinct] for option in every])

    def to_json(self) -> dict[str, Any]:
        return {
            "options": {name: list(known) for name, known in self.options.items()},
            "basis": self.basis,
            "left_out": self.left_out,
        }

    @classmethod
    def from_json(cls, stored: Stored) -> "Encoding":
        options = stored.child("options")
        known = {name: options.texts(name) for name in options}
        if not known or not all(known.values()):
            raise UserError(f"{stored.what}: decisions without options: {known}")
        return cls(known, stored.text("basis"), stored.text("left_out"))


@lru_cache(maxsize=16)  # one table is encoded for many models
def _onehot(
    options: tuple[tuple[str, tuple[str, ...]], ...], left_out: str, choices: tuple[Choices, ...]
) -> Array:
    """``(n, P)``: 1 where a decision takes an option that runs."""
    places = {pair: i for i, pair in enumerate((d, o) for d, known in options for o in known)}
    out = np.zeros((len(choices), len(places)))
    runs = LEFT_OUT[left_out]
    for row, taken in zip(out, choices, strict=True):
        present = runs(taken) if runs else (True,) * len(taken)
        for (name, known), option, here in zip(options, taken, present, strict=True):
            if option not in known:
                raise UserError(f"option {option!r} of {name!r} must be one of {list(known)}")
            row[places[name, option]] = here
    out.flags.writeable = False
    return out


@dataclass(frozen=True)
class Regression:
    """``seconds = intercept + weights @ encoding``, or of that the exponential."""

    encoding: Encoding
    weights: tuple[float, ...]
    intercept: float
    log: bool

    @property
    def additive(self) -> bool:
        return self.encoding.additive and not self.log

    def predict(self, choices: Sequence[Choices]) -> Array:
        """Seconds ``(n,)``."""
        value = self.encoding(choices) @ np.array(self.weights) + self.intercept
        return np.asarray(np.exp(value) if self.log else value)

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "regression",
            "encoding": self.encoding.to_json(),
            "weights": list(self.weights),
            "intercept": self.intercept,
            "log": self.log,
        }


@dataclass(frozen=True)
class NetworkMLP:
    """``log(seconds)`` by a small network over the options taken."""

    encoding: Encoding
    net: Net
    mean: float
    deviation: float
    additive = False

    def predict(self, choices: Sequence[Choices]) -> Array:
        """Seconds ``(n,)``."""
        x = torch.tensor(self.encoding(choices))
        value: Array = (self.net(x) * self.deviation + self.mean).exp().numpy()
        return value

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "mlp",
            "encoding": self.encoding.to_json(),
            "net": self.net.to_json(),
            "mean": self.mean,
            "deviation": self.deviation,
        }


NetworkModel = Regression | NetworkMLP


def network_model_from_json(raw: object) -> NetworkModel:
    """The model that `to_json` wrote.

    Raises:
        UserError: an unknown kind, or a field that is missing or of the wrong type.
    """
    stored = Stored(raw, "network latency model")
    encoding = Encoding.from_json(stored.child("encoding"))
    first = tuple(known[0] for known in encoding.options.values())
    count = encoding([first]).shape[1]
    kind = stored.text("kind")
    if kind == "regression":
        weights = stored.numbers("weights", count)
        return Regression(encoding, weights, stored.number("intercept"), stored.flag("log"))
    if kind == "mlp":
        net = Net.from_json(stored.child("net"), count)
        return NetworkMLP(encoding, net, stored.number("mean"), stored.number("deviation"))
    raise UserError(f"network latency model: kind={kind!r} is not 'regression' or 'mlp'")


def fit_ridge(table: Table, basis: str, log: bool, left_out: str = "nothing") -> Regression:
    """Huber ridge regression, in seconds or in their logarithm."""
    encoding = Encoding(table.options, basis, left_out)
    x, y = encoding(table.choices), np.array(table.seconds)
    deviation = x.std(0)
    kept = deviation > 0
    scaled = x[:, kept] / deviation[kept]
    unit = float(np.median(y))  # so that the strengths tried suit any device
    target = np.log(y / unit) if log else y / unit
    found, intercept, _ = ridge(scaled, target)
    weights = np.zeros(len(deviation))
    weights[kept] = found / deviation[kept]
    if log:
        return Regression(encoding, tuple(weights.tolist()), intercept + float(np.log(unit)), True)
    return Regression(encoding, tuple((weights * unit).tolist()), intercept * unit, False)


def fit_nonnegative(table: Table, basis: str, left_out: str = "nothing") -> Regression:
    """Seconds for each option, none below 0; robust fit of relative errors."""
    encoding = Encoding(table.options, basis, left_out)
    x = encoding(table.choices)
    columns = np.column_stack([np.ones(len(x)), x])
    intercept, *weights = positive_relative(columns, np.array(table.seconds)).tolist()
    return Regression(encoding, tuple(weights), intercept, False)


def fit_mlp(table: Table, left_out: str = "nothing", seed: int = 0) -> NetworkMLP:
    """The same table and seed give the same network."""
    encoding = Encoding(table.options, "onehot", left_out)
    x = torch.tensor(encoding(table.choices))
    logs = torch.tensor(table.seconds, dtype=torch.float64).log()
    mean, deviation = float(logs.median()), float(logs.std()) or 1.0
    net = Net.drawn(x.shape[1], HIDDEN, MEMBERS, seed)
    with torch.enable_grad():
        net.train(x, (logs - mean) / deviation, steps=300, decay=0.3)
    return NetworkMLP(encoding, net, mean, deviation)
