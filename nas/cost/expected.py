"""Expected cost of a supernet: layers weighted by the probability that they are in the network."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.cost.base import Expected, LayerCost, LayerSpec, NetworkCost, Polynomial, Term
from nas.cost.maximum import ExpectedMaximum
from nas.cost.polynomial import Polynomials, probability, weighted_sum
from nas.cost.trace import Example, Trace, trace
from nas.decision import Decision, decisions
from nas.errors import UserError


def expected(model: nn.Module, cost: LayerCost | NetworkCost, example: Example | Trace) -> Expected:
    """The cost of `model` under its thetas, whether it adds up over layers or not.

    Args:
        example: as for `nas.cost.trace.trace`; or a `Trace` made before.

    Raises:
        UserError: as `trace` does, or the cost cannot be told of this model.
    """
    if isinstance(cost, NetworkCost):
        return cost.expected(model, example)
    return ExpectedCost(model, cost, example)


class ExpectedTerms:
    """A cost that is one polynomial in the thetas of `model`, or the largest of several.

    Args:
        model: holds the decisions; their theta is read at every call.
        name, unit: of the cost.
        rows: the polynomials. Of several the mean of the largest is taken, see
            `nas.cost.maximum` for what is approximated.
        options: decision name -> number of its options.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        unit: str,
        rows: Sequence[Polynomial],
        options: Mapping[str, int],
    ) -> None:
        self.name, self.unit, self.rows, self.options = name, unit, tuple(rows), dict(options)
        self._decisions = dict(decisions(model))
        self._value: Callable[[Mapping[str, Tensor]], Tensor]
        if len(self.rows) == 1:
            polynomial = Polynomials(self.rows, self.options)
            self._value = lambda thetas: polynomial(thetas)[0]
        else:
            self._value = ExpectedMaximum(self.rows, self.options)

    @property
    def constraints(self) -> tuple[Polynomial, ...]:
        """Polynomials that are all at most a budget where the cost is; the cost is the largest."""
        return self.rows

    def __call__(self) -> Tensor:
        """Expected cost, a float64 scalar (float32 where the device has no float64)."""
        return self.at({name: d.theta for name, d in self._decisions.items()})

    def mean(self) -> Tensor:
        """Mean over all architectures: the cost of the untrained supernet under any relaxation."""
        return self.at(
            {n: torch.full((k,), 1 / k, dtype=torch.float64) for n, k in self.options.items()}
        )

    def of(self, choices: Mapping[str, object]) -> float:
        """Exact cost of the architecture that takes `choices` (decision name -> option)."""
        return float(self.at(one_hot(self._decisions, choices)))

    def at(self, thetas: Mapping[str, Tensor]) -> Tensor:
        """Expected cost under these thetas ``(K_d,)``."""
        return self._value(thetas)


class ExpectedCost(ExpectedTerms):
    """The cost of `model` under its present theta, differentiable in every alpha.

    ``E[c] = sum_layers P(layer exists) * c(layer)``, where the probability of a layer inside
    nested choices is the product of their thetas, and that of a weight shared by several options
    the probability that any of them is taken. One-hot thetas give the exact cost of that network.

    The model is traced once; afterwards a call is a handful of small products.

    Args:
        model: holds the decisions; their theta is read at every call.
        cost: prices one layer.
        example: as for `nas.cost.trace.trace`; or a `Trace` made before.

    Raises:
        UserError: as `trace` does, or `cost` gives a layer a value that is not finite.
    """

    def __init__(self, model: nn.Module, cost: LayerCost, example: Example | Trace) -> None:
        traced = example if isinstance(example, Trace) else trace(model, example)
        self.cost = cost
        terms = layer_terms(traced, cost)
        super().__init__(model, cost.name, cost.unit, [terms], traced.options)


def one_hot(own: Mapping[str, Decision], choices: Mapping[str, object]) -> dict[str, Tensor]:
    """The thetas ``(K,)``, float64, of the architecture that takes `choices`."""
    return {
        name: torch.eye(len(d.options), dtype=torch.float64)[d.options.index(choices[name])]
        for name, d in own.items()
    }


def layer_terms(traced: Trace, cost: LayerCost) -> dict[Term, float]:
    """``sum_layers P(layer exists) * cost(layer)`` as a polynomial."""
    parts: list[tuple[float, Polynomial]] = []
    for layer in traced.layers:
        value = float(cost(layer.spec))
        _check_finite(value, cost, layer.spec)
        if value:
            parts.append((value, probability(layer.active_if)))
    return weighted_sum(parts)


def _check_finite(value: float, cost: LayerCost, spec: LayerSpec) -> None:
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(
            f"cost {cost.name!r} gives {value} for the {spec.kind} layer {spec.module!r}; "
            "a cost must be a finite number"
        )
