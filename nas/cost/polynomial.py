"""Polynomials in thetas: every cost of a supernet is one of them, or the maximum of several."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

import torch
from torch import Tensor

Choice = tuple[str, int]  # decision name and the index of the option taken
Condition = frozenset[Choice]  # holds in the architectures that make all of these choices
AnyOf = frozenset[Condition]  # holds where any of these conditions does
Term = Condition  # a product of thetas, at most one of each decision
Polynomial = Mapping[Term, float]  # in thetas: term -> coefficient

_TABLE = 1024  # as many combinations of options are written out; beyond, decisions are independent


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


def united(conditions: Iterable[Condition], options: Mapping[str, int]) -> list[Condition]:
    """Conditions that exclude each other, in fewer: all options of a decision together say nothing.

    Args:
        options: decision name -> number of options.
    """
    found, before = dict.fromkeys(conditions), -1
    while before != len(found):
        before = len(found)
        for name in sorted({name for condition in found for name, _ in condition}):
            alike: dict[Condition, list[Condition]] = defaultdict(list)
            for condition in found:
                rest = frozenset(choice for choice in condition if choice[0] != name)
                if rest != condition:
                    alike[rest].append(condition)
            for rest, members in alike.items():
                if len(members) == options[name]:
                    found = {c: None for c in found if c not in members} | {rest: None}
    return list(found)


def weighted_sum(parts: Iterable[tuple[float, Polynomial]]) -> dict[Term, float]:
    """``sum_i factor_i * polynomial_i``, without the terms that cancel."""
    total: dict[Term, float] = defaultdict(float)
    for factor, terms in parts:
        for term, value in terms.items():
            total[term] += factor * value
    return {term: value for term, value in total.items() if value}


def times(choice: Choice, terms: Polynomial) -> dict[Term, float]:
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


class ExpectedMaximum:
    """``E[max_r p_r]``, p_r >= 0, when each decision draws one option, k with probability theta_k.

    ``E[max] = v_J - sum_j (v_{j+1} - v_j) prod_g P(max_{r in g} p_r <= v_j)`` over the values
    ``v_1 < ... < v_J`` that the polynomials take. A group g holds those that share decisions, so
    that groups are independent, and has a table of its values. It is polynomial in the thetas, and
    at one-hot thetas the maximum itself, whole numbers exactly.

    Where a table would be of more than 1024 rows, groups share decisions and are taken for
    independent, which overestimates; a polynomial too large on its own enters by its mean, in a
    plain maximum. Either is still exact at one-hot thetas.

    Shapes: thetas ``(K_d,)`` -> ``()``.
    """

    def __init__(self, rows: Sequence[Polynomial], options: Mapping[str, int]) -> None:
        self._names = list(options)
        groups, large = _grouped(rows, options)
        self._large = Polynomials(large, options) if large else None
        tables = [_Table(group, options) for group in groups]
        least = [table.values[0] for table in tables]
        floor = torch.stack([*least, torch.tensor(_largest_constant(rows)).double()]).amax()
        every = torch.cat([floor[None], *(table.values for table in tables)])
        levels: Tensor = torch.unique(every.clamp(min=float(floor)))
        self._top, self._steps = levels[-1], levels.diff()
        # The last row that is at most each level; there is one, as no level is below the floor.
        last = [torch.searchsorted(t.values, levels[:-1], right=True) - 1 for t in tables]
        self._last = torch.stack(last) if last else torch.zeros(0, 0).long()
        self._places = _places(tables, options)

    def __call__(self, thetas: Mapping[str, Tensor]) -> Tensor:
        if not self._names:
            return self._top
        one = thetas[self._names[0]].new_ones(1)  # the factor for a decision that a table has not
        theta = torch.cat([*(thetas[name] for name in self._names), one])
        # Apple's GPUs have no float64.
        theta = theta.to(torch.float32 if theta.device.type == "mps" else torch.float64)
        self._follow(theta)
        chance = theta[self._places[0]]
        for row in self._places[1:]:
            chance = chance * theta[row]
        # The rows of a table ascend: P(value <= v) is a sum of the first ones.
        sums = chance.cumsum(1).gather(1, self._last)
        under = sums[0]
        for other in sums[1:]:
            under = under * other
        value: Tensor = self._top - torch.dot(self._steps, under)
        return value if self._large is None else torch.maximum(value, self._large(thetas).amax())

    def _follow(self, theta: Tensor) -> None:
        """Keep the constants where theta is: once per move, not once per call."""
        if self._top.device != theta.device or self._top.dtype != theta.dtype:
            self._top, self._steps = self._top.to(theta), self._steps.to(theta)
            self._last, self._places = (t.to(theta.device) for t in (self._last, self._places))


@dataclass
class _Group:
    """Polynomials and, in the order of the model, the decisions that they depend on."""

    names: tuple[str, ...]
    rows: list[Polynomial] = field(default_factory=list)


class _Table:
    """The largest value of a group for every combination of options, ascending.

    Shapes: values ``(C,)``, combinations ``(C, number of decisions)``.
    """

    def __init__(self, group: _Group, options: Mapping[str, int]) -> None:
        self.names = group.names
        own = {name: options[name] for name in group.names}
        combinations = torch.tensor(list(product(*(range(count) for count in own.values()))))
        one_hot = {
            name: torch.eye(count, dtype=torch.float64)[combinations[:, column]]
            for column, (name, count) in enumerate(own.items())
        }
        values = Polynomials(group.rows, own)(one_hot).amax(-1)
        self.values, order = values.sort()
        self.combinations = combinations[order]


def _grouped(
    rows: Sequence[Polynomial], options: Mapping[str, int]
) -> tuple[list[_Group], list[Polynomial]]:
    """Groups that share no decision, as far as tables allow; and rows too large for a table."""
    groups: list[_Group] = []
    large: list[Polynomial] = []
    for row in sorted(rows, key=lambda row: len(_decisions_of(row))):
        names = _decisions_of(row)
        if prod(options[name] for name in names) > _TABLE:
            large.append(row)
        elif names:
            _join(groups, _Group(_ordered(names, options), [row]), options)
    if not groups and options:  # nothing to decide: one decision keeps the gradient, which is 0
        groups = [_Group((next(iter(options)),), [{frozenset(): _largest_constant(rows)}])]
    return groups, large


def _join(groups: list[_Group], new: _Group, options: Mapping[str, int]) -> None:
    """Add `new`, merged with each group that shares a decision while the table stays small."""
    for group in list(groups):
        if not set(group.names).isdisjoint(new.names):
            names = _ordered({*group.names, *new.names}, options)
            if prod(options[name] for name in names) <= _TABLE:
                groups.remove(group)
                new = _Group(names, group.rows + new.rows)
    groups.append(new)


def _ordered(names: set[str], options: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(name for name in options if name in names)


def _decisions_of(row: Polynomial) -> set[str]:
    return {name for term in row for name, _ in term}


def _largest_constant(rows: Sequence[Polynomial]) -> float:
    return max((row.get(frozenset(), 0.0) for row in rows if not _decisions_of(row)), default=0.0)


def _places(tables: Sequence[_Table], options: Mapping[str, int]) -> Tensor:
    """Where the factors of each row of each table are among all thetas and, behind them, 1.

    Shape: ``(largest number of decisions, tables, largest number of rows)``.
    """
    start, offsets = 0, {}
    for name, count in options.items():
        offsets[name] = start
        start += count
    deepest = max((len(table.names) for table in tables), default=0)
    longest = max((len(table.values) for table in tables), default=0)
    places = torch.full((deepest, len(tables), longest), start)
    for index, table in enumerate(tables):
        for column, name in enumerate(table.names):
            places[column, index, : len(table.values)] = (
                offsets[name] + table.combinations[:, column]
            )
    return places
