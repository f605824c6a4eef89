"""Exact answers about all architectures of a space, by integer programming (scipy's HiGHS)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.cost.polynomial import Choice, Polynomial, Term

Floats = NDArray[np.float64]
Sums = dict[Term, dict[Term, float]]


class Limit(NamedTuple):
    """``terms <= bound`` for the architecture sought."""

    terms: Polynomial
    bound: float


@dataclass(frozen=True)
class Optimum:
    """An architecture (decision -> index of its option) and the exact value it reaches."""

    choices: Mapping[str, int]
    value: float


def value(terms: Polynomial, choices: Mapping[str, int]) -> float:
    """The polynomial at one architecture."""
    return sum(c for m, c in terms.items() if all(choices[name] == k for name, k in m))


def worst(polynomials: Iterable[Polynomial], choices: Mapping[str, int]) -> float:
    """The largest of several polynomials at one architecture."""
    return max(value(terms, choices) for terms in polynomials)


@dataclass
class IntegerProgram:
    """Searches every architecture: one option of each decision.

    Options are binary variables; a product of options (a layer in nested choices) is a variable
    ``y = prod x``, bound by ``sum y <= x_i`` over alternatives and ``y >= sum x - (n - 1)``.
    Pairs of options that cost the same in all products are one factor, see `_joint`.

    Args:
        options: decision name -> number of its options.
    """

    options: Mapping[str, int]
    _counts: dict[str, int] = field(default_factory=dict, init=False)
    _columns: dict[Term, int] = field(default_factory=dict, init=False)

    def minimise(
        self, objective: Sequence[Polynomial], limits: Sequence[Limit] = (), gap: float = 0.0
    ) -> Optimum | None:
        """The architecture of the least maximum of `objective` inside all limits.

        None where no architecture is inside. It is exact but where a `gap` is given: then it may
        be worse than the best by that share of its value.
        """
        if not self.options:
            inside = all(_holds(limit, {}) for limit in limits)
            return Optimum({}, worst(objective, {})) if inside else None
        given = [*objective, *(limit.terms for limit in limits)]
        self._counts, polynomials, sums = _joint(self.options, given)
        binary = self._add_columns(polynomials, sums)
        rows = _Rows(len(self._columns) + 1)  # the last variable is the maximum
        for term, pairs in sums.items():
            rows.add({self._columns[term]: -1.0, **self._row(pairs)[0]}, 0, 0)
        self._structure(rows)
        for limit, terms in zip(limits, polynomials[len(objective) :], strict=True):
            row, constant = self._row(terms)
            rows.add(row, -np.inf, limit.bound - constant)
        cost = self._objective(polynomials[: len(objective)], rows)
        while True:
            solved = rows.solve(cost, binary, len(self._columns), gap)
            if solved is None:
                return None
            choices = self._choices(solved)
            if all(_holds(limit, choices) for limit in limits):
                return Optimum(choices, worst(objective, choices))
            # HiGHS takes a limit to hold to a part in a million; the user takes it to hold.
            rows.add(self._indicator(choices), -np.inf, len(choices) - 1)

    def maximise(
        self, objective: Sequence[Polynomial], limits: Sequence[Limit] = (), gap: float = 0.0
    ) -> Optimum | None:
        """The architecture of the largest maximum of `objective` inside all limits.

        See `minimise` for `gap`.
        """
        best: Optimum | None = None
        for terms in sorted(objective, key=self._at_most, reverse=True):
            if best is not None and self._at_most(terms) <= best.value:
                break
            found = self.minimise([{m: -c for m, c in terms.items()}], limits, gap)
            if found is not None and (best is None or -found.value > best.value):
                best = Optimum(found.choices, -found.value)
        return best

    def _at_most(self, terms: Polynomial) -> float:
        """No architecture gives more: every decision at its best for each set of decisions."""
        largest: dict[frozenset[str], float] = {}
        for term, c in terms.items():
            names = frozenset(name for name, _ in term)
            largest[names] = max(largest.get(names, 0.0 if names else c), c)
        return sum(largest.values())

    def _add_columns(self, polynomials: Sequence[Polynomial], sums: Sums) -> int:
        """A variable for each option, and behind these, whose number is given, for each product."""
        single = [frozenset({(n, k)}) for n, count in self.options.items() for k in range(count)]
        found: dict[Term, None] = dict.fromkeys([*single, *sums])
        for terms in (*sums.values(), *polynomials):
            found |= dict.fromkeys(sorted(terms.keys() - found.keys() - {frozenset()}, key=sorted))
        self._columns = {term: column for column, term in enumerate(found)}
        return len(single)

    def _row(self, terms: Polynomial) -> tuple[dict[int, float], float]:
        row = {self._columns[term]: c for term, c in terms.items() if term}
        return row, terms.get(frozenset(), 0.0)

    def _structure(self, rows: "_Rows") -> None:
        for name, count in self.options.items():
            one = {self._columns[frozenset({(name, k)})]: 1.0 for k in range(count)}
            rows.add(one, 1, 1)
        # Products of options of the same decisions exclude each other: summed up, a factor bounds
        # them far more tightly than one by one, and is their sum where there are all of them.
        alternatives: dict[tuple[frozenset[str], Choice], list[Term]] = defaultdict(list)
        implied: set[Term] = set()
        for term in self._columns:
            for choice in term if len(term) > 1 else ():
                alternatives[frozenset(name for name, _ in term), choice].append(term)
        for (names, choice), products in alternatives.items():
            every = len(products) == prod(self._counts[name] for name in names - {choice[0]})
            row = {self._columns[term]: 1.0 for term in products}
            row[self._columns[frozenset({choice})]] = -1.0
            rows.add(row, 0 if every else -np.inf, 0)
            implied |= set(products) if every else set()
        for term, column in self._columns.items():
            if len(term) > 1 and term not in implied:
                factors = [self._columns[frozenset({choice})] for choice in term]
                rows.add({column: -1, **dict.fromkeys(factors, 1.0)}, -np.inf, len(factors) - 1)

    def _objective(self, objective: Sequence[Polynomial], rows: "_Rows") -> dict[int, float]:
        if len(objective) == 1:
            return self._row(objective[0])[0]
        top = len(self._columns)
        for terms in objective:
            row, constant = self._row(terms)
            rows.add({**row, top: -1.0}, -np.inf, -constant)
        return {top: 1.0}

    def _indicator(self, choices: Mapping[str, int]) -> dict[int, float]:
        return {self._columns[frozenset({choice})]: 1.0 for choice in choices.items()}

    def _choices(self, solved: Floats) -> dict[str, int]:
        return {
            name: max(range(count), key=lambda k: solved[self._columns[frozenset({(name, k)})]])
            for name, count in self.options.items()
        }


def _joint(
    options: Mapping[str, int], polynomials: Sequence[Polynomial]
) -> tuple[dict[str, int], list[dict[Term, float]], Sums]:
    """The same polynomials in fewer products, of classes of pairs of options.

    A layer costs by its number of taps, which many pairs of kernel and dilation share, and by its
    input times its output channels. Pairs of options of two decisions are a class where they have
    the same coefficients with all others in a product. Classes are options of a new decision.

    Returns:
        Numbers of options, polynomials, and the pairs whose products add up to each class.
    """
    counts, sums = dict(options), Sums()
    found = [dict(terms) for terms in polynomials]
    groups: dict[tuple[str, ...], dict[Term, tuple[int, ...]]] = defaultdict(dict)
    for term in dict.fromkeys(t for terms in polynomials for t in terms if len(t) > 2):
        names, place = zip(*sorted(term), strict=True)
        groups[names][term] = place
    for names, places in groups.items():
        if prod(counts[name] for name in names) > 2 * len(places):
            continue
        table = np.zeros((*(counts[name] for name in names), len(found)))
        for term, place in places.items():
            table[place] = [terms.pop(term, 0.0) for terms in found]
        joint, table = _with_classes(names, table, counts, sums)
        for r, terms in enumerate(found):
            for place, c in np.ndenumerate(table[..., r]):
                # Those of 0 too, in the first: all together add up to their factors.
                if c or (not r and joint != names):
                    terms[frozenset(zip(joint, place, strict=True))] = float(c)
    return counts, found, sums


def _with_classes(
    names: tuple[str, ...], table: Floats, counts: dict[str, int], sums: Sums
) -> tuple[tuple[str, ...], Floats]:
    """Decisions and coefficients ``(*options, polynomials)`` with all classes that halve pairs.

    `counts` and `sums` are added to.
    """
    while len(names) > 2:
        few = [(*_classes(table, i, j), i, j) for i, j in combinations(range(len(names)), 2)]
        kinds, own, i, j = min(few, key=lambda one: len(one[0]) / len(one[1]))
        if 2 * len(kinds) > len(own):
            break
        joint = f"{names[i]} * {names[j]} #{len(counts)}"
        for pair, kind in enumerate(own.tolist()):
            k, m = divmod(pair, table.shape[j])
            pairs = sums.setdefault(frozenset({(joint, kind)}), {})
            pairs[frozenset({(names[i], k), (names[j], m)})] = 1.0
        counts[joint], table = len(kinds), kinds
        names = (joint, *names[:i], *names[i + 1 : j], *names[j + 1 :])
    return names, table


def _classes(table: Floats, i: int, j: int) -> tuple[Floats, NDArray[np.int64]]:
    """The different slices of a table at two of its axes, and which each pair of places has."""
    moved = np.moveaxis(table, (i, j), (0, 1))
    rows = moved.reshape(moved.shape[0] * moved.shape[1], -1)
    kinds, own = np.unique(rows, axis=0, return_inverse=True)
    return kinds.reshape(-1, *moved.shape[2:]), own.ravel()


class _Rows:
    """Constraints ``low <= row . x <= high`` over a fixed number of variables."""

    def __init__(self, variables: int) -> None:
        self.variables = variables
        self.rows: list[dict[int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, row: Mapping[int, float], low: float, high: float) -> None:
        # Tolerances are absolute: bytes and joules differ by many powers of ten.
        size = max((abs(c) for c in row.values()), default=1.0) or 1.0
        self.rows.append({column: c / size for column, c in row.items()})
        self.low.append(low / size)
        self.high.append(high / size)

    def solve(
        self, cost: Mapping[int, float], binary: int, bounded: int, gap: float
    ) -> Floats | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix

        objective = np.zeros(self.variables)
        objective[list(cost)] = list(cost.values())
        places = [(r, column) for r, row in enumerate(self.rows) for column in row]
        values = [c for row in self.rows for c in row.values()]
        matrix = csr_matrix((values, tuple(zip(*places, strict=True))), self._shape)
        high = np.where(np.arange(self.variables) < bounded, 1.0, np.inf)
        solved = milp(
            objective / (np.abs(objective).max() or 1.0),
            integrality=(np.arange(self.variables) < binary).astype(int),
            bounds=Bounds(np.where(high < np.inf, 0.0, -np.inf), high),
            constraints=LinearConstraint(matrix, self.low, self.high),
            options={"mip_rel_gap": gap},
        )
        return None if solved.x is None else np.asarray(solved.x)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.rows), self.variables


def _holds(limit: Limit, choices: Mapping[str, int]) -> bool:
    # To the last bit of a sum of floats; counts are whole numbers and hold exactly.
    return value(limit.terms, choices) <= limit.bound + 1e-12 * abs(limit.bound)
