"""Exact answers about all architectures of a space, by integer programming (scipy's HiGHS)."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.cost.polynomial import Choice, Polynomial, Term

Floats = NDArray[np.float64]


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

    Args:
        options: decision name -> number of its options.
    """

    options: Mapping[str, int]
    _columns: dict[Term, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        for name, count in self.options.items():
            for k in range(count):
                self._columns[frozenset({(name, k)})] = len(self._columns)
        self._single = len(self._columns)

    def minimise(
        self, objective: Sequence[Polynomial], limits: Sequence[Limit] = ()
    ) -> Optimum | None:
        """The architecture of the least maximum of `objective` inside all limits, exactly.

        None where no architecture is inside.
        """
        if not self.options:
            inside = all(_holds(limit, {}) for limit in limits)
            return Optimum({}, worst(objective, {})) if inside else None
        self._add_products([*objective, *(limit.terms for limit in limits)])
        rows = _Rows(len(self._columns) + 1)  # the last variable is the maximum
        self._structure(rows)
        for limit in limits:
            row, constant = self._row(limit.terms)
            rows.add(row, -np.inf, limit.bound - constant)
        cost = self._objective(objective, rows)
        while True:
            solved = rows.solve(cost, self._single, len(self._columns))
            if solved is None:
                return None
            choices = self._choices(solved)
            if all(_holds(limit, choices) for limit in limits):
                return Optimum(choices, worst(objective, choices))
            # HiGHS takes a limit to hold to a part in a million; the user takes it to hold.
            rows.add(self._indicator(choices), -np.inf, len(choices) - 1)

    def maximise(
        self, objective: Sequence[Polynomial], limits: Sequence[Limit] = ()
    ) -> Optimum | None:
        """The architecture of the largest maximum of `objective` inside all limits, exactly."""
        best: Optimum | None = None
        for terms in sorted(objective, key=self._at_most, reverse=True):
            if best is not None and self._at_most(terms) <= best.value:
                break
            found = self.minimise([{m: -c for m, c in terms.items()}], limits)
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

    def _add_products(self, polynomials: Iterable[Polynomial]) -> None:
        for terms in polynomials:
            for term in sorted(terms.keys() - self._columns.keys(), key=sorted):
                if term:
                    self._columns[term] = len(self._columns)

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
            every = len(products) == prod(self.options[name] for name in names - {choice[0]})
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

    def solve(self, cost: Mapping[int, float], binary: int, bounded: int) -> Floats | None:
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
            options={"mip_rel_gap": 0.0},
        )
        return None if solved.x is None else np.asarray(solved.x)

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.rows), self.variables


def _holds(limit: Limit, choices: Mapping[str, int]) -> bool:
    # To the last bit of a sum of floats; counts are whole numbers and hold exactly.
    return value(limit.terms, choices) <= limit.bound + 1e-12 * abs(limit.bound)
