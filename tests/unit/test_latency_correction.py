"""Figures of accuracy, and the correction from sums over units to whole networks."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.artifacts.reading import decode
from nas.errors import UserError
from nas.latency.calibrate import Correction, MeasuredNetwork, Spill, calibrate
from nas.latency.models import UnitTime
from nas.latency.predict import accuracy

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
    found = accuracy(predicted, measured)
    assert found.mape == pytest.approx((0.1 + 0.25 + 0 + 0.4) / 4)
    assert found.within_10 == 0.5  # the edge belongs to it
    assert found.within_5 == 0.25
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert found.spearman == pytest.approx(0.8)
    assert accuracy([1.0, 1.0], [1.0, 2.0]).kendall == 0


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


ALONE = {name: 1e-4 * (1 + index) for index, name in enumerate("abcdefgh")}

WEIGHTS = {name: 1e4 * (1 + 3 * index % 7) for index, name in enumerate("abcdefgh")}


UNITS = {name: UnitTime(ALONE[name], {"dense_weights": WEIGHTS[name]}) for name in ALONE}


def network(uses, seconds):
    return MeasuredNetwork({}, seconds, uses)


def drawn_networks(true, n=10, seed=0, noise=0.0):
    draw = np.random.default_rng(seed)
    networks = []
    for _ in range(n):
        uses = {name: int(draw.integers(0, 4)) for name in ALONE}
        uses["a"] += 1
        uses = {name: count for name, count in uses.items() if count}
        exact = true(uses, UNITS)
        networks.append(network(uses, exact * np.exp(noise * draw.normal())))
    return networks


def predictions(correction, networks):
    return [correction(n.uses, UNITS) for n in networks]


def mape(predicted, measured):
    return accuracy(predicted, measured).mape


def weights(network):
    return sum(count * WEIGHTS[name] for name, count in network.uses.items())


def test_exact_sums_need_no_correction():
    found = calibrate(drawn_networks(Correction()), UNITS)
    assert found.chosen == "nothing"
    assert found.correction == Correction()


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_not_corrected_by_much(seed):
    found = calibrate(drawn_networks(Correction(), noise=0.03, seed=seed), UNITS)
    new = drawn_networks(Correction(), n=200, seed=99)
    predicted = predictions(found.correction, new)
    assert mape(predicted, [n.seconds for n in new]) < 0.03


@pytest.mark.parametrize(
    ("true", "chosen"),
    [
        (Correction(0.8), "scale"),
        (Correction(0.8, offset=3e-4), "scale+offset"),
        (Correction(1.3, per_unit=-2e-5), "scale+per_unit"),
    ],
)
def test_a_known_correction_is_recovered(true, chosen):
    found = calibrate(drawn_networks(true, n=14), UNITS)
    assert found.chosen == chosen
    for name in ("scale", "per_unit", "offset"):
        value, expected = getattr(found.correction, name), getattr(true, name)
        assert value == pytest.approx(expected, rel=0.1, abs=1e-5)
    assert found.errors[chosen] < 0.02 < found.errors["nothing"]


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_units_that_are_slower_or_quicker_in_a_network_are_told_apart(noise):
    true = Correction(1.1, factors={"b": 1.6, "g": 0.7, "h": 0.9})
    found = calibrate(drawn_networks(true, n=20, noise=noise), UNITS)
    new = drawn_networks(true, n=200, seed=99)
    seconds = [n.seconds for n in new]

    assert found.chosen == "factors"
    found_by_scale = Correction(found.correction.scale, found.correction.per_unit)
    error = mape(predictions(found.correction, new), seconds)
    assert error < 0.5 * mape(predictions(found_by_scale, new), seconds)
    assert error < 0.015 + noise / 2
    assert found.correction.factors["b"] > found.correction.factors["c"]
    assert found.correction.factors["g"] < found.correction.factors["c"]


def test_weights_that_the_cache_does_not_hold_are_told_from_slow_units():
    true = Correction(1.1, factors={"b": 1.3, "g": 0.8}, spill=Spill(4.5e5, 1e-8))
    networks = drawn_networks(true, n=20, noise=0.003)
    found = calibrate(networks, UNITS)
    new = drawn_networks(true, n=200, seed=99)
    assert 6 < sum(weights(n) > 4.5e5 for n in networks) < 14
    assert found.chosen == "factors+spill"
    assert mape(predictions(found.correction, new), [n.seconds for n in new]) < 0.02
    assert found.errors["factors"] > 2 * found.errors["factors+spill"]


def test_a_unit_that_no_network_has_keeps_its_time():
    found = calibrate(drawn_networks(Correction(1.1, factors={"b": 1.6, "g": 0.7}), n=20), UNITS)
    scale, per_unit = found.correction.scale, found.correction.per_unit
    assert found.correction.unit("new", 1e-3) == scale * 1e-3 + per_unit


@pytest.mark.parametrize("factor", [10, 0.1])
def test_one_network_measured_at_a_bad_moment_changes_little(factor):
    networks = drawn_networks(Correction(0.8), noise=0.01)
    wrong = network(networks[0].uses, factor * networks[0].seconds)
    found = calibrate([wrong, *networks[1:]], UNITS).correction
    new = drawn_networks(Correction(0.8), n=50, seed=7)
    assert mape(predictions(found, new), [n.seconds for n in new]) < 0.03


def test_a_network_costs_what_its_units_add_and_a_correction_survives_json():
    correction = Correction(1.2, 1e-5, -2e-4, {"a": 1.5, "b": 0.5}, Spill(1e3, 1e-9))
    assert decode(Correction, asdict(correction), "file") == correction
    units = {
        "a": UnitTime(1e-3, {"dense_weights": 300.0}),
        "c": UnitTime(3e-3, {"linear_weights": 300.0}),
    }
    added = 2 * correction.unit("a", 1e-3) + correction.unit("c", 3e-3)
    assert correction({"a": 2, "c": 1}, units) == pytest.approx(correction.offset + added)
    larger = units | {"c": UnitTime(3e-3, {"linear_weights": 2400.0})}
    spilled = correction({"a": 2, "c": 1}, larger)
    assert spilled == pytest.approx(correction.offset + added + 2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": -1.0}, r"scale=-1\.0: .*greater than 0"),
        ({"factors": {"a": "x"}}, r"factors\['a'\]='x': .*number"),
        ({"factors": {"a": 0.0}}, r"factors\['a'\]=0\.0: .*greater than 0"),
        ({"offset": float("nan")}, "offset=nan: .*finite"),
        ({"spill": {"room": 1.0}}, r"spill\['per_weight'\]: .*required"),
    ],
)
def test_a_damaged_correction_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        decode(Correction, asdict(Correction()) | change, "file")


def test_networks_that_say_nothing_are_refused():
    with pytest.raises(UserError, match="at least one"):
        calibrate([], UNITS)
    with pytest.raises(UserError, match="seconds=0"):
        network({"a": 3}, 0.0)
    with pytest.raises(UserError, match="total=0"):
        calibrate([network({}, 1.0)], UNITS)
