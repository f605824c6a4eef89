"""Tables of whole networks, models fitted to them, and these as a cost to search with."""

from dataclasses import asdict
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nas.artifacts.reading import decode
from nas.cost.expected import NetworkCost, expected
from nas.decision import decisions
from nas.errors import UserError
from nas.latency.cost import Latency
from nas.latency.exchange import read_networks
from nas.latency.models import (
    NETWORK_FITS,
    Encoding,
    MeasuredNetworks,
    NetworkModel,
    edge_names,
    fit_network_model,
    fit_networks,
    implausible_rows,
)
from nas.latency.predict import Predictor
from nas.latency.profile import NetworksProfile
from nas.selection import largest_of, least_of
from nas.spaces import nas_bench_201 as cell
from nas.supernet.choice import ChoiceBlock

OPTIONS = {"a": ("conv", "skip", "pool"), "b": ("conv", "skip"), "c": ("conv", "pool")}
TIMES = {"conv": 5e-3, "skip": 0.0, "pool": 1e-3}
ALL = tuple(product(*OPTIONS.values()))


def additive_table(noise=0.0, seed=0, repeat=1):
    draw = np.random.default_rng(seed)
    choices = ALL * repeat
    seconds = [2e-3 + sum(TIMES[o] for o in taken) for taken in choices]
    return MeasuredNetworks(
        OPTIONS, choices, tuple(s * np.exp(noise * draw.normal()) for s in seconds)
    )


def cell_table(n=150, seed=0):
    """Cells whose latency is that of the operations which reach the output."""
    draw = np.random.default_rng(seed)
    cells = [tuple(draw.choice(cell.OPS, 6)) for _ in range(n)]
    cost = dict(zip(cell.OPS, (0.0, 0.0, 2e-3, 16e-3, 3e-3), strict=True))
    seconds = [
        3e-3 + sum(cost[o] * r for o, r in zip(c, cell.reaching(c), strict=True)) for c in cells
    ]
    return MeasuredNetworks(dict.fromkeys(edge_names(), cell.OPS), tuple(cells), tuple(seconds))


class Space(nn.Module):
    """Decisions with the names and options of `OPTIONS`; what the options do does not matter."""

    def __init__(self, options=OPTIONS):
        super().__init__()
        for name, known in options.items():
            setattr(self, name, ChoiceBlock({option: nn.Identity() for option in known}))

    def forward(self, x):
        for _, block in decisions(self):
            x = block(x)
        return x


def latency(model):
    return Latency(NetworksProfile("space", "board", model, "", {}, 1, 0))


def written(tmp_path, text):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    return path


def test_a_table_is_read_with_its_unit(tmp_path):
    path = written(tmp_path, "a, b, latency_ms\nconv,skip,1.5\n\npool,skip,3\n")
    table = read_networks(path, "latency_ms")
    assert table.options == {"a": ("conv", "pool"), "b": ("skip",)}
    assert table.choices == (("conv", "skip"), ("pool", "skip"))
    assert table.seconds == pytest.approx((1.5e-3, 3e-3))
    assert read_networks(path, "latency_ms", unit="s").seconds == (1.5, 3.0)


def test_cells_are_read_from_their_text(tmp_path):
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|"
    table = read_networks(written(tmp_path, f"index,arch_str,accuracy,lat\n0,{text},,2\n"), "lat")
    assert table.choices == (cell.parse(text),)
    assert table.options["0->1"] == cell.OPS


def test_every_faulty_line_is_named(tmp_path):
    path = written(
        tmp_path,
        "a,b,lat\nconv,skip,1\nconv,conv,\nskip,conv,fast\nskip,skip,-1\nconv,skip,2\n"
        "conv,dw,1\nconv\npool,skip,nan\n,skip,1\n",
    )
    with pytest.raises(UserError) as raised:
        read_networks(path, "lat", options={"a": OPTIONS["a"], "b": OPTIONS["b"]})
    message = str(raised.value)
    for line in (
        "line 3: latency '' is missing",
        "line 4: latency 'fast' is no number",
        "line 5: latency -1 must be above 0",
        "line 6: the same as line 2",
        "line 7: option 'dw' of 'b' must be one of ['conv', 'skip']",
        "line 8: 1 fields, the header has 3",
        "line 9: latency nan must be above 0",
        "line 10: option '' of 'a' must be one of",
    ):
        assert line in message
    assert "line 2:" not in message


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("a,b,c\nconv,skip,conv\n", "lat", r"lacks \['lat'\]"),
        ("a,lat\nconv,1\n", "lat", r"lacks \['b', 'c'\]"),
        ("a,a,lat\nconv,conv,1\n", "lat", r"has \['a'\] twice"),
        ("", "lat", "lacks"),
        ("a,b,c,lat\n", "lat", "no line below"),
    ],
)
def test_a_table_without_what_it_needs_is_refused(tmp_path, text, column, message):
    with pytest.raises(UserError, match=message):
        read_networks(written(tmp_path, text), column, options=OPTIONS)


def test_a_missing_file_and_a_wrong_unit_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_networks(tmp_path / "no.csv", "lat")
    with pytest.raises(UserError, match="unit='h'"):
        read_networks(written(tmp_path, "a,lat\nx,1\n"), "lat", unit="h")


@given(st.lists(st.sampled_from(cell.OPS), min_size=6, max_size=6).map(tuple))
def test_what_reaches_the_output_is_on_a_path_to_it(ops):
    def leads(node):
        return node == 3 or any(
            s == node and ops[i] != "none" and leads(t) for i, (s, t) in enumerate(cell.EDGES)
        )

    expected = tuple(o != "none" and leads(t) for o, (_, t) in zip(ops, cell.EDGES, strict=True))
    assert cell.reaching(ops) == expected
    assert all(r or not a for a, r in zip(cell.live(ops), cell.reaching(ops), strict=True))


def test_counts_are_sums_over_decisions():
    taken = [("conv", "skip", "conv")]
    assert Encoding(OPTIONS, "onehot")(taken).tolist() == [[1, 0, 0, 0, 1, 1, 0]]
    assert Encoding(OPTIONS, "counts")(taken).tolist() == [[2, 1, 0]]
    assert (Encoding(OPTIONS, "onehot").columns, Encoding(OPTIONS, "counts").columns) == (7, 3)


def test_products_are_those_of_the_counts():
    counts = Encoding(OPTIONS, "counts")([("conv", "skip", "conv")])
    weights = tuple(10.0**i for i in range(9))
    model = Predictor(weights, 0.0, degree=2)
    assert model(counts) == [np.dot([2, 1, 0, 4, 2, 0, 1, 0, 0], weights)]


@pytest.mark.parametrize("kind", ["counts", "onehot"])
def test_exact_sums_are_recovered(kind):
    table = additive_table()
    model = fit_network_model(table, kind)
    assert model.predict(ALL) == pytest.approx(np.array(table.seconds), rel=1e-4)
    assert model.additive


def test_other_models_do_not_add_up():
    assert not fit_network_model(additive_table(0.1), "polynomial").additive
    assert not fit_network_model(cell_table(), "counts", "unreachable").additive


def test_what_does_not_run_costs_nothing():
    train, test = cell_table(), cell_table(seed=1)
    errors = {}
    for way in ("nothing", "unreachable"):
        predicted = fit_network_model(train, "counts", way).predict(test.choices)
        errors[way] = np.abs(predicted / np.array(test.seconds) - 1).mean()
    assert errors["unreachable"] < 1e-6
    assert errors["nothing"] > 0.05
    assert fit_networks(train, kinds=("counts",)).left_out == "unreachable"


def test_the_choice_is_the_least_cross_validated_error():
    report = fit_networks(additive_table(0.02, repeat=4), folds=3)
    assert set(report.errors) == {f"{kind}, without nothing" for kind in NETWORK_FITS}
    assert report.errors[report.chosen] == min(report.errors.values()) < 0.03


def test_corrupt_rows_are_dropped_and_counted():
    table = additive_table(0.02, repeat=3)
    seconds = list(table.seconds)
    for index in (1, 20):
        seconds[index] *= 0.01
    damaged = MeasuredNetworks(OPTIONS, table.choices, tuple(seconds))
    assert implausible_rows(table) == ()
    assert implausible_rows(damaged) == (1, 20)
    report = fit_networks(damaged, kinds=("counts", "onehot"))
    assert report.dropped == (1, 20)
    assert report.model.predict(ALL) == pytest.approx(np.array(additive_table().seconds), rel=0.05)


MODELS = {
    "counts": fit_network_model(additive_table(), "counts"),
    **{k: fit_network_model(additive_table(0.1), k) for k in ("onehot", "polynomial")},
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_survives_json(kind):
    again = decode(NetworkModel, asdict(MODELS[kind]), "file")
    assert again == MODELS[kind]
    assert (again.predict(ALL) == MODELS[kind].predict(ALL)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictor": {"weights": [1.0], "intercept": 0.0}}, "1 weights, and there must be 3"),
        ({"predictor": {"weights": [1.0], "intercept": "x"}}, "'intercept'"),
        (
            {"predictor": asdict(MODELS["polynomial"].predictor) | {"exponential": 1}},
            "=1: .*boolean",
        ),
        ({"encoding": {"options": {"a": ["x"]}, "basis": "hot", "left_out": "nothing"}}, "'hot'"),
        (
            {"encoding": {"options": {"a": ["x"]}, "basis": "counts", "left_out": "unreachable"}},
            "choose left_out='nothing'",
        ),
        (
            {"encoding": {"options": {"a": []}, "basis": "counts", "left_out": "nothing"}},
            "without options",
        ),
    ],
)
def test_a_damaged_model_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        decode(NetworkModel, asdict(MODELS["counts"]) | change, "file")


@pytest.mark.parametrize("kind", MODELS)
def test_the_cost_of_a_supernet_is_the_mean_over_its_networks(kind):
    space, model = Space(), MODELS[kind]
    cost = latency(model)
    assert isinstance(cost, NetworkCost)
    of = expected(space, cost, (1, 4, 4))
    with torch.no_grad():
        for index, (_, decision) in enumerate(decisions(space)):
            decision.alpha += torch.linspace(-1, 1, len(decision.options)) * (index + 1)
    thetas = [decision.theta.detach().double() for _, decision in decisions(space)]
    places = product(*(range(len(theta)) for theta in thetas))
    chance = [
        float(torch.stack([t[k] for t, k in zip(thetas, at, strict=True)]).prod()) for at in places
    ]

    assert float(of().detach()) == pytest.approx(
        float(np.dot(chance, model.predict(ALL))), rel=1e-6
    )
    assert float(of.mean()) == pytest.approx(float(model.predict(ALL).mean()), rel=1e-6)
    for taken, value in zip(ALL, model.predict(ALL), strict=True):
        assert of.of(dict(zip(OPTIONS, taken, strict=True))) == pytest.approx(value, rel=1e-6)
    assert least_of(of) == pytest.approx(model.predict(ALL).min(), rel=1e-6)
    assert largest_of(of) == pytest.approx(model.predict(ALL).max(), rel=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_the_penalty_moves_alpha_to_the_quicker_option(kind):
    space = Space()
    expected(space, latency(MODELS[kind]), (1, 4, 4))().backward()
    gradient = space.b.alpha.grad
    assert gradient[OPTIONS["b"].index("conv")] > 0 > gradient[OPTIONS["b"].index("skip")]


def test_decisions_of_a_cell_are_matched_by_name_not_by_place():
    names = list(reversed(OPTIONS))
    of = expected(Space({n: OPTIONS[n] for n in names}), latency(MODELS["counts"]), (1,))
    assert of.of({"a": "pool", "b": "conv", "c": "conv"}) == pytest.approx(2e-3 + 11e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": ("conv",)}, "this one has"),
        ({**OPTIONS, "b": ("conv", "dw")}, r"no network with \['dw'\] at 'b'"),
    ],
)
def test_a_model_of_another_space_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        expected(Space(options), latency(MODELS["counts"]), (1,))


def test_a_large_space_takes_an_additive_model_and_no_other():
    options = {f"d{i}": ("conv", "skip", "pool", "none") for i in range(9)}
    draw = np.random.default_rng(0)
    choices = tuple(tuple(draw.choice(options["d0"], 9)) for _ in range(60))
    seconds = tuple(1e-3 * (1 + taken.count("conv")) for taken in choices)
    table = MeasuredNetworks(options, choices, seconds)
    of = expected(Space(options), latency(fit_network_model(table, "counts")), (1,))
    assert largest_of(of) == pytest.approx(10e-3, rel=1e-6)
    with pytest.raises(UserError, match="at most 32768"):
        expected(Space(options), latency(fit_network_model(table, "polynomial")), (1,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("svm",)}, "svm"),
        ({"ways": ("half",)}, "half"),
        ({"ways": ("unreachable",)}, "choose left_out='nothing'"),
        ({"folds": 50}, "too few for 50 folds"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        fit_networks(additive_table(), **arguments)
