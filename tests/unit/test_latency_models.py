"""Latency models of one unit: features, fits, the choice among them."""

from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.artifacts.reading import decode
from nas.cost.analytic import MACs
from nas.cost.layer import LayerSpec
from nas.cost.trace import trace
from nas.errors import UserError
from nas.latency.models import UNIT_FITS, UnitModel, UnitTime, fit_units
from nas.latency.predict import fit_mlp, fit_nonnegative, left_out
from nas.latency.units import KINDS, NAMES, features
from nas.supernet.elastic_ops import build_op as build

RATES = {"dense_macs": 2e-10, "depthwise_macs": 9e-10, "dense_calls": 3e-6, "linear_weights": 1e-9}


def conv(channels=8, kernel=3, groups=1, size=16, out=None):
    return LayerSpec(
        "conv", "", channels, out or channels, groups, (kernel, kernel), (size,) * 2, (size,) * 2
    )


def drawn_units(n=60, seed=0, noise=0.0):
    """Units of convolutions whose latency is exactly linear in their features, but for noise."""
    draw = np.random.default_rng(seed)
    units = {}
    for i in range(n):
        channels, size = int(draw.integers(2, 65)), int(draw.integers(2, 33))
        kernel = int(draw.choice([1, 3, 5]))
        layers = [conv(channels, kernel, size=size)]
        if i % 2:
            layers.append(conv(channels, kernel, groups=channels, size=size))
        if i % 3 == 0:
            layers.append(LayerSpec("linear", "", channels, int(draw.integers(1, 200))))
        found = features(layers)
        seconds = 5e-6 + sum(rate * found[name] for name, rate in RATES.items())
        units[f"unit{i}"] = UnitTime(seconds * np.exp(noise * draw.normal()), found)
    return units


def fitted(kind, units):
    return fit_units(units, kinds=(kind,), folds=2).model


@cache
def exact(kind):
    """Fitted where nothing is noisy."""
    return fitted(kind, drawn_units())


@cache
def noisy():
    return fitted("linear", drawn_units(20, noise=0.3))


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (conv(), "dense"),
        (conv(channels=1), "dense"),
        (conv(kernel=1), "pointwise"),
        (conv(groups=8), "depthwise"),
        (conv(groups=8, out=16), "depthwise"),
        (conv(groups=2), "grouped"),
        (LayerSpec("linear", "", 3, 4), "linear"),
        (LayerSpec("matmul", "", 3, 4, batch=2, out_size=(5,)), "other"),
        (replace(conv(), kind="conv_transpose"), "other"),
    ],
)
def test_each_call_counts_once_for_its_kind(layer, kind):
    found = features([layer])
    assert [k for k in KINDS if found[f"{k}_calls"]] == [kind]
    assert found[f"{kind}_macs"] == MACs()(layer) > 0


@pytest.mark.parametrize("name", ["conv_k3", "sep_k5", "mb_k3_e6_se", "grp_k3_g4", "identity"])
def test_features_of_an_op_are_its_counts(name):
    op = build(name, 8, 8)
    layers = [layer.spec for layer in trace(op, (8, 10, 10)).layers]
    found = features(layers)
    assert tuple(found) == NAMES
    assert min(found.values()) >= 0
    assert sum(found[f"{kind}_macs"] for kind in KINDS) == sum(MACs()(spec) for spec in layers)
    stored = sum(p.numel() for p in op.parameters() if p.ndim > 1)
    assert sum(found[f"{kind}_weights"] for kind in KINDS) == stored


def test_a_linear_latency_is_recovered():
    for unit in drawn_units(seed=1).values():
        assert exact("linear").predict(unit.features) == pytest.approx(unit.seconds, rel=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("linear", 0.02), ("mlp", 0.1), ("power", 0.1)])
def test_unseen_units_are_predicted_from_noisy_measurements(kind, limit):
    model = fitted(kind, drawn_units(120, noise=0.05))
    unseen = drawn_units(40, seed=1).values()
    assert np.mean([abs(model.predict(u.features) / u.seconds - 1) for u in unseen]) < limit


@given(st.data())
def test_more_work_never_costs_less_in_the_linear_model(data):
    described = data.draw(st.sampled_from(list(drawn_units(20).values()))).features
    name = data.draw(st.sampled_from(NAMES))
    more = {**described, name: described[name] + data.draw(st.floats(0, 1e9))}
    assert noisy().predict(more) >= noisy().predict(described) >= 0


@pytest.mark.parametrize("factor", [0.01, 100])
def test_one_wrong_row_moves_the_linear_fit_by_little(factor):
    draw = np.random.default_rng(0)
    x = draw.uniform(1, 100, (60, 2))
    y = 1e-3 + x @ np.array([1e-4, 3e-4])
    y[7] *= factor
    right = np.arange(60) != 7
    error = np.abs(fit_nonnegative(x, y)(x[right]) / y[right] - 1)
    assert error.mean() < 0.01


@pytest.mark.parametrize("kind", UNIT_FITS)
def test_a_model_survives_json(kind):
    model = exact(kind)
    again = decode(UnitModel, asdict(model), "file")
    assert again == model
    for unit in drawn_units().values():
        assert again.predict(unit.features) == model.predict(unit.features)


def test_the_stored_numbers_predict_what_the_networks_of_scikit_learn_do(monkeypatch):
    from nas.latency import predict

    made = []
    members = predict._members
    monkeypatch.setattr(predict, "_members", lambda *a: made.extend(members(*a)) or made)
    draw = np.random.default_rng(0)
    x = draw.uniform(1, 100, (40, 3))
    y = np.prod(x, axis=1) ** 0.4 * 1e-5
    model = fit_mlp(x, y)
    logs = np.log(y / fit_nonnegative(x, y)(x))
    scaled = (x - x.mean(0)) / x.std(0)
    factor = np.exp(np.mean([net.predict(scaled) for net in made], axis=0) * logs.std())
    expected = fit_nonnegative(x, y)(x) * factor
    assert model(x) == pytest.approx(expected, rel=1e-9)


def changed(**change):
    raw = asdict(exact("linear"))
    for key, value in change.items():
        (raw if key in raw else raw["predictor"])[key] = value
    return raw


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (changed(kind="magic"), "kind='magic': .*'linear'"),
        (changed(weights=[1.0]), "1 weights, and there must be [0-9]+"),
        (changed(weights="x"), r"'weights'\]='x': .*array"),
        (changed(intercept=None), r"'intercept'\]=None: .*number"),
        (changed(intercept=True), r"'intercept'\]=True: .*number"),
        (changed(intercept=float("nan")), r"'intercept'\]=nan: .*finite"),
        (changed(names=[1]), "names.*=1: .*string"),
        (changed(net={"into": [], "bias": [], "out": [], "shift": 0.0, "logs": True}), "sizes"),
        ({"kind": "mlp", "names": []}, "predictor: Field required"),
        ([], r"=\[\]: .*object"),
    ],
)
def test_a_damaged_model_is_refused(raw, message):
    with pytest.raises(UserError, match=message):
        decode(UnitModel, raw, "file")


def test_the_same_seed_gives_the_same_network():
    draw = np.random.default_rng(0)
    x = draw.uniform(1, 100, (20, 3))
    y = np.prod(x, axis=1) ** 0.5
    assert fit_mlp(x, y) == fit_mlp(x, y)
    assert fit_mlp(x, y, seed=1) != fit_mlp(x, y)


def test_corrupt_rows_are_dropped_and_counted():
    units = drawn_units(noise=0.05)
    corrupt = {"unit3": 0.02, "unit17": 0.001, "unit40": 0.05}
    damaged = {k: replace(u, seconds=u.seconds * corrupt.get(k, 1.0)) for k, u in units.items()}
    report = fit_units(damaged, kinds=("linear",))
    assert set(report.dropped) == set(corrupt)
    clean = {key: unit for key, unit in units.items() if key not in corrupt}
    assert report.model == fit_units(clean, kinds=("linear",)).model


def test_units_without_any_feature_are_not_judged_by_the_regression():
    units = {**drawn_units(), "identity": UnitTime(1e-7, features([]))}
    assert fit_units(units, kinds=("linear",)).dropped == ()


def test_the_least_error_on_units_left_out_wins():
    report = fit_units(drawn_units(noise=0.01), folds=3)
    assert set(report.scores) == set(UNIT_FITS)
    best = min(report.scores, key=lambda kind: report.scores[kind].mape)
    assert report.model.kind == best == "linear"
    assert report.scores["linear"].mape < 0.02


def test_where_latency_is_no_sum_the_product_of_powers_wins():
    draw = np.random.default_rng(0)
    units = {}
    for i in range(80):
        a, b = np.exp(draw.uniform(3, 9, 2))
        units[str(i)] = UnitTime(1e-6 * a**0.6 * b**0.8, {"a": a, "b": b})
    report = fit_units(units, kinds=("linear", "power"))
    assert report.model.kind == "power"
    assert report.scores["power"].mape < 0.02 < 0.1 < report.scores["linear"].mape


def test_all_rows_of_a_group_are_left_out_together():
    draw = np.random.default_rng(0)
    # A column of its own for each group: a fit that has seen another row of it knows its time.
    groups = np.repeat(np.arange(12), 3)
    seconds = np.exp(draw.normal(size=12))[groups]
    x = np.eye(12)[groups]
    apart = left_out(fit_nonnegative, x, seconds, groups.tolist(), 5, 0)
    mixed = left_out(fit_nonnegative, x, seconds, range(36), 5, 0)
    assert np.median(np.abs(apart / seconds - 1)) > 0.2
    assert np.median(np.abs(mixed / seconds - 1)) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_units(drawn_units(2)), "2 units.* at least 3 units"),
        (lambda: fit_units(drawn_units(5), kinds=("svm",)), "'svm'.*'linear'"),
        (lambda: fit_units(drawn_units(5), kinds=()), r"kinds of model \[\]"),
        (lambda: UnitTime(0.0, {}), "unit.seconds=0.0 must be above 0"),
        (lambda: UnitTime(float("nan"), {}), "unit.seconds=nan must be"),
        (lambda: UnitTime(1.0, {"x": -1.0}), "unit.features=.* at least 0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
