"""Identities 1 to 4 of the design, on drawn supernets and against independent counters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import apply, decisions, free, resample
from nas.discretization import arch_of, discretize
from nas.supernet.relax import softmax, straight_through

from .strategies import all_counted, counted, probability, sample, some_archs, supernets

COSTS = (Params(), MACs())


@settings(max_examples=25)
@given(supernets(), st.sampled_from([softmax, straight_through]))
def test_one_hot_supernet_is_the_extracted_network(net, relax):
    x = sample(net, batch=2)
    for _, decision in decisions(net):
        decision.relax = relax
    for arch in some_archs(net):
        network = discretize(net, arch)
        apply(net, arch)
        assert torch.equal(net(x), network(x))
        assert not any(decisions(network))


@settings(max_examples=25)
@given(supernets())
def test_one_hot_cost_is_that_of_the_extracted_network(net):
    expected = {cost.name: ExpectedCost(net, cost, trace(net, net.input_shape)) for cost in COSTS}
    for arch in some_archs(net):
        apply(net, arch)
        exact = counted(discretize(net, arch))
        assert {name: cost().item() for name, cost in expected.items()} == exact
        assert {name: cost.of(arch.choices) for name, cost in expected.items()} == exact


@settings(max_examples=12)
@given(supernets())
def test_the_cost_of_a_plain_network_is_exact(net):
    network = discretize(net)
    for cost in COSTS:
        value = ExpectedCost(network, cost, net.input_shape)().item()
        assert value == counted(network)[cost.name]


@settings(max_examples=12)
@given(supernets())
def test_expected_cost_is_the_mean_over_all_architectures(net):
    exact = all_counted(net)
    for cost in COSTS:
        mean = sum(probability(net, arch) * costs[cost.name] for arch, costs in exact.items())
        expected = ExpectedCost(net, cost, net.input_shape)().item()
        assert expected == pytest.approx(mean, rel=1e-6)


@settings(max_examples=12)
@given(supernets())
def test_the_penalty_moves_every_alpha_to_the_cheaper_option(net):
    exact = all_counted(net)
    for cost in COSTS:
        net.zero_grad()
        ExpectedCost(net, cost, net.input_shape)().backward()
        for name, decision in decisions(net):
            means = torch.tensor(conditional_means(net, exact, name, cost.name)).double()
            theta = softmax(decision.alpha.detach().double())
            # d/dalpha_k of sum_j theta_j c_j
            gradient = theta * (means - theta @ means)
            tolerance = 1e-6 * float(means.max())
            assert_close(decision.alpha.grad.double(), gradient, rtol=1e-4, atol=tolerance)
            if float(means.max() - means.min()) > 1e3 * tolerance:
                assert decision.alpha.grad[means.argmin()] < 0 < decision.alpha.grad[means.argmax()]


def conditional_means(
    net: nn.Module, exact: dict[Arch, dict[str, int]], name: str, cost: str
) -> list[float]:
    """Mean cost given each option of the decision `name`."""
    means = []
    for option in dict(decisions(net))[name].options:
        taken = {a: probability(net, a) for a in exact if a.choices[name] == option}
        total = sum(p * exact[a][cost] for a, p in taken.items())
        means.append(total / sum(taken.values()))
    return means


@pytest.mark.parametrize("gumbel", [False, True])
@settings(max_examples=10)
@given(net=supernets(nested=False, shared=False))
def test_the_penalty_of_a_hard_sample_moves_alphas_to_the_cheaper_option(gumbel, net):
    for _, decision in decisions(net):
        decision.relax, decision.gumbel = straight_through, gumbel
    resample(net)
    exact = all_counted(net)
    ExpectedCost(net, Params(), net.input_shape)().backward()
    for name, decision in decisions(net):
        here = {a.choices[name]: costs["params"] for a, costs in exact.items()}
        order = sorted(here, key=here.get)
        gradient = dict(zip(decision.options, decision.alpha.grad.tolist(), strict=True))
        assert here[order[0]] == here[order[-1]] or gradient[order[0]] < 0 < gradient[order[-1]]


@settings(max_examples=15)
@given(supernets(), st.integers(0, 2**16))
def test_a_hard_sample_costs_what_it_runs(net, seed):
    for _, decision in decisions(net):
        decision.relax, decision.gumbel = straight_through, True
    expected = {cost.name: ExpectedCost(net, cost, net.input_shape) for cost in COSTS}
    resample(net, torch.Generator().manual_seed(seed))
    drawn = {n: d.options[int(d.theta.argmax())] for n, d in decisions(net)}
    network = discretize(net, Arch("Net", drawn))
    x = sample(net)
    assert torch.equal(net(x), network(x))
    assert {name: cost().item() for name, cost in expected.items()} == counted(network)


@settings(max_examples=10)
@given(supernets())
def test_without_an_arch_the_largest_alphas_are_taken(net):
    taken = discretize(net)
    best = {n: d.options[int(d.alpha.argmax())] for n, d in decisions(net)}
    apply(net, Arch("Net", best))
    x = sample(net)
    assert torch.equal(taken(x), net(x))
    free(net)
    assert arch_of(net).choices == best
