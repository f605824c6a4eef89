"""The expected value of a maximum of polynomials in thetas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

import torch
from torch import Tensor

from nas.cost.base import Polynomial
from nas.cost.polynomial import Polynomials

_TABLE = 1024  # as many combinations of options are written out; beyond, decisions are independent


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
