"""What every additive cost model must do; found in the modules of `nas.cost`."""

import inspect
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import nn

import nas.cost
from nas.cost.device import Device
from nas.cost.expected import ExpectedCost
from nas.cost.layer import LayerSpec
from nas.cost.trace import trace
from nas.decision import apply, decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build

from .strategies import archs, counted


def cost_models() -> dict[str, type]:
    """Classes of `nas.cost` with a name, a unit and a price for a layer."""
    modules = [import_module(f"nas.cost.{m.name}") for m in pkgutil.iter_modules(nas.cost.__path__)]
    return {
        name: found
        for module in modules
        for name, found in vars(module).items()
        if isinstance(found, type)
        and not name.startswith("_")  # a part of a cost
        and found.__module__ == module.__name__
        and not getattr(found, "_is_protocol", False)
        and all(hasattr(found, attribute) for attribute in ("name", "unit"))
        # Not hasattr: every class can be called itself.
        and any("__call__" in vars(base) for base in found.__mro__)
    }


# So little memory on the chip that some layers fit and others do not.
DEVICE = Device(
    "test",
    "int8",
    peak_ops_per_s={"int8": 3e9},
    bandwidth_bytes_per_s=1e8,
    on_chip_bytes=500,
    energy_pj_per_mac={"int8": 0.7},
    energy_pj_per_on_chip_byte=1.1,
    energy_pj_per_main_byte=30,
)


def made(model: type):
    on_device = "device" in inspect.signature(model).parameters
    return model(device=DEVICE) if on_device else model()


@pytest.fixture(params=cost_models().values(), ids=cost_models())
def cost(request):
    return made(request.param)


class Net(nn.Module):
    """Two choices around a fixed layer, on images."""

    input_shape = (8, 6, 6)

    def __init__(self) -> None:
        super().__init__()
        names = ["conv_k3", "sep_k5", "mb_k3_e3_se", "grp_k5_g2", "identity"]
        self.first = ChoiceBlock({name: build(name, 8, 8) for name in names})
        self.middle = nn.Conv2d(8, 4, 3, bias=False)
        self.last = ChoiceBlock([nn.Conv2d(4, 4, 2), nn.Conv2d(4, 4, 2, groups=4)])

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def test_the_listing_finds_them():
    assert {"Params", "MACs", "FLOPs", "Size", "Roofline", "Energy"} <= set(cost_models())
    assert "PeakMemory" not in cost_models()  # of the whole network: see test_peak_memory.py
    models = [made(model) for model in cost_models().values()]
    assert len({model.name for model in models}) == len(models)
    assert all(model.name and model.unit for model in models)


def test_the_price_of_a_layer_is_finite_and_not_negative(cost):
    for layer in trace(Net(), Net.input_shape).layers:
        assert 0 <= float(cost(layer.spec)) < float("inf")


def test_one_hot_cost_is_that_of_the_extracted_network(cost):
    net = Net().eval()
    expected = ExpectedCost(net, cost, net.input_shape)
    for arch in archs(net):
        apply(net, arch)
        network = discretize(net)
        alone = ExpectedCost(network, cost, net.input_shape)().item()
        # Sums of counts are exact in any order, those of seconds and joules are not.
        exact = pytest.approx(alone, rel=1e-12 if cost.unit in ("s", "J") else 0, abs=0)
        assert expected().item() == exact
        assert expected.of(arch.choices) == exact
        assert alone > 0
        if cost.name in ("params", "macs"):
            assert alone == counted(network)[cost.name]


def test_cost_follows_alpha_after_loading_and_training(cost):
    net, other = Net(), Net()
    for _, decision in decisions(other):
        nn.init.normal_(decision.alpha)
    expected = ExpectedCost(net, cost, net.input_shape)
    before = expected().item()
    net.load_state_dict(other.state_dict())
    assert expected().item() == ExpectedCost(other, cost, net.input_shape)().item() != before


def test_a_cost_that_is_not_finite_is_refused():
    class Broken:
        name, unit = "broken", "s"

        def __call__(self, layer: LayerSpec) -> float:
            return float("nan") if layer.module == "middle" else 0.0

    with pytest.raises(UserError, match=r"'broken' gives nan for the .* layer 'middle'"):
        ExpectedCost(Net(), Broken(), Net.input_shape)


def test_expected_cost_is_float64_and_follows_the_network(cost):
    net = Net().to(torch.bfloat16)
    value = ExpectedCost(net, cost, (torch.zeros(1, *net.input_shape, dtype=torch.bfloat16),))()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(ExpectedCost(Net(), cost, net.input_shape)().item())
