"""Tensors that several modules hold: counted once, stored once, trained together, everywhere."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.cost.analytic import MACs, Params, Size
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.discretization import discretize
from nas.export.loading import load_weights, state_bytes
from nas.ops.blocks import tensors_of
from nas.quantities import parse_budget
from nas.report.summary import summarize
from nas.selection import select
from nas.supernet.choice import ChoiceBlock

from .strategies import archs, counted, randomized
from .test_size import folded_bytes, stored_bytes

C = 4


def conv() -> nn.Module:
    return nn.Conv2d(C, C, 3, padding=1, bias=False)


def normed() -> nn.Module:
    return nn.Sequential(conv(), nn.BatchNorm2d(C), nn.ReLU())


def pointwise() -> nn.Module:
    return nn.Conv2d(C, C, 1)


class Twice(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(C, 1, 1))
        self.second = self.first

    def forward(self, x):
        return x * self.first + self.second


LAYERS = (conv, normed, pointwise, Twice)


class Net(nn.Module):
    input_shape = (C, 5, 5)

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


def slots(model: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Every place where a weight or a statistic of a layer stands."""
    return [
        (module, name, tensor)
        for module in model.modules()
        if not isinstance(module, ChoiceBlock)
        for name, tensor in tensors_of(module)
    ]


@st.composite
def tied_nets(draw) -> Net:
    """Layers and choices of layers, some nested, with drawn ties between like tensors."""

    def layer(depth: int) -> nn.Module:
        if depth < 2 and draw(st.integers(0, 2)) == 0:
            return ChoiceBlock([layer(depth + 1) for _ in range(draw(st.integers(2, 3)))])
        return draw(st.sampled_from(LAYERS))()

    torch.manual_seed(0)
    blocks = [ChoiceBlock([layer(1), layer(1)])]
    net = Net(blocks + [layer(0) for _ in range(draw(st.integers(1, 3)))])
    for _ in range(draw(st.integers(1, 6))):
        places = slots(net)
        _, _, tensor = draw(st.sampled_from(places))
        kind = (type(tensor), tensor.shape, tensor.dtype)
        alike = [(m, n) for m, n, t in places if (type(t), t.shape, t.dtype) == kind]
        other, key = draw(st.sampled_from(alike))
        setattr(other, key, tensor)
    return randomized(net).eval()


def few(net: nn.Module) -> bool:
    return len(list(archs(net))) <= 12


@settings(max_examples=15)
@given(tied_nets().filter(few))
def test_what_is_tied_counts_once_in_every_architecture(net):
    traced = trace(net, net.input_shape)
    params, macs, size = (ExpectedCost(net, c, traced) for c in (Params(), MACs(), Size()))
    peak, all_memory = (PeakMemory(weights=w).expected(net, traced) for w in (False, True))
    for arch in archs(net):
        network = discretize(net, arch)
        network.input_shape = net.input_shape
        right = counted(network)
        assert params.of(arch.choices) == right["params"]
        assert macs.of(arch.choices) == right["macs"]
        assert size.of(arch.choices) == stored_bytes(network)
        assert all_memory.of(arch.choices) - peak.of(arch.choices) == 4 * right["params"]


@settings(max_examples=15)
@given(tied_nets().filter(few))
def test_folding_of_tied_norms_is_that_of_the_extracted_network(net):
    cost = Size(fold_norm=True)
    expected = ExpectedCost(net, cost, net.input_shape)
    for arch in archs(net):
        network = discretize(net, arch)
        alone = ExpectedCost(network, cost, net.input_shape)().item()
        assert expected.of(arch.choices) == alone
        weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
        if len(set(weights)) == len(weights):  # else torch unties what it fuses
            assert alone == folded_bytes(network)


@settings(max_examples=5)
@given(tied_nets().filter(few))
def test_shares_add_up_and_the_choice_keeps_its_budget(net):
    traced = trace(net, net.input_shape)
    costs = {"params": ExpectedCost(net, Params(), traced)}
    values = {arch: costs["params"].of(arch.choices) for arch in archs(net)}
    for arch, value in values.items():
        parts = summarize(net, arch, net.input_shape, {"params": Params()})
        assert sum(part.costs.get("params", 0) for part in parts) == value
    bound = parse_budget("params", min(values.values()), "", max(values.values()))
    assert values[select(net, "Net", costs, {"params": bound})] <= bound


@settings(max_examples=5)
@given(net=tied_nets().filter(few))
def test_ties_live_on_in_the_network_and_in_its_file(net, tmp_path_factory):
    for arch in list(archs(net))[:3]:
        network, fresh = discretize(net, arch), discretize(net, arch)
        network.train()(torch.randn(4, *net.input_shape)).square().mean().backward()
        torch.optim.SGD(network.parameters(), 0.1).step()
        file = tmp_path_factory.mktemp("run") / "network.pt"
        file.write_bytes(state_bytes(network))
        load_weights(fresh, file)
        x = torch.randn(2, *net.input_shape)
        assert torch.equal(fresh.eval()(x), network.eval()(x))
        for tied in (network, fresh):
            assert len(list(tied.parameters())) == len({p.data_ptr() for p in tied.parameters()})
            assert len(list(tied.parameters())) == len(list(discretize(net, arch).parameters()))


class Language(nn.Module):
    """Embedding and output layer of one matrix, a choice in between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.middle = ChoiceBlock({"mix": nn.Linear(8, 8), "relu": nn.ReLU()})
        self.head = nn.Linear(8, 11)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.middle(self.embed(ids)))


@pytest.mark.parametrize("option", ["mix", "relu"])
def test_an_embedding_tied_to_the_head(option):
    net, ids = Language(), torch.zeros(1, 5, dtype=torch.long)
    net.middle.choose(option)
    network = discretize(net)
    assert network.head.weight is network.embed.weight
    right = sum(p.numel() for p in network.parameters())
    assert ExpectedCost(net, Params(), ids)().item() == right
    assert torch.load(io.BytesIO(state_bytes(network)), weights_only=True).keys() >= {"head.weight"}
