"""The least and the largest cost of a space against trying all architectures."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from nas.cost.expected import Monomial
from nas.cost.extremes import largest, least

OPTIONS = {"a": 2, "b": 3, "c": 2, "d": 3}

gates = st.dictionaries(
    st.sampled_from(sorted(OPTIONS)), st.integers(0, 2), min_size=0, max_size=3
).filter(lambda g: all(option < OPTIONS[name] for name, option in g.items()))
terms = st.dictionaries(
    gates.map(lambda g: frozenset(g.items())), st.integers(-9, 30).map(float), max_size=12
)


@given(terms, st.sampled_from([1.0, 1e-9, 1e9]))
def test_equal_to_enumeration(terms: dict[Monomial, float], unit: float) -> None:
    """Also of costs in joules, far below a solver's usual tolerances."""
    terms, values = {monomial: value * unit for monomial, value in terms.items()}, []
    for picked in product(*(range(count) for count in OPTIONS.values())):
        arch = set(zip(OPTIONS, picked, strict=True))
        values.append(sum(value for monomial, value in terms.items() if monomial <= arch))
    assert abs(least(terms, OPTIONS) - min(values)) < 1e-6 * unit
    assert abs(largest(terms, OPTIONS) - max(values)) < 1e-6 * unit
