"""Kernels and dilations of a trained network: masks equal plain layers, at their exact cost."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nas.arch import Arch
from nas.compress.kernels import Kernels, kernels_found, searched_kernels
from nas.compress.taps import Dilation, ElasticTaps, dilations, kept, windows
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import Searchable, apply, decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.supernet.elastic import Elastic
from nas.supernet.relax import straight_through

from ..contracts.strategies import counted

PAIRS = [(rf, causal) for rf in range(2, 18) for causal in (False, True)]


@pytest.mark.parametrize(("field", "causal"), PAIRS)
def test_some_tap_is_left_whatever_is_taken_and_all_are_the_given_layer(field, causal):
    for window, dilation in product(range(1, field + 1), (1, 2, 4, 8, 16)):
        taps = kept(field, window, dilation, causal)
        assert taps
        assert 0 <= taps[0] <= taps[-1] < field
        assert not causal or taps[-1] == field - 1
    assert kept(field, field, 1, causal) == list(range(field))
    assert windows(field, causal)[-1] == field
    assert all(len(kept(field, field, d, causal)) > 1 or d == 1 for d in dilations(field, causal))


def number(kind, options):
    return kind(options) if len(options) > 1 else options[0]


@pytest.mark.parametrize(("field", "causal"), PAIRS)
def test_each_masked_convolution_is_the_plain_one_of_its_taps(field, causal):
    torch.manual_seed(field)
    pads = [
        (1, 1, 0, ()),
        (1, 2, 0, (2 * (field - 1), 0)),
        (2, 1, field // 2, ()),
        (1, 3, "same", ()),
    ]
    for stride, step, padding, before in pads:
        conv = nn.Conv1d(4, 6, field, stride, padding, step, groups=2)
        sizes, steps = windows(field, causal), dilations(field, causal)
        net = nn.Sequential(
            ElasticTaps(conv, number(Elastic, sizes), number(Dilation, steps), causal, before)
        )
        x = torch.randn(2, 4, 50)
        led = F.pad(x, before)
        for window, dilation in product(sizes, steps):
            taken = {"0.kernel": window, "0.dilation": dilation}
            arch = Arch("Sequential", {n: taken[n] for n, _ in decisions(net)})
            apply(net, arch)
            y, plain = net(x), discretize(net, arch)
            assert torch.equal(y, plain(x))
            mask = torch.zeros(field)
            mask[kept(field, window, dilation, causal)] = 1
            padded = F.pad(led, conv._reversed_padding_repeated_twice)
            masked = F.conv1d(padded, conv.weight * mask, conv.bias, stride, 0, step, 2)
            assert_close(y, masked, rtol=1e-5, atol=1e-5)
            if window == field and dilation == 1:
                assert torch.equal(y, conv(led))


@pytest.mark.parametrize("relax", [None, straight_through])
def test_under_soft_thetas_the_output_is_the_mean_of_the_networks(relax):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (5, 3), padding=(2, 1))
    taps = ElasticTaps(conv, Elastic([1, 3, 5]))
    taps.kernel.alpha.data = torch.tensor([0.3, -0.2, 0.4])
    if relax is not None:
        taps.kernel.relax = relax
    x, theta = torch.randn(2, 3, 7, 7), taps.kernel.theta
    outs = []
    for size in (1, 3, 5):
        plain = taps.materialize({taps.kernel: size})
        assert plain.kernel_size == (size, min(size, 3))
        outs.append(plain(x))
    y = taps(x)
    assert_close(y, sum(share * out for share, out in zip(theta, outs, strict=True)))
    y.square().sum().backward()
    assert (taps.kernel.alpha.grad != 0).all()


class Chomp(nn.Module):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x):
        return x[..., : -self.count]


@st.composite
def nets(draw):
    """Small networks with padding before a convolution, around it, and cut off behind it."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    if draw(st.booleans()):
        sizes = draw(st.sampled_from([(3, 5), (5, (3, 5)), (2, 7), (3, 3)]))
        layers, shape = (
            [nn.Conv2d(2, 4, sizes[0], padding="same"), nn.BatchNorm2d(4), nn.ReLU()],
            (2, 9, 8),
        )
        stride, groups = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 4]))
        layers += [nn.Conv2d(4, 4, sizes[1], stride, 2, groups=groups)]
    else:
        first, second, step = draw(st.sampled_from([(3, 5, 1), (9, 4, 2), (2, 8, 1)]))
        reach, shape = (second - 1) * step, (2, 40)
        layers = [nn.ConstantPad1d((first - 1, 0), 0.0), nn.Conv1d(2, 4, first), nn.ReLU()]
        behind = draw(st.booleans())
        conv = nn.Conv1d(4, 4, second, padding=reach if behind else "same", dilation=step)
        layers += [conv, *([Chomp(reach)] if behind else [])]
    layers += [nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)]
    net = nn.Sequential(*layers).eval()
    net(torch.zeros(1, *shape))
    return net, shape


@settings(max_examples=12, deadline=None)
@given(nets(), st.integers(0, 2**16))
def test_one_hot_is_the_plain_network_and_its_costs_are_exact(made, seed):
    net, shape = made
    x = torch.randn(2, *shape)
    supernet, generator = searched_kernels(net, shape), torch.Generator().manual_seed(seed)
    traced = trace(supernet, shape)
    expected = {cost.name: ExpectedCost(supernet, cost, traced) for cost in (Params(), MACs())}
    peak = PeakMemory().expected(supernet, traced)
    own = dict(decisions(supernet))
    assert own
    for i in range(3):
        pick = [int(torch.randint(len(d.options), (), generator=generator)) for d in own.values()]
        taken = {n: d.options[k if i else -1] for (n, d), k in zip(own.items(), pick, strict=True)}
        arch = Arch("Sequential", taken)
        network = discretize(supernet, arch)
        apply(supernet, arch)
        assert torch.equal(supernet(x), network(x))
        assert i or torch.equal(net(x), network(x))
        assert not any(isinstance(module, Searchable) for module in network.modules())
        network.input_shape = shape
        assert {name: cost.of(taken) for name, cost in expected.items()} == counted(network)
        assert peak.of(taken) == PeakMemory().expected(network, shape)().item()


class Led(nn.Module):
    """Pads in its forward pass, as many TCNs do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 3, 5, dilation=2)

    def forward(self, x):
        return self.conv(F.pad(x, (8, 0)))


def test_which_tap_stays_is_read_off_the_padding_or_the_data():
    for net, causal in (
        (Led(), True),
        (nn.Sequential(nn.ConstantPad1d((8, 0), 0.0), nn.Conv1d(2, 3, 5, dilation=2)), True),
        (nn.Sequential(nn.Conv1d(2, 3, 5, padding=4), Chomp(4)), True),
        (nn.Sequential(nn.Conv1d(2, 3, 5, padding=2)), False),
        (nn.Sequential(nn.Conv1d(2, 3, 5)), False),
    ):
        supernet = searched_kernels(net, (2, 30))
        (taps,) = (m for m in supernet.modules() if isinstance(m, ElasticTaps))
        assert taps.causal is causal
    rule = Kernels(causal=True, sizes=[2, 4], dilations=[3])
    supernet = searched_kernels(nn.Sequential(nn.Conv1d(2, 3, 5)), (2, 30), rule)
    assert [d.options for _, d in decisions(supernet)] == [(2, 4, 5), (3, 1)]


def test_the_given_network_is_left_alone_and_modes_and_frozen_weights_are_kept():
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout()).train()
    net[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    supernet = searched_kernels(net, (2, 8, 8))
    supernet[0].kernel.choose(1)
    network = discretize(supernet)
    assert network.training
    assert [p.requires_grad for p in network[0].parameters()] == [False, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert list(network.state_dict()) == list(net.state_dict())


def test_what_cannot_lose_taps_is_said_of_what_is_named():
    net = nn.Sequential(
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(2, 2, 4, stride=4),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 3)),
        nn.Conv2d(2, 2, 3),
    )
    found = {f.name: f for f in kernels_found(net, (2, 40, 40), Kernels(include=["[0-3]"]))}
    assert found["3"].options == (1, 3)
    said = [found[name].why_not for name in "012"]
    assert ["padding_mode" in said[0], "overlap" in said[1], "parametriz" in said[2]] == [True] * 3
    assert [f.name for f in kernels_found(net, (2, 40, 40))] == ["3"]
    with pytest.raises(UserError, match="padding_mode"):
        ElasticTaps(net[0], Elastic([1, 3]))
    with pytest.raises(UserError, match=r"falling order, e.g. \[4, 2, 1\], got \[1, 2\]"):
        Dilation([1, 2])
    with pytest.raises(UserError, match="last kernel"):
        ElasticTaps(net[3], Elastic([1, 2]))
