"""Latency models of one unit: features, fits, the choice among them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.cost.analytic import MACs
from nas.cost.base import LayerSpec
from nas.cost.trace import trace
from nas.errors import UserError
from nas.latency.features import KINDS, NAMES, features
from nas.latency.models import (
    MLP,
    REGRESSIONS,
    Linear,
    LookupTable,
    Polynomial,
    Sample,
    fit_best,
    model_from_json,
    plausible,
)
from nas.supernet.elastic_ops import build_op as build

RATES = {"dense_macs": 2e-10, "depthwise_macs": 9e-10, "dense_calls": 3e-6, "linear_weights": 1e-9}


def conv(channels=8, kernel=3, groups=1, size=16, out=None):
    return LayerSpec(
        "conv", "", channels, out or channels, groups, (kernel, kernel), (size,) * 2, (size,) * 2
    )


def drawn_samples(n=60, seed=0, noise=0.0):
    """Units of convolutions whose latency is exactly linear in their features, but for noise."""
    draw = np.random.default_rng(seed)
    samples = []
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
        samples.append(Sample(f"unit{i}", found, seconds * np.exp(noise * draw.normal())))
    return samples


FITTED = {kind: model.fit(drawn_samples()) for kind, model in REGRESSIONS.items()}


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


def test_features_of_masked_channels_are_differentiable():
    channels = torch.tensor(6.0, requires_grad=True)
    found = features([replace(conv(8), in_channels=channels, out_channels=channels)])
    found["dense_macs"].backward()
    assert channels.grad == pytest.approx(2 * 6 * 9 * 16 * 16)


def test_a_linear_latency_is_recovered():
    model = Linear.fit(drawn_samples())
    for sample in drawn_samples(seed=1):
        assert model.predict("", sample.features) == pytest.approx(sample.seconds, rel=1e-6)


@pytest.mark.parametrize(("kind", "limit"), [("linear", 0.02), ("polynomial", 0.1), ("mlp", 0.1)])
def test_unseen_units_are_predicted_from_noisy_measurements(kind, limit):
    model = REGRESSIONS[kind].fit(drawn_samples(120, noise=0.05))
    errors = [
        abs(float(model.predict("", s.features)) / s.seconds - 1) for s in drawn_samples(40, seed=1)
    ]
    assert np.mean(errors) < limit


@given(st.data())
def test_more_work_never_costs_less_in_the_linear_model(data):
    sample = data.draw(st.sampled_from(drawn_samples(20, noise=0.3)))
    name = data.draw(st.sampled_from(NAMES))
    more = {**sample.features, name: sample.features[name] + data.draw(st.floats(0, 1e9))}
    model = Linear.fit(drawn_samples(20, noise=0.3))
    assert model.predict("", more) >= model.predict("", sample.features) >= 0


@pytest.mark.parametrize("kind", REGRESSIONS)
def test_the_gradient_reaches_features_that_are_tensors(kind):
    model = FITTED[kind]
    point = next(s.features for s in drawn_samples() if s.features["dense_macs"])
    macs = torch.tensor(float(point["dense_macs"]), dtype=torch.float64, requires_grad=True)

    def seconds(value):
        return model.predict("", {**point, "dense_macs": value})

    value = seconds(macs)
    value.backward()
    step = 1e-4 * point["dense_macs"]
    here = point["dense_macs"]
    slope = (seconds(here + step) - seconds(here - step)) / (2 * step)
    assert float(value.detach()) == pytest.approx(seconds(here))
    assert float(macs.grad) == pytest.approx(slope, rel=1e-4)
    assert macs.grad != 0


@pytest.mark.parametrize("model", [*FITTED.values(), LookupTable.fit(drawn_samples())])
def test_a_model_survives_json(model):
    again = model_from_json(json.loads(json.dumps(model.to_json(), allow_nan=False)))
    assert type(again) is type(model)
    for sample in drawn_samples():
        expected = model.predict(sample.key, sample.features)
        assert again.predict(sample.key, sample.features) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "magic"}, "'magic' is not one of"),
        ({"rates": [1.0]}, "a list of [0-9]+ numbers"),
        ({"rates": "x"}, "a list of [0-9]+ numbers"),
        ({"intercept": None}, "intercept=None must be a finite number"),
        ({"intercept": True}, "intercept=True must be a finite number"),
        ({"intercept": float("nan")}, "must be a finite number"),
        ({"names": [1]}, "a list of texts"),
    ],
)
def test_a_damaged_model_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        model_from_json(FITTED["linear"].to_json() | change)


def test_a_model_that_lacks_a_field_is_refused():
    raw = FITTED["mlp"].to_json()
    del raw["net"]
    with pytest.raises(UserError, match="lacks 'net'"):
        model_from_json(raw)
    with pytest.raises(UserError, match="must be an object"):
        model_from_json([])


def test_the_same_seed_gives_the_same_network():
    samples = drawn_samples(20)
    assert MLP.fit(samples, steps=20).to_json() == MLP.fit(samples, steps=20).to_json()
    assert MLP.fit(samples, seed=1, steps=20).to_json() != MLP.fit(samples, steps=20).to_json()


def test_a_table_is_exact_for_what_it_knows_and_knows_no_more():
    samples = [Sample("a", {}, 1e-3), Sample("a", {}, 3e-3), Sample("a", {}, 2e-3)]
    table = LookupTable.fit(samples)
    assert table.predict("a", {}) == 2e-3
    with pytest.raises(UserError, match="'b' was not measured"):
        table.predict("b", {})


def test_corrupt_rows_are_dropped_and_counted():
    samples = drawn_samples(noise=0.05)
    corrupt = {3: 0.02, 17: 0.001, 40: 0.05}
    damaged = [replace(s, seconds=s.seconds * corrupt.get(i, 1.0)) for i, s in enumerate(samples)]
    report = fit_best(damaged, kinds=("linear",))
    assert {sample.key for sample in report.dropped} == {f"unit{i}" for i in corrupt}
    clean = fit_best([s for i, s in enumerate(samples) if i not in corrupt], kinds=("linear",))
    assert report.regression == clean.regression
    assert "unit3" not in report.table


def test_a_repeat_far_below_the_others_of_its_key_is_dropped():
    repeats = [Sample("pool", {}, seconds) for seconds in (1e-3, 1.1e-3, 1e-6)]
    kept, dropped = plausible([*drawn_samples(noise=0.02), *repeats])
    assert dropped == [repeats[2]]
    assert len(kept) == 62


def test_units_without_any_feature_are_not_judged_by_the_regression():
    identity = Sample("identity", features([]), 1e-7)
    assert plausible([*drawn_samples(), identity])[1] == []


def test_the_least_error_on_units_left_out_wins():
    report = fit_best(drawn_samples(noise=0.01), folds=3)
    assert set(report.scores) == set(REGRESSIONS)
    best = min(report.scores, key=lambda kind: report.scores[kind].mape)
    assert report.regression.kind == best == "linear"
    assert report.scores["linear"].mape < 0.02


def test_where_latency_is_no_sum_the_polynomial_wins():
    draw = np.random.default_rng(0)
    samples = []
    for i in range(80):
        a, b = np.exp(draw.uniform(3, 9, 2))
        samples.append(Sample(str(i), {"a": a, "b": b}, 1e-6 * a**0.6 * b**0.8))
    report = fit_best(samples, kinds=("linear", "polynomial"))
    assert isinstance(report.regression, Polynomial)
    assert report.scores["polynomial"].mape < 0.02 < 0.1 < report.scores["linear"].mape


def test_a_report_predicts_known_keys_from_the_table_and_others_by_the_regression():
    samples = drawn_samples(noise=0.2)
    report = fit_best(samples, kinds=("linear",))
    assert report.predict("unit5", samples[5].features) == samples[5].seconds
    expected = report.regression.predict("", samples[5].features)
    assert report.predict("new", samples[5].features) == expected
    json.dumps(report.to_json(), allow_nan=False)


def test_all_samples_of_a_key_are_left_out_together():
    draw = np.random.default_rng(0)
    # A feature of its own for each key: whoever has seen another sample of it knows, nobody else.
    samples = [
        Sample(key, {key: 1.0}, seconds)
        for key, seconds in ((f"k{i}", float(np.exp(draw.normal()))) for i in range(12))
        for _ in range(3)
    ]
    assert fit_best(samples, kinds=("linear",)).scores["linear"].mape > 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_best(drawn_samples(2)), "at least 3 units"),
        (lambda: fit_best([Sample("a", {}, 1.0)]), "too few"),
        (lambda: fit_best(drawn_samples(5), kinds=("svm",)), "'svm' is not one of"),
        (lambda: fit_best(drawn_samples(5), kinds=()), "0 kinds"),
        (lambda: Sample("a", {}, 0.0), "is no latency"),
        (lambda: Sample("a", {}, float("nan")), "is no latency"),
        (lambda: Sample("a", {"x": -1.0}, 1.0), "must be 0 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
