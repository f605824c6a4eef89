"""Channels that are left out and bits of those that stay, searched together in a given network."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nas
from nas.compress.convert import searchable
from nas.compress.layer import Width
from nas.compress.rules import Channels, Rules
from nas.compress.space import OwnNetwork
from nas.cost.analytic import Size
from nas.decision import apply, decisions
from nas.discretization import discretize
from nas.distinct import Distinct
from nas.integer import integer_graph
from nas.quantization.network import Quantize, quantized, quantized_layers
from nas.quantization.sensitivity import sensitivity

from .test_channel_bits import arch_of, archs, assert_c_is_exact, picks
from .test_quantization import assert_refused

STORED = Size(dtype="int8", fold_norm=True, bias_bits=16, scale_bits=16)
SHAPE = (2, 5, 5)


class Skip(nn.Module):
    """Convolutions, a depthwise one among them, whose sum ties their channels, and two layers."""

    def __init__(self, ndim: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if ndim == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.first, self.norm = conv(2, 8, 3, padding=1, bias=False), norm(8)
        self.depthwise, self.pointwise = conv(8, 8, 3, padding=1, groups=8), conv(8, 8, 1)
        self.hidden, self.last = nn.Linear(8 * 5**ndim, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        x = x + self.pointwise(self.depthwise(x).relu())
        hidden: Tensor = self.hidden(x.flatten(1)).relu()
        return self.last(hidden)


def searched(parts: int = 1, ndim: int = 2, choices: int = 3, **how: object) -> nn.Module:
    torch.manual_seed(0)
    shape = SHAPE[: ndim + 1]
    network = Skip(ndim).eval()
    nn.init.uniform_(network.norm.weight, -1, 1)
    wide = searchable(network, shape, Rules(channels=Channels(choices=choices, divisor=1)))
    asked = Quantize(**{"weights": (0, 2, 4, 8), "channels": parts, **how})
    return quantized(wide, asked, [torch.randn(16, *shape)]).eval()


@pytest.fixture(scope="module")
def models() -> dict[tuple[int, int], tuple[nn.Module, nas.ExpectedCost]]:
    """Networks by parts and dimensions, with their size; made once."""
    made = {}
    for parts, ndim in ((1, 2), (2, 1), (3, 2)):
        model = searched(parts, ndim)
        made[parts, ndim] = model, nas.ExpectedCost(model, STORED, SHAPE[: ndim + 1])
    return made


@settings(max_examples=25, deadline=None)
@given(st.data(), picks)
def test_one_hot_is_the_smaller_network_and_its_size_the_bytes_of_the_graph(models, data, taken):
    parts, ndim = data.draw(st.sampled_from(list(models)))
    model, size = models[parts, ndim]
    arch, x = arch_of(model, [*taken, *taken]), torch.randn(8, *SHAPE[: ndim + 1])
    plain = discretize(model, arch)
    apply(model, arch)
    assert torch.equal(model(x), plain(x))
    graph = integer_graph(plain, x)
    assert size().item() == size.of(arch.choices) == graph.weight_bytes
    width = arch.choices["first.layer.channels"]
    assert [len(plain.first.weight), plain.depthwise.groups] == [width, width]
    assert plain.pointwise.weight.shape[:2] == (width, width)
    bare = discretize(searchable_alone(model), nas.Arch("Skip", widths_of(arch)))
    for path, layer in quantized_layers(plain).items():
        assert torch.equal(layer.weight, bare.get_submodule(path).weight)


def widths_of(arch: nas.Arch) -> dict[str, object]:
    return {n.replace(".layer", ""): o for n, o in arch.choices.items() if "bits" not in n}


def searchable_alone(model: nn.Module) -> nn.Module:
    """The network of `searched` without bits."""
    torch.manual_seed(0)
    ndim = 1 if isinstance(model.norm, nn.BatchNorm1d) else 2
    network = Skip(ndim).eval()
    nn.init.uniform_(network.norm.weight, -1, 1)
    return searchable(network, SHAPE[: ndim + 1], Rules(channels=Channels(choices=3, divisor=1)))


def test_the_expected_size_is_the_mean_over_all_networks():
    model = searched(choices=2, weights=(0, 2, 8), layers={"[dpl]*": 8})
    for _, decision in decisions(model):
        nn.init.normal_(decision.alpha)
    own, mean = dict(decisions(model)), 0.0
    price = nas.ExpectedCost(model, STORED, SHAPE)
    assert len(archs(model)) == 16
    for arch in archs(model):
        shares = [own[n].theta[own[n].options.index(o)] for n, o in arch.choices.items()]
        alone = nas.ExpectedCost(discretize(model, arch), STORED, SHAPE)().item()
        assert price.of(arch.choices) == alone
        mean += float(torch.stack(shares).detach().prod()) * alone
    assert price().item() == pytest.approx(mean, rel=1e-6)


def test_the_channels_of_a_linear_layer_over_a_sequence_are_its_last_dimension():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    wide = searchable(network.eval(), (5, 8), Rules(channels=Channels(choices=2, divisor=1)))
    model = quantized(wide, Quantize(weights=(0, 8)))
    price = nas.ExpectedCost(model, nas.MACs(), (5, 8))
    for options in model[2].combinations():
        assert model[2].in_channels_used(options) == model[2].materialize(options).in_features
    for arch in archs(model):
        alone = nas.ExpectedCost(discretize(model, arch), nas.MACs(), (5, 8))
        assert price.of(arch.choices) == alone().item()


def test_the_most_bits_are_of_the_most_important_channels_that_stay():
    model = searched(2)
    first = model.first
    first.order(torch.tensor([1.0, 8, 2, 7, 3, 6, 4, 5]))
    width = first.layer.channels
    width.first.copy_(torch.tensor([0, 1, 0, 1, 2, 0, 1, 2])[: len(width.first)])
    narrow = {n: d.options[-1] for n, d in decisions(model)}
    narrow |= {"first.layer.channels": width.options[1], "first.weight_bits": "1x2+1x8"}
    plain = discretize(model, nas.Arch("Skip", narrow))
    kept = (width.first <= 1).nonzero().flatten()
    assert len(plain.first.weight) == len(kept) == 6
    importance = torch.tensor([1.0, 8, 2, 7, 3, 6, 4, 5])[kept]
    bits = plain.first.weight_quantizer.bits_of_rows
    assert dict(plain.first.weight_rows) == {2: 3, 8: 3}
    assert importance[bits == 8].min() > importance[bits == 2].max()
    taken = zip(bits.tolist(), kept.tolist(), strict=True)
    steps = torch.stack([first.weights[str(width)].step[row] for width, row in taken])
    assert torch.equal(plain.first.weight_quantizer.step, steps)


@pytest.mark.parametrize("parts", [1, 2])
def test_widths_and_bits_learn_together(parts):
    model = searched(parts).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = model.norm.running_mean.clone()
    model(torch.randn(8, *SHAPE)).square().sum().backward()
    for name, decision in decisions(model):
        assert decision.alpha.grad is not None, name
        assert (decision.alpha.grad != 0).any(), name
    weights = model.first.layer.weight
    assert weights.grad is not None
    assert not torch.equal(before, model.norm.running_mean)
    optimizer.step()
    assert torch.isfinite(model(torch.randn(8, *SHAPE))).all()


def test_leaving_a_channel_out_is_measured_like_fewer_bits():
    model, x = searched(2), torch.randn(8, *SHAPE)
    found = sensitivity(model, lambda network: float(network(x).square().mean().detach()))
    usual = {n: d.options[-1] for n, d in decisions(model)}
    name = "first.layer.channels"
    for option, added in found[name].items():
        losses = [
            discretize(model, nas.Arch("Skip", choices))(x).square().mean().item()
            for choices in ({**usual, name: option}, usual)
        ]
        assert added == pytest.approx(losses[0] - losses[1], abs=1e-6)
    assert Distinct.of(model).read_if == {}


@pytest.mark.skipif(not shutil.which("gcc"), reason="no gcc here")
def test_the_c_file_of_what_is_left_gives_the_integer_graph_to_the_bit(models, tmp_path):
    model, _ = models[3, 2]
    arch = arch_of(model, [1, 5, 4, 7, 1, 3, 6, 2])
    assert_c_is_exact(model, arch, SHAPE, tmp_path)


def test_a_network_of_ones_own_searches_its_channels_where_0_bits_are_asked_for():
    rules = Rules(channels=Channels(choices=2))
    asked = {"weights": [0, 4, 8], "last": 8}
    space = OwnNetwork(Skip().eval(), rules=rules, quantize=asked)
    model = space(SHAPE, 4)
    assert list(dict(decisions(model))) == [
        *("first.layer.channels", "first.weight_bits", "depthwise.weight_bits"),
        *("pointwise.weight_bits", "hidden.layer.channels", "hidden.weight_bits"),
    ]
    rows = space.converted(SHAPE).rows
    assert {row.decision for row in rows if row.decision} == {
        n for n, d in decisions(model) if isinstance(d, Width)
    }
    fixed = OwnNetwork(Skip().eval(), rules=rules, quantize={"weights": [4, 8]})(SHAPE, 4)
    assert not any(isinstance(d, Width) for _, d in decisions(fixed))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).reshape(*x.shape[:2], 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        found = (query @ key.transpose(2, 3)).softmax(-1) @ value
        return self.proj(found.transpose(1, 2).flatten(2))


REFUSED = {
    "no searched channels": (
        lambda: quantized(Skip(), Quantize(weights=(0, 8))),
        "quantize.weights has 0 bits, which leave a channel out",
    ),
    "0 alone": (lambda: Quantize(weights=0), "bits=0 is not one of"),
    "0 alone in a list": (lambda: Quantize(weights=[0]), "bits=0 is not one of"),
    "0 of a pattern": (lambda: Quantize(layers={"first": [0, 8]}), "quantize.layers"),
    "inputs of 0 bits": (lambda: Quantize(inputs=[0, 8]), "quantize.inputs: bits=0"),
    "a truth value": (lambda: Quantize(weights=[False, 8]), "bits=False is not one of"),
    "heads": (
        lambda: quantized(searchable(nn.Sequential(Attention()), (5, 8)), Quantize()),
        "0 has searched heads",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(case):
    assert_refused(*REFUSED[case])
