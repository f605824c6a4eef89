"""Quantities as they are printed, and budgets as they are typed."""

import io

import pytest
from rich.console import Console
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.cost.analytic import Params, Size
from nas.cost.device import Device, Roofline
from nas.cost.expected import ExpectedCost
from nas.errors import UserError
from nas.quantities import amount, parse_budget
from nas.report.terminal import announce, describe
from nas.result import cost_fields
from nas.supernet.choice import ChoiceBlock


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00193, "s", "1.93 ms"),
        (0.0009999, "s", "1.00 ms"),
        (0.000999, "s", "999 µs"),
        (1e-12, "s", "1.00 ps"),
        (3e-14, "J", "0.0300 pJ"),
        (1e-9, "J", "1.00 nJ"),
        (1.5, "s", "1.50 s"),
        (5400.0, "s", "5400 s"),
        (5400.0, "J", "5.40 kJ"),
        (-0.02, "s", "-20.0 ms"),
        (0, "s", "0 s"),
        (64_000, "B", "64.0 kB"),
        (999.6, "B", "1000 B"),
        (1000, "B", "1.00 kB"),
        (7, "B", "7 B"),
        (2_345_678_901, "B", "2.35 GB"),
        (22234, "parameters", "22,234"),
        (22234.0, "parameters", "22,234"),
        (1234.5, "MAC", "1,234"),
        (12.345, "MAC", "12.3"),
        (0.00193, "", "0.00193"),
        (0, "MAC", "0"),
        (float("nan"), "s", "nan"),
        (float("inf"), "MAC", "inf"),
    ],
)
def test_amount(value, unit, text):
    assert amount(value, unit) == text


def net() -> nn.Module:
    return nn.Sequential(ChoiceBlock([nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=4)]))


def test_describe_prints_costs_in_their_units():
    device = Device("toy", "int8", {"int8": 1e9}, 1e6, 10**6)
    console = Console(width=120, record=True, file=io.StringIO())
    describe(net(), (4, 5, 5), {"roofline": Roofline(device), "size": Size()}, console)
    text = console.export_text()
    for words in ("36.0 µs", "144 µs", "160 B", "592 B", "1,296", "MAC"):
        assert words in text


def test_a_result_keeps_small_costs_and_their_units(capsys, tmp_path):
    device = Device("toy", "int8", {"int8": 1e9}, 1e9, 10**6)
    costs = {"params": Params(), "roofline": Roofline(device)}
    model = net()
    expected = {name: ExpectedCost(model, cost, (4, 5, 5)) for name, cost in costs.items()}
    option = model[0].options[1]
    found = cost_fields(expected, {}, Arch("toy", {"0": option}))
    assert found["costs"] == {"params": 40, "roofline": pytest.approx(2 * 324 / 1e9)}
    assert found["largest"]["roofline"] == pytest.approx(2 * 1296 / 1e9)
    assert found["units"] == {"params": "parameters", "roofline": "s"}
    assert isinstance(found["costs"]["params"], int)
    announce(RunDir(tmp_path), found | RESULT)
    assert "params   40 = 27.0% of the largest" in (text := capsys.readouterr().out)
    assert "roofline 648 ns = 25.0% of the largest" in text
    announce(RunDir(tmp_path), {k: v for k, v in found.items() if k != "units"} | RESULT)
    assert "params   40 = 27.0%" in capsys.readouterr().out  # written before units were


RESULT = {
    "space": "toy",
    "data": "none",
    "arch": {},
    "metrics": {"test_acc": 0.5, "val_acc": 0.5},
    "seconds": {"search": 1.0, "finetune": 1.0},
}


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
