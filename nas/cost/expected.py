"""Expected cost of a supernet: layers weighted by the probability that they are in the network."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nas.cost.dry_run import Example
from nas.cost.folding import folds
from nas.cost.layer import LayerCost
from nas.cost.polynomial import (
    ExpectedMaximum,
    Polynomial,
    Polynomials,
    Term,
    probability,
    reduced,
    weighted_sum,
)
from nas.cost.trace import Layer, Trace, accesses, trace
from nas.decision import Decision, decisions
from nas.errors import UserError


class Expected:
    """A cost of one supernet under the thetas that its decisions have at the time of a call.

    One polynomial in the thetas, or the largest of several; exact where thetas are one-hot.

    Args:
        model: holds the decisions; their theta is read at every call.
        name, unit: of the cost.
        rows: the polynomials. Of several the mean of the largest is taken, see `ExpectedMaximum`
            for what is approximated.
        options: decision name -> number of its options.
        added: a polynomial that is added to the largest.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        unit: str,
        rows: Sequence[Polynomial],
        options: Mapping[str, int],
        added: Polynomial | None = None,
    ) -> None:
        self.name, self.unit, self.rows, self.options = name, unit, tuple(rows), dict(options)
        self.added = added or {}
        self._decisions = dict(decisions(model))
        self._added = Polynomials([self.added], self.options)
        self._value: Callable[[Mapping[str, Tensor]], Tensor]
        if len(self.rows) == 1:
            polynomial = Polynomials(self.rows, self.options)
            self._value = lambda thetas: polynomial(thetas)[0]
        else:
            self._value = ExpectedMaximum(self.rows, self.options)

    @property
    def constraints(self) -> tuple[Polynomial, ...]:
        """Polynomials whose largest is the cost, exactly, where thetas are one-hot.

        Thus the cost is at most a budget where each of them is.
        """
        if not self.added:
            return self.rows
        sums = (weighted_sum([(1, row), (1, self.added)]) for row in self.rows)
        return tuple(reduced(terms, self.options) for terms in sums)

    def __call__(self) -> Tensor:
        """Expected cost, a float64 scalar (float32 where the device has no float64).

        It is differentiable in every alpha.
        """
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
        value = self._value(thetas)
        return value + self._added(thetas)[0] if self.added else value


@runtime_checkable
class NetworkCost(Protocol):
    """A cost that is no sum over layers or activations, such as the peak of live memory."""

    @property
    def name(self) -> str:
        """Key of the cost in configurations and results."""
        ...

    @property
    def unit(self) -> str:
        """Unit of its values, e.g. "B"."""
        ...

    def expected(self, model: nn.Module, example: Example | Trace) -> Expected:
        """The cost of the supernet `model`, see `Expected`.

        Args:
            example: as for `nas.cost.trace.trace`; or a `Trace` made before.
        """
        ...


class ExpectedCost(Expected):
    """The cost of `model` under its present theta, as a sum over layers.

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

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4, bias=False), "skip": nn.Identity()})
        >>> cost = nas.ExpectedCost(nn.Sequential(block), nas.Params(), (4,))
        >>> cost().item(), cost.of({"0": "linear"}), cost.of({"0": "skip"})
        (8.0, 16.0, 0.0)
        >>> cost().backward()  # descent moves probability away from what is expensive
        >>> block.alpha.grad.tolist()
        [4.0, -4.0]
    """

    def __init__(self, model: nn.Module, cost: LayerCost, example: Example | Trace) -> None:
        traced = example if isinstance(example, Trace) else trace(model, example)
        super().__init__(model, cost.name, cost.unit, [layer_terms(traced, cost)], traced.options)


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


def one_hot(own: Mapping[str, Decision], choices: Mapping[str, object]) -> dict[str, Tensor]:
    """The thetas ``(K,)``, float64, of the architecture that takes `choices`."""
    return {
        name: torch.eye(len(d.options), dtype=torch.float64)[d.options.index(choices[name])]
        for name, d in own.items()
    }


def entries(traced: Trace, cost: LayerCost) -> Iterator[Layer]:
    """The layers that `cost` prices: calls, stored tensors, and what it asks for by `extra_kinds`.

    See `LayerCost`.
    """
    extra = set(getattr(cost, "extra_kinds", ()))
    yield from traced.layers
    if extra & {"folded", "gained"}:
        yield from folds(traced)
    if extra & {"read", "write"}:
        yield from accesses(traced)


def layer_terms(traced: Trace, cost: LayerCost) -> dict[Term, float]:
    """``sum_layers P(layer exists) * cost(layer)`` as a polynomial.

    Raises:
        UserError: `cost` gives a layer a value that is not finite.
    """
    parts: list[tuple[float, Polynomial]] = []
    for layer in entries(traced, cost):
        value = float(cost(layer.spec))
        if not isfinite(value):
            raise UserError(
                f"cost {cost.name!r} gives {value} for the {layer.spec.kind} layer "
                f"{layer.spec.module!r}; a cost must be a finite number"
            )
        if value:
            parts.append((value, probability(layer.active_if)))
    return weighted_sum(parts)
