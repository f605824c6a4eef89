"""Polynomials in thetas, against their values at every one-hot theta."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.cost.memory import _probabilities, _undominated
from nas.cost.polynomial import Polynomials, consistent, probability, reduced, upper_bound

OPTIONS = {"a": 2, "b": 3, "c": 1}
CHOICES = [(name, k) for name, count in OPTIONS.items() for k in range(count)]
ARCHS = [frozenset(zip(OPTIONS, ks, strict=True)) for ks in product(*map(range, OPTIONS.values()))]

conditions = st.frozensets(st.sampled_from(CHOICES), max_size=3).filter(consistent)
polynomials = st.dictionaries(conditions, st.integers(-3, 3).filter(bool).map(float), max_size=8)
alternatives = st.frozensets(conditions, max_size=5)


def at(terms, arch) -> float:
    return sum(value for term, value in terms.items() if term <= arch)


@given(polynomials)
def test_reducing_keeps_every_value_and_adds_no_term(terms):
    short = reduced(terms, OPTIONS)
    assert all(at(short, arch) == at(terms, arch) for arch in ARCHS)
    assert len(short) <= len(terms)


def test_what_all_options_share_leaves_the_decision():
    terms = {frozenset({("b", k)}): 3.0 + k for k in range(3)}
    rest = {frozenset({("b", 1)}): 1.0, frozenset({("b", 2)}): 2.0}
    assert reduced(terms, OPTIONS) == {frozenset(): 3.0, **rest}


@given(polynomials)
def test_no_value_is_above_the_upper_bound(terms):
    largest = max(at(terms, arch) for arch in ARCHS)
    bound = upper_bound(terms, OPTIONS)
    assert bound >= largest
    if all(len(term) < 2 for term in terms):
        assert bound == largest


@given(st.lists(polynomials, min_size=1, max_size=4))
def test_what_is_dominated_can_be_left_out(rows):
    kept = _undominated(rows, OPTIONS)
    for arch in ARCHS:
        assert max(at(row, arch) for row in kept) == max(at(row, arch) for row in rows)


@given(alternatives)
def test_both_ways_to_the_probability_of_alternatives_agree_with_counting(active_if):
    for terms in (probability(active_if), _probabilities(OPTIONS)(active_if)):
        for arch in ARCHS:
            assert at(terms, arch) == any(conjunction <= arch for conjunction in active_if)


@given(st.lists(polynomials, min_size=1, max_size=4))
def test_rows_are_evaluated_for_one_theta_and_for_many(rows):
    compiled = Polynomials(rows, OPTIONS)
    one_hot = {
        name: torch.eye(count).double()[[dict(arch)[name] for arch in ARCHS]]
        for name, count in OPTIONS.items()
    }
    right = torch.tensor([[at(row, arch) for row in rows] for arch in ARCHS]).double()
    assert torch.equal(compiled(one_hot), right)
    first = {name: theta[0] for name, theta in one_hot.items()}
    assert torch.equal(compiled(first), right[0])


def test_between_corners_a_polynomial_is_the_mean_of_its_values():
    row = {frozenset({("a", 0), ("b", 1)}): 6.0, frozenset({("b", 2)}): 3.0, frozenset(): 1.0}
    even = {name: torch.full((count,), 1 / count) for name, count in OPTIONS.items()}
    mean = sum(at(row, arch) for arch in ARCHS) / len(ARCHS)
    assert Polynomials([row], OPTIONS)(even)[0].item() == pytest.approx(mean)
