"""Latency from a profile: exact for one network, an expectation over all, checked on loading."""

import json
import logging
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.cost.expected import expected
from nas.cost.trace import trace
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.calibrate import Correction, MeasuredNetwork, Spill
from nas.latency.cost import Latency
from nas.latency.models import UNIT_FITS, UnitTime, fit_units
from nas.latency.profile import About, Profile, fit_profile
from nas.latency.units import features, indices, units_of
from nas.selection import largest_of, least_of
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build
from tests.contracts.strategies import archs, probability, supernets

ABOUT = About(
    "Net", ((1, 8, 6, 6),), "board", "", "external", "cpu", 1, "float32", 1, {}, "2026-01-01"
)


class Net(nn.Module):
    """Two choices around a fixed layer; options from cheap to dear."""

    name = "Net"
    input_shape = (8, 6, 6)

    def __init__(self):
        super().__init__()
        names = ["identity", "sep_k3", "conv_k3", "conv_k5"]
        self.first = ChoiceBlock({name: build(name, 8, 8) for name in names})
        self.middle = nn.Conv2d(8, 4, 3, bias=False)
        self.last = ChoiceBlock([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def profile_of(net, correction=None, model=None, leave_out=0):
    """A profile with times that grow with the work, no two alike."""
    units = units_of(net, net.input_shape).to_measure
    times = {}
    for index, (key, unit) in enumerate(units.items()):
        described = {name: float(value) for name, value in features(unit.layers).items()}
        work = sum(v for name, v in described.items() if name.endswith("macs"))
        times[key] = UnitTime(1e-6 * (3 + index / 100) + 1e-9 * work, described)
    kept = dict(list(times.items())[: len(times) - leave_out])
    regression = None if model is None else fit_units(times, kinds=(model,)).model
    return Profile(ABOUT, kept, (), regression, correction or Correction())


CORRECTIONS = [
    Correction(),
    Correction(0.8, -2e-7, 5e-6),
    Correction(1.3, 1e-7, -1e-6),
    Correction(0.9, 0, 1e-6, spill=Spill(700, 1e-8)),
]


def corrected(correction, net):
    """With a factor of its own for every unit."""
    keys = units_of(net, net.input_shape).to_measure
    return replace(correction, factors={key: 1 + i / 10 for i, key in enumerate(keys)})


@settings(max_examples=15)
@given(supernets(), st.sampled_from(CORRECTIONS[1:]))
def test_one_network_costs_the_corrected_sum_of_its_units_and_their_mean_is_the_expectation(
    net, correction
):
    correction = corrected(correction, net)
    profile = profile_of(net, correction)
    cost = expected(net, Latency(profile), trace(net, net.input_shape))
    units, own, mean = units_of(net, net.input_shape), dict(decisions(net)), 0.0
    for arch in archs(net):
        keys = units.of(indices(own, arch.choices))
        by_hand = correction(dict(Counter(keys)), profile.units) if keys else correction.offset
        assert cost.of(arch.choices) == pytest.approx(by_hand, rel=1e-12)
        mean += probability(net, arch) * by_hand
    assert cost().item() == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_budgets_find_the_least_and_the_largest_network(correction):
    net = Net()
    cost = expected(net, Latency(profile_of(net, correction)), net.input_shape)
    every = [cost.of(arch.choices) for arch in archs(net)]
    assert least_of(cost) == pytest.approx(min(every), rel=1e-9)
    assert largest_of(cost) == pytest.approx(max(every), rel=1e-9)


@pytest.mark.parametrize("kind", ["table", *UNIT_FITS])
def test_the_penalty_alone_moves_probability_to_the_quicker_option(kind):
    net = Net()
    table = kind == "table"
    profile = profile_of(net, model=None if table else kind, leave_out=0 if table else 99)
    cost = expected(net, Latency(profile, fallback=not table), net.input_shape)
    cost().backward()
    for _, decision in decisions(net):
        gradient = decision.alpha.grad
        assert gradient is not None
        assert gradient.abs().max() > 0
        # Where the expectation rises with an option, a step against it lowers that option.
        assert gradient[0] < 0 < gradient[-1]


def test_a_profile_that_lacks_units_lists_them_or_predicts_them(caplog):
    net = Net()
    whole, part = profile_of(net), profile_of(net, model="linear", leave_out=2)
    missing = list(whole.units)[-2:]
    with pytest.raises(UserError, match="lacks 2 of the 6 units") as error:
        expected(net, Latency(part), net.input_shape)
    assert all(key in str(error.value) for key in missing)
    with caplog.at_level(logging.WARNING, "nas"):
        cost = expected(net, Latency(part, fallback=True), net.input_shape)
    assert "2 of 6 units" in caplog.text
    arch = next(archs(net))
    whole_cost = expected(net, Latency(whole), net.input_shape)
    assert cost.of(arch.choices) == pytest.approx(whole_cost.of(arch.choices), rel=0.2)


def test_inputs_of_another_size_lack_every_unit():
    net = Net()
    with pytest.raises(UserError, match=r"space 'Net' with inputs \[\[1, 8, 6, 6\]\] and lacks 6"):
        expected(net, Latency(profile_of(net)), (8, 12, 12))


@cache
def fitted():
    """A profile with everything in it, of networks that take what their units do, and some more."""
    net = Net()
    units = profile_of(net).units
    found, own = units_of(net, net.input_shape), dict(decisions(net))
    noise = np.random.default_rng(0)
    networks = []
    for index, arch in enumerate(archs(net)):
        keys = found.of(indices(own, arch.choices))
        seconds = 0.7 * sum(units[k].seconds for k in keys) + 4e-6
        role = "calibration" if index % 2 else "validation"
        seconds *= noise.normal(1, 1e-3)
        networks.append(MeasuredNetwork(dict(arch.choices), seconds, dict(Counter(keys)), role))
    return fit_profile(ABOUT, units, networks, {"trusted": True})


def test_calibrated_networks_correct_the_sum_and_the_others_say_how_well():
    profile = fitted()
    right = profile.validation
    assert right.networks.mape < 0.01 < 0.1 < right.sum_of_units.mape
    assert right.networks.count == 4
    assert profile.correction.scale == pytest.approx(0.7, rel=0.1)
    cost = expected(Net(), Latency(profile), Net.input_shape)
    for network in profile.networks:
        assert cost.of(network.choices) == pytest.approx(network.predicted, rel=1e-9)


def test_a_profile_survives_its_file(tmp_path):
    profile = fitted()
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert json.loads((tmp_path / "p.json").read_text())["unit"] == "s"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 3}, "schema 3"),
        ({"unit": "ms"}, "unit='ms'"),
        ({"units": []}, r"units=\[\]: .*object"),
        (
            {"units": {"k": {"seconds": -1, "features": {}}}},
            r"'k'.*'seconds'\]=-1: .*above|greater",
        ),
        ({"units": {"k": {"seconds": "1", "features": {}}}}, r"'k'.*'seconds'\]='1': .*number"),
        (
            {"units": {"k": {"seconds": 1, "features": {"x": -1}}}},
            r"'k'.*'x'\]=-1: .*or equal to 0",
        ),
        ({"networks": [{"choices": {}, "role": "test", "seconds": 1}]}, r"networks\[0\]\['role'\]"),
        ({"networks": [{"choices": {}, "role": "validation"}]}, r"networks\[0\]\['seconds'\]"),
        ({"batch": 0}, r"'batch'\]=0"),
        ({"dtype": "int4"}, "int4"),
        ({"inputs": [[1, -8]]}, "inputs.*-8"),
        ({"regression": {"kind": "forest"}}, "forest"),
        ({"correction": {"scale": 0, "per_unit": 0, "offset": 0, "transitions": {}}}, "scale"),
        ({"device": None}, "device"),
        ({"validation": None}, "validation"),
    ],
)
def test_a_damaged_profile_says_what_is_wrong(tmp_path, change, said):
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**fitted().to_json(), **change}))
    with pytest.raises(UserError, match=said):
        Latency(path)


def test_a_file_of_version_0_1_is_read_and_its_regression_fitted_anew(tmp_path):
    profile = fitted()
    raw = {**profile.to_json(), "schema": 1, "quiet": {"trusted": False}}
    raw["regression"] = {"kind": "linear", "names": [], "rates": [], "intercept": 1e-6}
    del raw["measurement_quality"]
    for network in raw["networks"]:
        del network["uses"]
    (tmp_path / "p.json").write_text(json.dumps(raw))
    old = Profile.load(tmp_path / "p.json")
    assert (old.units, old.correction, old.validation) == (
        profile.units,
        profile.correction,
        profile.validation,
    )
    assert old.measurement_quality == {"trusted": False}
    assert old.regression is None
    assert old.unit_model == profile.unit_model == profile.regression
    assert Latency(tmp_path / "p.json").profile.device == "board"


def test_no_profile_no_file_no_json_and_another_device(tmp_path):
    with pytest.raises(UserError, match="profile=FILE"):
        Latency()
    with pytest.raises(UserError, match=r"none\.json"):
        Latency(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Latency(tmp_path / "text.json")
    with pytest.raises(UserError, match="on device 'board', and the device chosen is 'other'"):
        Latency(profile_of(Net()), expect_device="other")
    assert Latency(profile_of(Net()), expect_device="board").name == "latency"


def test_every_combination_of_options_is_one_term_at_most():
    net = Net()
    terms = expected(net, Latency(profile_of(net)), net.input_shape).constraints[0]
    sizes = [len(d.options) for _, d in decisions(net)]
    assert len(terms) <= 1 + sum(sizes) < len(list(product(*map(range, sizes))))
    assert torch.isfinite(torch.tensor(list(terms.values()))).all()
