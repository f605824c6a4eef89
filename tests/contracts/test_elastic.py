"""Elastic supernets: one-hot exact in output, cost and memory; soft is the mixture."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import Searchable, apply, decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.ops.blocks import Site
from nas.supernet.elastic import Elastic
from nas.supernet.elastic_layers import ElasticConv, ElasticDepthwise
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.elastic_ops import sort_channels
from nas.supernet.relax import softmax, straight_through

from .elastic_nets import drawn_archs, elastic_nets
from .strategies import archs, counted, probability, randomized, sample
from .test_spaces import built


@st.composite
def possible(draw, **options):
    """Tables that a space accepts: plain ops may not follow searched channels."""
    try:
        return draw(elastic_nets(**options))
    except UserError as error:
        assert "cannot be searched" in str(error)  # noqa: PT017
        assume(False)


@settings(max_examples=20)
@given(possible(), st.sampled_from([softmax, straight_through]))
def test_one_hot_supernet_is_the_extracted_network(net, relax):
    x = sample(net, batch=2)
    for _, decision in decisions(net):
        decision.relax = relax
    own = {id(tensor) for tensor in (*net.parameters(), *net.buffers())}
    for arch in drawn_archs(net):
        network = discretize(net, arch)
        apply(net, arch)
        assert torch.equal(net(x), network(x))
        assert not any(isinstance(module, Searchable) for module in network.modules())
        shared = {id(tensor) for tensor in (*network.parameters(), *network.buffers())} & own
        assert not shared
        assert not network.training


@settings(max_examples=10)
@given(possible())
def test_one_hot_costs_are_those_of_the_extracted_network(net):
    traced = trace(net, net.input_shape)
    expected = {cost.name: ExpectedCost(net, cost, traced) for cost in (Params(), MACs())}
    peak = PeakMemory().expected(net, traced)
    for arch in drawn_archs(net):
        apply(net, arch)
        network = discretize(net, arch)
        exact = counted(network)
        assert {name: cost().item() for name, cost in expected.items()} == exact
        assert {name: cost.of(arch.choices) for name, cost in expected.items()} == exact
        alone = PeakMemory().expected(network, network.input_shape)
        assert peak.of(arch.choices) == alone().item()


def block() -> nn.Module:
    """Stem, elastic block of searched width, head: 2 * 2 * 2 * 3 architectures."""
    width = Elastic([4, 6])
    wide = Elastic([3, 5, 8])
    net = nn.Sequential(
        ElasticConv(Site(2, width, activation="relu"), 3),
        build("elastic_k5_e4_se", width, wide, 1),
        ElasticConv(Site(wide, 3, activation="silu"), 1),
    )
    net.input_shape = (2, 6, 5)
    return randomized(net).eval()


def test_expected_cost_is_the_mean_over_all_architectures_and_moves_alphas():
    net = block()
    exact = {arch: counted(discretize(net, arch)) for arch in archs(net)}
    assert len(exact) == 24
    for cost in (Params(), MACs()):
        expected = ExpectedCost(net, cost, net.input_shape)
        mean = sum(probability(net, arch) * costs[cost.name] for arch, costs in exact.items())
        assert expected().item() == pytest.approx(mean, rel=1e-6)
        net.zero_grad()
        expected().backward()
        for _, decision in decisions(net):
            assert decision.alpha.grad[0] < 0 < decision.alpha.grad[-1]


@given(st.sampled_from([1, 2]), st.integers(0, 2**16))
@settings(max_examples=10)
def test_a_soft_kernel_is_the_mean_of_the_kernels(ndim, seed):
    torch.manual_seed(seed)
    op = ElasticDepthwise(4, Elastic([3, 5, 7]), 2, ndim)
    for transform in op.transforms.values():
        nn.init.normal_(transform)
    nn.init.normal_(op.kernel.alpha)
    x = torch.randn(2, 4, *[9] * ndim)
    for channels in (4, 3):
        part = x[:, :channels]
        terms = [
            t * op.plain(k, channels)(part) for t, k in zip(op.kernel.theta, (3, 5, 7), strict=True)
        ]
        assert_close(op(part), sum(terms), rtol=1e-4, atol=1e-4)


def test_a_smaller_kernel_is_the_centre_of_the_transformed_larger_one():
    op = ElasticDepthwise(2, Elastic([3, 5, 7]), 1, 2)
    assert sum(p.numel() for p in op.transforms.values()) == 706
    seven = op.conv.weight
    # At the start the transforms are identities.
    assert torch.equal(op.plain(5, 2).weight, seven[..., 1:-1, 1:-1])
    assert torch.equal(op.plain(3, 2).weight, seven[..., 2:-2, 2:-2])
    nn.init.normal_(op.transforms["to5"])
    nn.init.normal_(op.transforms["to3"])
    five = (seven[..., 1:-1, 1:-1].reshape(2, 25) @ op.transforms["to5"].T).view(2, 1, 5, 5)
    three = (five[..., 1:-1, 1:-1].reshape(2, 9) @ op.transforms["to3"].T).view(2, 1, 3, 3)
    assert_close(op.plain(5, 2).weight.data, five.data)
    assert_close(op.plain(3, 2).weight.data, three.data)


def test_a_soft_expansion_is_the_mean_of_the_expansions():
    net = randomized(build("elastic_k3_e6", 4, 4)).eval()  # no activation after the mask
    x = torch.randn(2, 4, 5, 5)
    theta, terms = net.expand.theta, []
    for index, option in enumerate(net.expand.options):
        terms.append(theta[index] * net.materialize({net.expand: option})(x))
    assert_close(net(x), sum(terms), rtol=1e-4, atol=1e-5)


@settings(max_examples=8)
@given(possible())
def test_sorting_leaves_the_largest_network_as_it_was(net):
    x, largest = sample(net, batch=2), drawn_archs(net)[1]
    apply(net, largest)
    before = net(x)
    sort_channels(net)
    assert_close(net(x), before, rtol=1e-5, atol=1e-5)
    for module in net.modules():
        if hasattr(module, "projection"):
            weight = module.projection.weight
            sums = weight.detach().abs().transpose(0, 1).flatten(1).sum(1)
            assert torch.equal(sums, sums.sort(descending=True).values)


def saved_activations(network: nn.Module, x: torch.Tensor) -> int:
    """Bytes kept for the backward pass that depend on the batch."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim > 1 and tensor.shape[0] == len(x):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        held = network(x)
    assert held.requires_grad
    return sum(kept.values())


def test_a_small_network_keeps_no_memory_of_the_largest():
    net = built("ofa_mobilenet_small", (3, 16, 16), all_stages=True).train()
    x = torch.randn(11, 3, 16, 16)
    sizes = []
    for _, decision in decisions(net):
        decision.alpha.requires_grad_(False)
    for k in (0, -1):
        arch = Arch(net.name, {name: d.options[k] for name, d in decisions(net)})
        network = discretize(net, arch)
        apply(net, arch)
        sizes.append(saved_activations(network, x))
        assert saved_activations(net, x) == sizes[-1]
    assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.parametrize("pick", [0, 1])
def test_a_hard_sample_runs_its_slice_and_has_gradients(pick):
    net = block()
    for _, decision in decisions(net):
        decision.relax = straight_through
        decision.alpha.data = torch.eye(len(decision.options))[pick]
    x = sample(net)
    arch = Arch("Sequential", {n: d.options[pick] for n, d in decisions(net)})
    y = net(x)
    assert torch.equal(y, discretize(net, arch)(x))
    y.square().sum().backward()
    size = {n: float(d.alpha.grad.abs().sum()) for n, d in decisions(net)}
    moved = {name for name, value in size.items() if value > 1e-3 * size["1.kernel"]}
    # The least width is in every other one: alone it tells nothing of those.
    assert moved == ({"1.kernel"} if pick == 0 else size.keys())
    inputs, hidden = ((4, 12), (6, 24))[pick]
    grad = net[1].expansion.weight.grad
    assert grad[:hidden, :inputs].abs().sum() > 0
    assert not grad[hidden:].any()
    assert not grad[:, inputs:].any()


def test_the_published_space_has_the_published_counts():
    with torch.device("meta"):
        net = built("ofa_mobilenet", (3, 224, 224), all_stages=True).eval()
        net.classifier = nn.Linear(1280, 1000)
        largest = Arch(net.name, {name: d.options[-1] for name, d in decisions(net)})
        exact = counted(discretize(net, largest))
    assert exact == {"params": 7_664_760, "macs": 566_170_656}
    alphas = {id(d.alpha) for _, d in decisions(net)}
    stored = sum(p.numel() for p in net.parameters() if id(p) not in alphas)
    assert stored - exact["params"] == 20 * 706 == 14_120
    assert len(alphas) == 45
