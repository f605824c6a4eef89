"""What a model may be made of and be given: number types, lazy modules, arguments by name."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_map

import nas
from nas.cost.analytic import Size
from nas.cost.memory import PeakMemory
from nas.errors import UserError
from nas.latency.units import units_of
from nas.recalibrate import recalibrate


def plain(lazy: bool = False) -> nn.Sequential:
    conv = nn.LazyConv2d if lazy else lambda *a, **k: nn.Conv2d(3, *a, **k)
    norm = nn.LazyBatchNorm2d() if lazy else nn.BatchNorm2d(4)
    block = nas.ChoiceBlock(
        {
            "k3": conv(4, 3, padding=1),
            "deep": nn.Sequential(conv(4, 1), norm, nn.Conv2d(4, 4, 1)),
            "inner": nas.ChoiceBlock([conv(4, 5, padding=2), conv(4, 1)]),
        }
    )
    head = nn.LazyLinear(2) if lazy else nn.Linear(4 * 36, 2)
    return nn.Sequential(block, nn.ReLU(), nn.Flatten(), head)


SHAPE = (3, 6, 6)
COSTS = (nas.Params(), nas.MACs(), Size())


def values(model, example=SHAPE) -> list[float]:
    traced = nas.trace(model, example)
    costs = [nas.ExpectedCost(model, cost, traced)().item() for cost in COSTS]
    return [*costs, PeakMemory().expected(model, traced)().item()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_of_another_number_type_costs_what_it_costs_in_float32(dtype):
    net = plain().to(dtype)
    assert values(net) == pytest.approx(values(plain()))
    assert units_of(net, SHAPE).to_measure
    x = torch.randn(2, *SHAPE, dtype=dtype)
    net.train()(x).square().mean().backward()
    network = nas.discretize(net)
    recalibrate(network, [x])
    assert network.eval()(x).dtype == dtype
    assert {p.dtype for p in network.parameters()} == {dtype}


def test_float32_alphas_do_not_decide_the_type_of_a_sample():
    net = nn.Sequential(nas.ChoiceBlock([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)]))
    for name, parameter in net.named_parameters():
        if "alpha" not in name:
            parameter.data = parameter.data.double()
    assert nas.trace(net, SHAPE).inputs[0].dtype == torch.float64


def test_a_forward_that_looks_at_values_in_another_number_type():
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()

        def forward(self, x):
            return self.body(x if float(x.sum()) < 1 else -x)

    assert values(Looks().double()) == pytest.approx(values(plain()))


def test_lazy_modules_get_their_weights_from_a_trace():
    torch.manual_seed(0)
    net, state = plain(lazy=True).train(), torch.get_rng_state()
    with pytest.raises(UserError, match=r"'3.weight'.*call nas.trace"):
        nas.split_parameters(net)
    found = values(net)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == values(plain())
    assert all(m.training for m in net.modules())
    assert not any(m.unrolled for m in net.modules() if isinstance(m, nas.ChoiceBlock))
    weights = nas.split_parameters(net).weights
    assert sum(w.numel() for w in weights) == sum(p.numel() for p in plain().parameters()) - 5
    assert nas.discretize(net)(torch.randn(2, *SHAPE)).shape == (2, 2)
    before = [w.clone() for w in weights]
    assert values(net) == values(plain())
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))


def test_a_lazy_supernet_can_be_discretized_before_and_loaded_after():
    drawn, fresh = plain(lazy=True), plain(lazy=True)
    arch = nas.Arch("Sequential", {"0": "deep", "0.candidates.inner": "0_LazyConv2d"})
    network, x = nas.discretize(fresh, arch), torch.randn(2, *SHAPE)
    nas.trace(drawn, SHAPE)
    found = nas.discretize(drawn, nas.Arch("Sequential", dict(arch.choices)))
    network.load_state_dict(found.state_dict())
    assert torch.equal(network.eval()(x), found.eval()(x))


def test_a_lazy_module_that_never_runs_is_named():
    net = plain()
    net[1].unused = nn.LazyLinear(3)
    net[1].forward = F.relu
    with pytest.raises(UserError, match=r"does not reach the lazy modules \['1.unused'\]"):
        nas.trace(net, SHAPE)
    broken = nn.Sequential(nn.LazyConv2d(4, 9), nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"Sequential fails for an input of shape \[\(1, 3, 6, 6\)"):
        nas.trace(broken, SHAPE)


class Named(nn.Module):
    """Several arguments, some of them no tensors, some inside lists and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nas.ChoiceBlock({"a": nn.Linear(4, 4), "b": nn.Identity()})
        self.head = nn.Linear(4, 2)

    def forward(self, x, mask=None, scale=1.0, extra=(), table=None):
        x = self.block(x)
        x = x if mask is None else x.masked_fill(mask[..., None], 0.0)
        for other in extra:
            x = x + other
        return {"y": self.head(scale * x + (table["z"] if table else 0.0))}


X, MASK = torch.randn(1, 5, 4), torch.zeros(1, 5, dtype=torch.bool)
MORE = {"extra": [X, X], "table": {"z": X}}


@pytest.mark.parametrize(
    "example",
    [
        (5, 4),
        [5, 4],
        torch.Size((5, 4)),
        X,
        (X, MASK),
        (X, None, 0.5),
        {"x": X, "mask": MASK},
        {"x": X, "scale": 2.0},
        {"x": X, **MORE},
        (X, MASK, 1.0, [X], {"z": X}),
    ],
    # Not by the tensors' values: processes that share the tests must name them alike.
    ids=lambda example: str(tree_map(lambda x: "X" if isinstance(x, torch.Tensor) else x, example)),
)
def test_arguments_are_given_by_place_or_by_name(example):
    net = Named()
    assert values(net, example)[:2] == [10 + 20 / 2, 5 * 4 * 2 + 5 * 4 * 4 / 2]
    assert units_of(net, example).to_measure
    assert units_of(net, nas.trace(net, example).inputs).to_measure


@settings(max_examples=20)
@given(st.lists(st.sampled_from(["mask", "scale", "extra", "table"]), unique=True))
def test_names_in_any_order(names):
    given_ = {"mask": MASK, "scale": 2.0, **MORE}
    example = {name: given_[name] for name in names} | {"x": X}
    assert values(Named(), example)[1] == 5 * 4 * 2 + 5 * 4 * 4 / 2


@pytest.mark.parametrize(
    "example", [None, "3x6x6", (), {}, (3, 0, 6), (3, -1), (3.0, 6.0), 7, {"x": 1}]
)
def test_an_example_that_stands_for_nothing_is_refused(example):
    with pytest.raises(UserError, match="must be the shape of one sample"):
        nas.trace(plain(), example)
