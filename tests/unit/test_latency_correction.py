"""Figures of accuracy, and the correction from sums over units to whole networks."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import UserError
from nas.latency.accuracy import accuracy, kendall, mape, spearman, within
from nas.latency.correction import Correction, Network, calibrate

POSITIVE = st.lists(st.floats(0.1, 10), min_size=2, max_size=20)


@given(POSITIVE)
def test_a_perfect_prediction_has_no_error(values):
    figures = accuracy(values, values)
    assert (figures.mape, figures.within_5, figures.within_10) == (0, 1, 1)
    if len(set(values)) > 1:
        assert figures.kendall == pytest.approx(1)
        assert figures.spearman == pytest.approx(1)


def test_figures_of_a_known_case():
    predicted, measured = [1.1, 1.5, 4.0, 3.0], [1.0, 2.0, 4.0, 5.0]
    assert mape(predicted, measured) == pytest.approx((0.1 + 0.25 + 0 + 0.4) / 4)
    assert within(predicted, measured) == 0.5  # the edge belongs to it
    assert within(predicted, measured, 0.05) == 0.25
    assert kendall(predicted, measured) == pytest.approx((5 - 1) / 6)
    assert spearman(predicted, measured) == pytest.approx(0.8)
    assert kendall([1.0, 1.0], [1.0, 2.0]) == 0


@pytest.mark.parametrize(
    ("predicted", "measured", "message"),
    [
        ([1.0], [1.0, 2.0], "as many"),
        ([], [], "at least one"),
        ([1.0], [0.0], "above 0"),
        ([float("nan")], [1.0], "finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(predicted, measured, message):
    with pytest.raises(UserError, match=message):
        accuracy(predicted, measured)


def drawn_networks(true, n=10, seed=0, noise=0.0):
    draw = np.random.default_rng(seed)
    networks = []
    for _ in range(n):
        units = int(draw.integers(4, 12))
        counts = {name: float(draw.integers(0, 4)) for name in ("a>b", "b>a")}
        total = float(draw.uniform(1e-3, 2e-3) + units * 1e-4)
        seconds = float(true(total, units, counts)) * np.exp(noise * draw.normal())
        networks.append(Network(total, units, seconds, counts))
    return networks


def test_exact_sums_need_no_correction():
    found = calibrate(drawn_networks(Correction()))
    assert found.chosen == "nothing"
    assert found.correction == Correction()


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_not_corrected_by_much(seed):
    found = calibrate(drawn_networks(Correction(), noise=0.03, seed=seed))
    new = drawn_networks(Correction(), n=200, seed=99)
    predicted = [found.correction(n.predicted, n.units, n.transitions) for n in new]
    assert mape(predicted, [n.seconds for n in new]) < 0.03


@pytest.mark.parametrize(
    ("true", "chosen"),
    [
        (Correction(0.8), "scale"),
        (Correction(0.8, offset=3e-4), "scale+offset"),
        (Correction(1.3, per_unit=-2e-5), "scale+per_unit"),
        (Correction(1.1, transitions={"a>b": 5e-5, "b>a": -2e-5}), "scale+transitions"),
    ],
)
def test_a_known_correction_is_recovered(true, chosen):
    found = calibrate(drawn_networks(true, n=14))
    assert found.chosen == chosen
    for name in ("scale", "per_unit", "offset"):
        value, expected = getattr(found.correction, name), getattr(true, name)
        assert value == pytest.approx(expected, rel=0.1, abs=1e-5)
    assert found.errors[chosen] < 0.02 < found.errors["nothing"]


@pytest.mark.parametrize("factor", [10, 0.1])
def test_one_network_measured_at_a_bad_moment_changes_little(factor):
    networks = drawn_networks(Correction(0.8), noise=0.01)
    wrong = Network(networks[0].predicted, networks[0].units, factor * networks[0].seconds)
    assert calibrate([wrong, *networks[1:]]).correction.scale == pytest.approx(0.8, rel=0.03)


def test_a_correction_is_differentiable_and_survives_json():
    correction = Correction(1.2, 1e-5, -2e-4, {"a>b": 3e-5})
    assert Correction.from_json(json.loads(json.dumps(correction.to_json()))) == correction
    total = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)
    count = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    correction(total, 5, {"a>b": count, "never seen": 1.0}).backward()
    assert total.grad == pytest.approx(1.2)
    assert count.grad == pytest.approx(3e-5)


def test_a_damaged_correction_is_refused():
    raw = Correction().to_json()
    with pytest.raises(UserError, match="above 0"):
        Correction.from_json(raw | {"scale": -1.0})
    with pytest.raises(UserError, match="transitions"):
        Correction.from_json(raw | {"transitions": {"a>b": "x"}})


def test_networks_that_say_nothing_are_refused():
    with pytest.raises(UserError, match="at least one"):
        calibrate([])
    with pytest.raises(UserError, match="seconds=0"):
        Network(1.0, 3, 0.0)
