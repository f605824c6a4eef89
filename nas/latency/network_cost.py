"""A model of whole networks as a cost to search with."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from torch import nn

from nas.cost.base import Monomial
from nas.cost.expected import ExpectedTerms
from nas.cost.polynomial import reduced
from nas.cost.trace import Example, Trace
from nas.decision import Decision, decisions
from nas.errors import UserError
from nas.latency.network import NetworkModel

LARGEST = 2**15  # architectures that are written out for a model that does not add up


@dataclass(frozen=True)
class NetworkLatency:
    """Seconds of a whole network, by a model fitted to a table of them."""

    model: NetworkModel
    name: str = "latency"
    unit: str = "s"

    def expected(self, model: nn.Module, example: "Example | Trace") -> "ExpectedNetworkLatency":
        """The latency of the supernet `model`; nothing is run.

        Raises:
            UserError: its decisions, or options, are not those of the table; or it has too many
                architectures for a model that does not add up over decisions.
        """
        return ExpectedNetworkLatency(model, self)


class ExpectedNetworkLatency(ExpectedTerms):
    """Mean over architectures, each with its probability; exact, and so differentiable.

    A model that adds up over decisions has one term for each option. For any other the
    architectures are written out, up to 32,768 of them.
    """

    def __init__(self, supernet: nn.Module, cost: NetworkLatency) -> None:
        self.cost = cost
        self._decisions = dict(decisions(supernet))
        self.options = {name: len(d.options) for name, d in self._decisions.items()}
        self._order = _matched(self._decisions, cost.model.encoding.options)
        terms = self._additive() if cost.model.additive else self._enumerated()
        super().__init__(supernet, cost.name, cost.unit, [terms], self.options)

    def _additive(self) -> dict[Monomial, float]:
        """The value of the first architecture, and what each other option adds to it."""
        texts = {name: list(map(str, self._decisions[name].options)) for name in self._order}
        base = tuple(texts[name][0] for name in self._order)
        gates, networks = [], [base]
        for place, name in enumerate(self._order):
            for index, option in enumerate(texts[name][1:], start=1):
                gates.append((name, index))
                networks.append((*base[:place], option, *base[place + 1 :]))
        first, *others = self.cost.model.predict(networks).tolist()
        terms: dict[Monomial, float] = {frozenset(): first}
        for gate, value in zip(gates, others, strict=True):
            terms[frozenset({gate})] = value - first
        return terms

    def _enumerated(self) -> dict[Monomial, float]:
        count = prod(self.options.values())
        if count > LARGEST:
            raise UserError(
                f"this space has {count} architectures, and a latency model that does not add up "
                f"over decisions can be searched with for at most {LARGEST}: fit one of the kinds "
                "counts or onehot, with nothing left out"
            )
        options = [list(enumerate(map(str, self._decisions[n].options))) for n in self._order]
        every = list(product(*options))
        values = self.cost.model.predict([tuple(o for _, o in taken) for taken in every]).tolist()
        terms: dict[Monomial, float] = {
            frozenset((n, k) for n, (k, _) in zip(self._order, taken, strict=True)): value
            for taken, value in zip(every, values, strict=True)
        }
        return reduced(terms, self.options) if count <= 256 else terms


def _matched(own: Mapping[str, Decision], known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The supernet's decisions in the order of the model's.

    Raises:
        UserError: they are others, or have options that the table has not.
    """
    if set(own) != set(known):
        raise UserError(
            f"the latency model is of a space with the decisions {list(known)}, this one has "
            f"{list(own)}: fit it to a table of this space"
        )
    for name, decision in own.items():
        strange = [option for option in decision.options if str(option) not in known[name]]
        if strange:
            raise UserError(
                f"the table of the latency model has no network with {strange} at {name!r}, only "
                f"{list(known[name])}: add measured networks that do"
            )
    return list(known)
