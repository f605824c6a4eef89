"""Budgets in human units."""

import pytest

from nas.errors import UserError
from nas.quantities import parse_budget


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        (50_000, "parameters", 50_000),
        ("50k", "parameters", 50_000),
        ("50K", "parameters", 50_000),
        ("1.5M", "MAC", 1_500_000),
        ("5MMAC", "MAC", 5_000_000),
        ("5e6", "MAC", 5e6),
        ("64kB", "B", 64_000),
        ("64KiB", "B", 65_536),
        ("64 kB", "B", 64_000),
        ("64k", "B", 64_000),
        ("2MiB", "B", 2 * 1024**2),
        ("100bytes", "B", 100),
        ("3ms", "s", 0.003),
        ("250us", "s", 250e-6),
        ("0.003", "s", 0.003),
        ("2mJ", "J", 0.002),
        ("60%", "parameters", 120),
        ("12.5 %", "B", 25),
    ],
)
def test_amounts(text, unit, expected):
    assert parse_budget("x", text, unit, largest=200) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("50q", "parameters"),
        ("64kB", "parameters"),
        ("3ms", "B"),
        ("3MHz", "s"),
        ("many", "B"),
        ("", "B"),
        ("5%k", "B"),
        ("1,5M", "MAC"),
        ("nan", "B"),
        (None, "B"),
        ([1], "B"),
    ],
)
def test_other_units_are_refused_with_examples(text, unit):
    with pytest.raises(UserError, match=r"budget\.size=.*no amount: write .*60%"):
        parse_budget("size", text, unit, 200)


@pytest.mark.parametrize("text", ["-1", -1, 0, "0%", "-5%", "1e999"])
def test_a_budget_is_above_nothing(text):
    with pytest.raises(UserError, match=r"budget\.params=.*above 0"):
        parse_budget("params", text, "parameters", 200)
