"""The least and the largest cost an architecture of a space can have, exactly."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_matrix

from nas.cost.expected import Monomial


def least(terms: Mapping[Monomial, float], options: Mapping[str, int]) -> float:
    """The smallest value of ``sum_m c_m prod_{(d, k) in m} x_dk`` over one option per decision.

    Without nested choices the decisions are independent and each takes its cheapest option. A
    product of choices becomes a variable of an integer programme, solved exactly (scipy's HiGHS).
    """
    constant = terms.get(frozenset(), 0.0)
    products = {m: c for m, c in terms.items() if len(m) > 1}
    single = {
        name: np.array([terms.get(frozenset({(name, k)}), 0.0) for k in range(count)])
        for name, count in options.items()
    }
    if not products:
        return constant + float(sum(values.min() for values in single.values()))
    return constant + _programme(single, products)


def largest(terms: Mapping[Monomial, float], options: Mapping[str, int]) -> float:
    """The largest value, see `least`."""
    return -least({monomial: -value for monomial, value in terms.items()}, options)


def _programme(
    single: Mapping[str, NDArray[np.float64]], products: Mapping[Monomial, float]
) -> float:
    starts = dict(zip(single, np.cumsum([0, *map(len, single.values())]), strict=False))
    choices = sum(map(len, single.values()))
    objective = np.concatenate([*single.values(), list(products.values())])
    rows = len(single) + sum(len(monomial) + 1 for monomial in products)
    matrix = lil_matrix((rows, len(objective)))
    low, high = np.full(rows, -np.inf), np.zeros(rows)
    for row, (name, values) in enumerate(single.items()):
        matrix[row, starts[name] : starts[name] + len(values)] = 1
        low[row] = high[row] = 1
    row = len(single)
    for column, monomial in enumerate(products, start=choices):
        # y = prod x for binary x:  y <= x_i  and  y >= sum x - (n - 1)
        last = row + len(monomial)
        for name, option in monomial:
            matrix[row, column], matrix[row, starts[name] + option] = 1, -1
            matrix[last, starts[name] + option] = 1
            row += 1
        matrix[last, column], high[last] = -1, len(monomial) - 1
        row += 1
    # The solver's tolerances are absolute: costs in seconds would all be zero to it.
    scale = np.abs(objective).max()
    solved = milp(
        objective / scale if scale > 0 else objective,
        integrality=np.ones(len(objective)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix.tocsr(), low, high),
        options={"mip_rel_gap": 0},
    )
    taken = np.round(solved.x)
    return float(objective @ taken)
