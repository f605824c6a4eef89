"""Channels, kernels, dilations and operations of one network, searched together."""

import random

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.arch import Arch
from nas.compress.convert import converted
from nas.compress.rules import Rules
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import Searchable, apply, decisions, free
from nas.discretization import discretize
from nas.errors import UserError

from .strategies import counted, randomized

KINDS = ("operation", "kernel", "dilation")


class Temporal(nn.Module):
    """A residual block of causal convolutions, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = self.row(4, 1)
        self.block = self.row(16, 2)
        self.head = nn.Linear(16, 5)
        self.input_shape = (4, 40)

    def row(self, inputs, step):
        pad, conv = nn.ConstantPad1d((4 * step, 0), 0.0), nn.Conv1d(inputs, 16, 5, dilation=step)
        return nn.Sequential(pad, conv, nn.BatchNorm1d(16), nn.ReLU())

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.block(x)).mean(-1))


@pytest.mark.parametrize("refit", [False, True])
def test_one_hot_is_the_plain_network_and_its_costs_are_exact(refit):
    torch.manual_seed(0)
    net = randomized(Temporal()).eval()
    x = torch.randn(3, *net.input_shape)
    rules = Rules(
        channels={"choices": 4},
        operations={"exclude": ["head"], "candidates": ["dw_pw"]},
        kernels={"refit": refit},
    )
    found = converted(net, net.input_shape, rules, [x])
    supernet = found.supernet
    assert [(row.layers, row.kind) for row in found.rows if row.decision] == [
        (("stem.1", "stem.2", "block.1", "block.2"), "channels"),
        *[((layer,), kind) for layer in ("stem.1", "block.1") for kind in KINDS],
    ]
    own = dict(decisions(supernet))
    traced = trace(supernet, net.input_shape)
    expected = {cost.name: ExpectedCost(supernet, cost, traced) for cost in (Params(), MACs())}
    peak, draw = PeakMemory().expected(supernet, traced), random.Random(0)
    for i in range(8):
        drawn = {name: draw.choice(d.options) for name, d in own.items()}
        largest = {name: d.options[-1] for name, d in own.items()}
        arch = Arch("Temporal", drawn if i else largest)
        network = discretize(supernet, arch)
        apply(supernet, arch)
        assert_close(supernet(x), network(x), rtol=0, atol=1e-5)
        assert i or torch.equal(net(x), network(x))
        assert i or list(network.state_dict()) == list(net.state_dict())
        assert not any(isinstance(module, Searchable) for module in network.modules())
        network.input_shape = net.input_shape
        assert {name: cost.of(arch.choices) for name, cost in expected.items()} == counted(network)
        exact = PeakMemory().expected(network, net.input_shape)().item()
        assert peak.of(arch.choices) == exact
    free(supernet)
    for _ in range(2):  # what a layer keeps between calls does not get into the way of the next
        supernet(x).square().sum().backward()
    assert all((decision.alpha.grad != 0).any() for decision in own.values())


def test_rules_speak_of_the_layers_that_were_given():
    net = Temporal().eval()
    rules = {"depth": {"include": ["block"], "exclude": ["stem"]}, "kernels": True}
    with pytest.raises(UserError, match=r"rules.kernels has no 'size', only \['include'"):
        Rules(kernels={"size": [3]})
    with pytest.raises(UserError, match=r"rules\.depth=3 must be true, null, or a mapping"):
        Rules(depth=3)
    with pytest.raises(UserError, match=r"no depth of Temporal can be searched: stem: .*shape"):
        converted(net, net.input_shape, Rules(channels=None, depth={"include": ["stem"]}))
    found = converted(net, net.input_shape, Rules(exclude=["block.1"], channels=True, **rules))
    assert {(row.layers[0], row.kind) for row in found.rows if row.decision} == {
        ("block", "depth"),
        *((layer, kind) for layer in ("stem.1", "block.1") for kind in KINDS[1:]),
    }
