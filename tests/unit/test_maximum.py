"""The expected maximum against the mean over every choice of options."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.cost import polynomial
from nas.cost.polynomial import ExpectedMaximum

OPTIONS = {"a": 2, "b": 3, "c": 2, "d": 1}
PAIRS = [(name, k) for name, count in OPTIONS.items() for k in range(count)]
CHOICES = [
    dict(zip(OPTIONS, ks, strict=True)) for ks in product(*(range(k) for k in OPTIONS.values()))
]
term = st.frozensets(st.sampled_from(PAIRS), max_size=2).filter(
    lambda term: len({name for name, _ in term}) == len(term)
)
polynomials = st.dictionaries(term, st.integers(1, 9).map(float), max_size=5)
several = st.lists(polynomials, min_size=1, max_size=4)


def largest(rows, choice) -> float:
    taken = set(choice.items())
    return max(sum(value for term, value in row.items() if term <= taken) for row in rows)


def one_hot(choice) -> dict[str, torch.Tensor]:
    return {name: torch.eye(count).double()[choice[name]] for name, count in OPTIONS.items()}


def drawn(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, generator=generator, dtype=torch.float64).softmax(-1)
        for name, count in OPTIONS.items()
    }


@given(several, st.integers(0, 99))
def test_it_is_the_mean_of_the_maximum(rows, seed):
    thetas = drawn(seed)
    mean = sum(
        math.prod(float(thetas[name][k]) for name, k in choice.items()) * largest(rows, choice)
        for choice in CHOICES
    )
    assert ExpectedMaximum(rows, OPTIONS)(thetas).item() == pytest.approx(mean)


@settings(max_examples=50)
@given(several, st.sampled_from([1, 2, 4, 6]))
def test_at_corners_it_is_exact_however_small_tables_must_be(rows, table):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(polynomial, "_TABLE", table)
        expected = ExpectedMaximum(rows, OPTIONS)
    for choice in CHOICES:
        assert expected(one_hot(choice)).item() == largest(rows, choice)


@settings(max_examples=25)
@given(several, st.integers(0, 99))
def test_its_gradient_is_that_of_its_value(rows, seed):
    expected, thetas = ExpectedMaximum(rows, OPTIONS), drawn(seed)

    def value(*values):
        return expected(dict(zip(thetas, values, strict=True)))

    assert torch.autograd.gradcheck(value, [t.requires_grad_() for t in thetas.values()])


def test_what_cannot_be_one_table_is_taken_for_independent(monkeypatch):
    monkeypatch.setattr(polynomial, "_TABLE", 6)
    rows = [{frozenset({("a", 0)}): 4.0, frozenset({("b", 0)}): 2.0}]
    rows += [{frozenset({("a", 0)}): 4.0, frozenset({("c", 0)}): 2.0}]
    even = {name: torch.full((count,), 1 / count) for name, count in OPTIONS.items()}
    value = ExpectedMaximum(rows, OPTIONS)(even).item()
    mean = sum(largest(rows, choice) for choice in CHOICES) / len(CHOICES)
    assert mean < value < 6


def test_without_decisions_it_is_the_largest_constant():
    assert ExpectedMaximum([{frozenset(): 3.0}, {frozenset(): 5.0}], {})({}).item() == 5
