import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.testing import assert_close

from nas.decision import decisions, resample, split_parameters
from nas.discretization import discretize
from nas.errors import UserError
from nas.spaces.staged import StagedSpace
from nas.supernet import speed
from nas.supernet.choice import AuxiliarySkip, ChoiceBlock, Relaxing
from nas.supernet.edges import Node, StrongestEdges, pairs
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.relax import Shared, constant, linear_fade
from nas.supernet.speed import MEASURED, compiled, fastest, prepare, prepare_network
from nas.train import frozen

from .forward import Forward

STAGES = [
    {"ops": ["conv_k3", "conv_k5", "sep_k3"], "channels": 4, "stride": 2},
    {"ops": ["mb_k3_e3", "mb_k5_e3_se", "mb_k7_e6", "identity"], "channels": 4, "repeat": 2},
    {"ops": ["conv_k5", "mb_k7_e1", "ssep_k5"], "channels": 6, "stride": 2},
]


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    return StagedSpace((3, 8, 8), 5, STAGES)


def trained(net, x):
    """Output, every gradient and every buffer after a step in double precision's stead."""
    net = net.train()
    y = net(x)
    (y.square().sum() / len(x)).backward()
    grads = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return y.detach(), grads, dict(net.named_buffers()), net.eval()(x).detach()


@pytest.mark.parametrize("name", MEASURED[1:])
@pytest.mark.parametrize("path", [None, 0, 1, 2])
def test_every_speed_gives_the_same(supernet, name, path):
    x = torch.randn(16, 3, 8, 8)
    if path is not None:
        for _, decision in decisions(supernet):
            decision.choose(decision.options[path])
    other = copy.deepcopy(supernet)
    prepare(other, name)
    assert_close(trained(other, x), trained(supernet, x), rtol=1e-3, atol=1e-4)
    assert list(other.state_dict()) == list(supernet.state_dict())


def test_a_speed_can_be_taken_back(supernet):
    x = torch.randn(16, 3, 8, 8)
    other = copy.deepcopy(supernet)
    prepare(other, "channels_last")
    assert not other.blocks[0].candidates["conv_k3"][0].weight.is_contiguous()
    prepare(other, "none")
    ours, theirs = trained(other, x), trained(supernet, x)
    assert_close(ours, theirs, rtol=0, atol=0)


def test_measuring_leaves_no_trace(supernet):
    before, state = copy.deepcopy(supernet.state_dict()), torch.get_rng_state()
    best, seconds = fastest(supernet, torch.zeros(4, 3, 8, 8))
    assert best in MEASURED
    assert set(seconds) == set(MEASURED)
    assert_close(supernet.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in supernet.parameters())


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ((1.0, 0.99, 0.985), "none"),
        ((1.0, 0.9, 0.89), "kernels"),
        ((1.0, 0.9, 0.5), "channels_last"),
    ],
)
def test_a_later_speed_must_be_worth_it(supernet, monkeypatch, seconds, best):
    times = iter(s for s in seconds for _ in range(speed.STEPS + 1))
    monkeypatch.setattr(speed, "_seconds", lambda model, x: next(times))
    assert fastest(supernet, torch.zeros(4, 3, 8, 8))[0] == best


def test_a_speed_that_fails_is_not_chosen(supernet, monkeypatch):
    def fails(model, x):
        if any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters()):
            raise RuntimeError("no such layout")
        return 1.0

    monkeypatch.setattr(speed, "_seconds", fails)
    best, seconds = fastest(supernet, torch.zeros(4, 3, 8, 8))
    assert best == "none"
    assert "channels_last" not in seconds


def test_the_compiled_graph_is_used_where_every_candidate_runs(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda *x: used.append(1) or f(*x))
    used: list[int] = []
    block = ChoiceBlock({name: build(name, 3, 3) for name in ("conv_k3", "identity")})
    x = torch.randn(2, 3, 4, 4)
    compiled(block, x)
    block.train()(x)
    assert len(used) == 1
    block.eval()(x)
    block.train()(x[:1].expand(3, -1, -1, -1))
    block.choose("identity")
    block(x)
    assert len(used) == 1
    block.free()
    block(x)
    assert len(used) == 2
    assert copy.deepcopy(block)._compiled_call_impl is None


COMPILED = {
    "softmax": Relaxing("softmax", True, constant()),
    "sigmoid": Relaxing("sigmoid", False, constant()),
    "dirichlet": Relaxing("softmax", False, constant(), dirichlet=True),
    "skip": Relaxing("softmax", True, constant(), skip=linear_fade()),
}


class OneNode(nn.Module):
    """A node of a cell that chooses two of its edges, by alphas of its own or by theirs."""

    def __init__(self, derived: bool) -> None:
        super().__init__()
        ops = [ChoiceBlock([nn.Conv2d(3, 3, 1), nn.Identity()]) for _ in range(3)]
        self.lead = StrongestEdges(ops) if derived else Shared(pairs(3))
        self.node = Node(ops, self.lead)

    def forward(self, x):
        return self.node([x, 2 * x, -x]).mean((2, 3))


NODES = {"node": partial(OneNode, False), "strongest edges": partial(OneNode, True)}


@pytest.mark.parametrize("kind", [*COMPILED, *NODES])
def test_each_half_of_a_step_is_one_graph_whatever_changes(supernet, kind):
    torch.manual_seed(0)
    net = NODES[kind]() if kind in NODES else supernet
    COMPILED.get(kind, COMPILED["softmax"])(net)
    x, other, graphs = torch.randn(4, 3, 8, 8), copy.deepcopy(net), CompileCounter()
    torch._dynamo.reset()
    compiled(net, x, graphs)
    for seed, draw in enumerate([False, True, True]):
        found = []
        for model in (net, other):
            generator = torch.Generator().manual_seed(seed)
            for decision in dict(decisions(model)).values():
                decision.tau.fill_(1.0 + seed)
                if not decision.derived:
                    nn.init.normal_(decision.alpha, generator=generator)
            for skip in (m for m in model.modules() if isinstance(m, AuxiliarySkip)):
                skip.advance(seed / 3)
            if draw:
                resample(model, generator)
            for half in split_parameters(model):
                with frozen(half):
                    found.append(trained(model, x))
                    model.zero_grad()
        ours, theirs = found[:2], found[2:]
        assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    for batch in (3, 2, 5):
        trained(net, torch.randn(batch, 3, 8, 8))  # eager, as it is in evaluation
    assert graphs.frame_count == 2


@pytest.mark.slow
def test_a_compiled_step_is_an_eager_one():
    torch.manual_seed(0)
    net = nn.Sequential(
        ChoiceBlock({name: build(name, 3, 3) for name in ("conv_k3", "identity")}), nn.Flatten()
    )
    x, other = torch.randn(8, 3, 4, 4), copy.deepcopy(net)
    prepare(other, "compile")
    compiled(other, x)
    assert_close(trained(other, x), trained(net, x), rtol=1e-3, atol=1e-4)


def test_an_unknown_speed_is_refused():
    with pytest.raises(UserError, match="fast"):
        speed.check("fast")


def test_a_network_alone_runs_with_channels_last_where_it_can(supernet):
    x = torch.randn(16, 3, 8, 8)
    network = discretize(supernet)
    other = copy.deepcopy(network)
    prepare_network(other, "kernels", x)
    convolution = next(m for m in other.modules() if isinstance(m, nn.Conv2d))
    assert not convolution.weight.is_contiguous()
    assert_close(trained(other, x), trained(network, x), rtol=1e-3, atol=1e-4)

    views = Forward(lambda self, x: self.conv(x).view(len(x), -1), conv=nn.Conv2d(3, 4, 3))
    asked = copy.deepcopy(network)
    for model, name in ((views, "kernels"), (nn.Conv3d(3, 2, 1), "kernels"), (asked, "none")):
        prepare_network(model, name, x if model is not views else x[:2])
        assert all(p.is_contiguous() for p in model.parameters())
        assert not model._forward_pre_hooks
    views(x)
