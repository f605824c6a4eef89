"""Polynomials in thetas: what every cost of a supernet is, or is the maximum of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from nas.cost.base import Condition, Polynomial, Term


def probability(active_if: Iterable[Condition]) -> dict[Term, float]:
    """``P(A or B or ...)`` by inclusion and exclusion: a signed sum of products of thetas."""
    total: dict[Term, float] = defaultdict(float)
    # Of the union of some conjunctions, its sign and the conjunctions that may still join. What
    # contradicts itself goes at once: alternatives, such as all variants of a block, are many.
    pending: list[tuple[Condition, int, list[Condition]]] = [
        (frozenset(), -1, sorted(active_if, key=sorted))
    ]
    while pending:
        union, sign, others = pending.pop()
        for i, condition in enumerate(others):
            joined = union | condition
            if consistent(joined):
                total[joined] -= sign
                pending.append((joined, -sign, others[i + 1 :]))
    return {term: value for term, value in total.items() if value}


def consistent(condition: Condition) -> bool:
    """Whether some network meets `condition`: two options of one decision exclude each other."""
    return len({name for name, _ in condition}) == len(condition)


def weighted_sum(parts: Iterable[tuple[float, Polynomial]]) -> dict[Term, float]:
    """``sum_i factor_i * polynomial_i``, without the terms that cancel."""
    total: dict[Term, float] = defaultdict(float)
    for factor, terms in parts:
        for term, value in terms.items():
            total[term] += factor * value
    return {term: value for term, value in total.items() if value}


def times(choice: tuple[str, int], terms: Polynomial) -> dict[Term, float]:
    """``theta_choice * polynomial``; no decision of `terms` is that of `choice`."""
    return {term | {choice}: value for term, value in terms.items()}


def reduced(terms: Polynomial, options: Mapping[str, int]) -> dict[Term, float]:
    """The same polynomial in fewer terms, by ``sum_k theta_k = 1``.

    What all options of a decision have in common leaves it: ``3 a + 5 b = 3 + 2 b``.
    """
    total, before = dict(terms), -1
    while before != len(total):
        before = len(total)
        for name in {name for term in total for name, _ in term}:
            _take_out(total, name, options[name])
    return total


def _take_out(total: dict[Term, float], name: str, count: int) -> None:
    groups: dict[Term, list[Term]] = defaultdict(list)
    for term in total:
        for choice in term:
            if choice[0] == name:
                groups[term - {choice}].append(term)
    for rest, terms in groups.items():
        values = [total[term] for term in terms]
        if len(values) < count or min(values) < 0 < max(values):
            continue
        common = min(values) if min(values) > 0 else max(values)
        for term in (*terms, rest):
            shift = common if term == rest else -common
            total[term] = total.get(term, 0.0) + shift
            if not total[term]:
                del total[term]


def upper_bound(terms: Polynomial, options: Mapping[str, int]) -> float:
    """At least the largest value over one-hot thetas; that value itself for a linear polynomial."""
    bound = 0.0
    linear: dict[str, list[float]] = defaultdict(list)
    for term, value in terms.items():
        if len(term) == 1:
            ((name, _),) = term
            linear[name].append(value)
        else:
            bound += value if not term else max(value, 0.0)
    for name, values in linear.items():
        bound += max(values) if len(values) == options[name] else max(*values, 0.0)
    return bound


class Polynomials:
    """``sum_m coefficient[r, m] * prod_{(d, k) in m} theta_d[k]`` for each row r, as few products.

    Coefficients are float64: a count of parameters is exact there and not in float32.

    Shapes: thetas ``(*, K_d)`` -> ``(*, R)``, R = number of polynomials.
    """

    def __init__(self, rows: Sequence[Polynomial], options: Mapping[str, int]) -> None:
        self._names = list(options)
        start, offsets = 0, {}
        for name, count in options.items():
            offsets[name] = start
            start += count
        self._constant = torch.tensor(
            [row.get(frozenset(), 0.0) for row in rows], dtype=torch.float64
        )
        self._linear = torch.zeros(start, len(rows), dtype=torch.float64)
        degrees: dict[int, dict[Term, None]] = defaultdict(dict)  # a dict keeps the order
        for r, row in enumerate(rows):
            for term, value in row.items():
                if len(term) == 1:
                    ((name, option),) = term
                    self._linear[offsets[name] + option, r] = value
                elif term:
                    degrees[len(term)][term] = None
        self._products = [
            (
                torch.tensor(
                    [[offsets[n] + k for n, k in sorted(m)] for m in found]
                ).T.contiguous(),
                torch.tensor(
                    [[row.get(m, 0.0) for row in rows] for m in found], dtype=torch.float64
                ),
            )
            for found in degrees.values()
        ]

    def __call__(self, thetas: Mapping[str, Tensor]) -> Tensor:
        if not self._names:
            return self._constant
        theta = torch.cat([thetas[name] for name in self._names], dim=-1)
        # Apple's GPUs have no float64.
        theta = theta.to(torch.float32 if theta.device.type == "mps" else torch.float64)
        self._follow(theta)
        total = theta @ self._linear + self._constant
        for places, values in self._products:
            factors = theta[..., places[0]]
            for row in places[1:]:
                factors = factors * theta[..., row]
            total = total + factors @ values
        return total

    def _follow(self, theta: Tensor) -> None:
        """Keep the coefficients where theta is: once per move, not once per call."""
        if self._linear.device == theta.device and self._linear.dtype == theta.dtype:
            return
        self._constant, self._linear = self._constant.to(theta), self._linear.to(theta)
        self._products = [(p.to(theta.device), v.to(theta)) for p, v in self._products]
