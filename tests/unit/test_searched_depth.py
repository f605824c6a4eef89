"""Blocks of a trained network that may go, and sizes of its input."""

from itertools import product

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.compress.convert import converted
from nas.compress.depth import (
    Depth,
    First,
    Resolution,
    depth_found,
    searched_depth,
    searched_resolution,
)
from nas.compress.rules import Channels, Rules
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import apply, decisions
from nas.discretization import discretize
from nas.errors import UserError

from ..contracts.strategies import counted, randomized


class Residual(nn.Module):
    """A block that adds its input to its branch, before or behind an activation or a gate."""

    def __init__(self, branch, kind="post"):
        super().__init__()
        self.branch, self.kind, self.relu = branch, kind, nn.ReLU(inplace=True)
        self.norm = nn.LayerNorm(6) if kind == "norm" else nn.Identity()

    def forward(self, x, scale=1.0):
        if self.kind == "pre":
            return x + self.branch(x.relu())
        if self.kind == "gate":
            return x * self.branch(x).sigmoid()
        if self.kind == "norm":
            return self.norm(x + self.branch(x))
        return self.relu(scale * self.branch(x) + x)


def conv():
    return nn.Conv2d(4, 4, 3, padding=1)


@pytest.mark.parametrize(
    ("kind", "residual"), [("post", True), ("pre", True), ("norm", True), ("gate", False)]
)
def test_blocks_that_add_their_input_are_found(kind, residual):
    net = nn.Sequential(conv(), Residual(conv(), kind), conv(), nn.ReLU())
    assert [f.name for f in depth_found(net, (4, 6, 6))] == ["1"] * residual
    frozen = net.requires_grad_(False).train()
    assert len(depth_found(frozen, (4, 6, 6))) == residual
    mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))
    blocks = nn.Sequential(Residual(nn.Sequential(mlp, nn.Dropout())))
    assert [f.name for f in depth_found(blocks, (5, 6))] == ["0"]
    assert frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_the_innermost_are_found_and_named_ones_need_only_keep_the_shape():
    rows = nn.Sequential(nn.Sequential(Residual(conv()), Residual(conv())), conv(), nn.MaxPool2d(2))
    assert [f.name for f in depth_found(rows, (4, 6, 6))] == ["0.0", "0.1"]
    found = {f.name: f for f in depth_found(rows, (4, 6, 6), Depth(include=["?", "0.1"]))}
    assert {name for name, f in found.items() if f.options} == {"0", "1", "0.1"}
    assert found["2"].why_not == "it has no weights"
    rule = Depth(include=["Conv2d"], exclude=["0*"])
    assert [f.name for f in depth_found(rows, (4, 6, 6), rule)] == ["1"]
    shrinking = nn.Sequential(nn.Conv2d(4, 4, 3))
    (row,) = depth_found(shrinking, (4, 6, 6), Depth(include=["0"]))
    assert "another shape" in row.why_not


class Net(nn.Module):
    """Blocks of which one is called twice, and one takes a number."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = conv(), nn.Linear(4, 3)
        self.first, self.again = (
            Residual(conv()),
            Residual(nn.Sequential(conv(), nn.BatchNorm2d(4))),
        )

    def forward(self, x):
        x = self.first(self.stem(x), scale=0.5)
        return self.head(self.again(self.again(x)).mean((2, 3)))


@pytest.mark.parametrize("channels", [False, True])
def test_one_hot_is_the_plain_network_and_its_costs_are_exact(channels):
    torch.manual_seed(0)
    net, shape = randomized(Net()).eval(), (4, 6, 6)
    supernet, x = searched_depth(net, shape), torch.randn(2, *shape)
    assert [name for name, _ in decisions(supernet)] == ["first", "again"]
    assert isinstance(supernet.first.candidates["identity"], First)
    assert isinstance(supernet.again.candidates["identity"], nn.Identity)
    supernet = searched_resolution(supernet, shape, Resolution([3]))
    if channels:
        supernet = converted(supernet, shape, Rules(channels=Channels(choices=2))).supernet
    own = {name: d.options for name, d in decisions(supernet)}
    assert len(own) == 3 + channels
    traced = trace(supernet, shape)
    expected = {cost.name: ExpectedCost(supernet, cost, traced) for cost in (Params(), MACs())}
    peak = PeakMemory().expected(supernet, traced)
    for taken in product(*own.values()):
        arch = Arch("Net", dict(zip(own, taken, strict=True)))
        network = discretize(supernet, arch)
        apply(supernet, arch)
        assert torch.allclose(supernet(x), network(x), atol=1e-6)
        network.input_shape = shape
        assert {n: cost.of(arch.choices) for n, cost in expected.items()} == counted(network)
        assert peak.of(arch.choices) == PeakMemory().expected(network, shape)().item()
    largest = {n: options[-1] for n, options in own.items()}
    assert torch.equal(discretize(supernet, Arch("Net", largest))(x), net(x))


class Peeking(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Residual(conv())

    def forward(self, x):
        return self.block(x) + self.block.kind.count("x")


def test_what_cannot_go_is_said():
    with pytest.raises(UserError, match="exclude those of block that it does it with: Attribute"):
        searched_depth(Peeking(), (4, 6, 6))
    with pytest.raises(UserError, match="Sequential does not run at size 3, leave it out"):
        searched_resolution(nn.Sequential(nn.Flatten(), nn.Linear(144, 2)), (4, 6, 6))
    with pytest.raises(UserError, match="one square image or one sequence"):
        searched_resolution(nn.Conv2d(4, 4, 1), (4, 6, 7))
    with pytest.raises(UserError, match="8 is larger than the input's 6"):
        searched_resolution(conv(), (4, 6, 6), Resolution([8]))
