"""Expected cost of a supernet: layers weighted by the probability that they are in the network."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from nas.cost.base import LayerCost, LayerSpec
from nas.cost.trace import Event, Example, Gates, Trace, trace
from nas.decision import decisions
from nas.errors import UserError

Monomial = Gates  # product of thetas, at most one option of each decision


class ExpectedCost:
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
        self.name, self.unit = cost.name, cost.unit
        self._decisions = dict(decisions(model))
        self.terms = _monomials(traced, cost)
        self.options = dict(traced.options)
        self._polynomial = Polynomial(self.terms, self.options)

    @property
    def constraints(self) -> tuple[Mapping[Monomial, float], ...]:
        """Polynomials of the choices whose largest is the cost of an architecture."""
        return (self.terms,)

    def __call__(self) -> Tensor:
        """Expected cost, a float64 scalar (float32 where the device has no float64)."""
        return self._polynomial({name: d.theta for name, d in self._decisions.items()})

    def mean(self) -> Tensor:
        """Mean over all architectures: the cost of the untrained supernet under any relaxation."""
        uniform = {n: torch.full((k,), 1 / k, dtype=torch.float64) for n, k in self.options.items()}
        return self._polynomial(uniform)

    def of(self, choices: Mapping[str, object]) -> float:
        """Exact cost of the architecture that takes `choices` (decision name -> option)."""
        picked = {
            name: torch.eye(len(d.options), dtype=torch.float64)[d.options.index(choices[name])]
            for name, d in self._decisions.items()
        }
        return float(self._polynomial(picked))


def _monomials(traced: Trace, cost: LayerCost) -> dict[Monomial, float]:
    total: dict[Monomial, float] = defaultdict(float)
    for layer in traced.layers:
        value = float(cost(layer.spec))
        _check_finite(value, cost, layer.spec)
        if value:
            for monomial, sign in _inclusion_exclusion(layer.event):
                total[monomial] += sign * value
    return {monomial: value for monomial, value in total.items() if value}


def _check_finite(value: float, cost: LayerCost, spec: LayerSpec) -> None:
    if value != value or value in (float("inf"), float("-inf")):
        raise UserError(
            f"cost {cost.name!r} gives {value} for the {spec.kind} layer {spec.module!r}; "
            "a cost must be a finite number"
        )


def _inclusion_exclusion(event: Event) -> Iterator[tuple[Monomial, int]]:
    """``P(A or B or ...)`` as a signed sum of products of thetas."""
    for size in range(1, len(event) + 1):
        for gates in combinations(sorted(event, key=sorted), size):
            union = frozenset().union(*gates)
            # Two options of one decision exclude each other.
            if len({name for name, _ in union}) == len(union):
                yield union, -1 if size % 2 == 0 else 1


class Polynomial:
    """``sum_m coefficient[m] * prod_{(d, k) in m} theta_d[k]``, compiled to a few tensor products.

    Coefficients are float64: a count of parameters is exact there and not in float32.
    """

    def __init__(self, terms: Mapping[Monomial, float], options: Mapping[str, int]) -> None:
        self._names = list(options)
        start, offsets = 0, {}
        for name, count in options.items():
            offsets[name] = start
            start += count
        self.constant = terms.get(frozenset(), 0.0)
        linear = torch.zeros(start, dtype=torch.float64)
        products: dict[int, list[tuple[list[int], float]]] = defaultdict(list)
        for monomial, value in terms.items():
            places = [offsets[name] + option for name, option in sorted(monomial)]
            if len(places) == 1:
                linear[places[0]] += value
            elif places:
                products[len(places)].append((places, value))
        self._linear = linear
        self._products = [
            (
                torch.tensor([places for places, _ in found]).T.contiguous(),
                torch.tensor([value for _, value in found], dtype=torch.float64),
            )
            for found in products.values()
        ]

    def __call__(self, thetas: Mapping[str, Tensor]) -> Tensor:
        if not self._names:
            return torch.tensor(self.constant, dtype=torch.float64)
        theta = torch.cat([thetas[name] for name in self._names])
        # Apple's GPUs have no float64.
        theta = theta.to(torch.float32 if theta.device.type == "mps" else torch.float64)
        self._follow(theta)
        total = torch.dot(theta, self._linear) + self.constant
        for places, values in self._products:
            factors = theta[places[0]]
            for row in places[1:]:
                factors = factors * theta[row]
            total = total + torch.dot(factors, values)
        return total

    def _follow(self, theta: Tensor) -> None:
        """Keep the coefficients where theta is: once per move, not once per call."""
        if self._linear.device == theta.device and self._linear.dtype == theta.dtype:
            return
        self._linear = self._linear.to(theta)
        self._products = [(p.to(theta.device), v.to(theta)) for p, v in self._products]
