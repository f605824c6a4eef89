"""A cost on activations is one class: traffic, against networks that are played node by node."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.cost.expected import ExpectedCost
from nas.cost.layer import LayerSpec
from nas.discretization import discretize
from nas.ops.blocks import FactorizedReduce
from nas.selection import largest_of, least_of
from nas.supernet.choice import ChoiceBlock

from .elastic_nets import drawn_archs, elastic_nets, searched_widths
from .reference_peak import Player
from .strategies import archs, probability, sample, some_archs, supernets
from .test_peak_memory import graphs, small


@dataclass(frozen=True)
class ActivationTraffic:
    """Bytes of all activations that operators read from memory, or write there."""

    bits: int = 32
    name: str = "activation_traffic"
    unit: str = "B"
    extra_kinds: ClassVar = ("read", "write")

    def __call__(self, layer: LayerSpec) -> float:
        return layer.numel * self.bits / 8 if layer.kind in self.extra_kinds else 0


def traffic(network: nn.Module, bits: int) -> float:
    """The same of a plain network, whose nodes read an activation once and write what they make."""
    player = Player(network)
    with torch.no_grad():
        player.run(sample(network))
    read = sum(player.sizes[b] for moment in player.moments for b in set(moment.reads))
    made = sum(player.sizes[b] for moment in player.moments for b in moment.makes)
    # In place: what it writes is what it reads.
    over = sum(player.sizes[b] for m in player.moments if not m.makes for b in set(m.reads))
    return (read + made + over) * bits / 8


def playable(net: nn.Module) -> bool:
    """torch.fx cannot follow a pad that depends on the shape, and does not show the copy that a
    candidate in place gets of its input.
    """
    modules = list(net.modules())
    in_place = any(getattr(module, "inplace", False) for module in modules)
    return not in_place and not any(isinstance(module, FactorizedReduce) for module in modules)


NETS = st.one_of(graphs(), supernets()).filter(playable)


def check_exact(net: nn.Module, chosen: list, bits: int = 32) -> None:
    expected = ExpectedCost(net, ActivationTraffic(bits), net.input_shape)
    for arch in chosen:
        network = discretize(net, arch)
        network.input_shape = net.input_shape
        assert expected.of(arch.choices) == traffic(network, bits)


@settings(max_examples=12)
@given(NETS, st.sampled_from([8, 32]))
def test_one_hot_traffic_is_that_of_the_extracted_network(net, bits):
    check_exact(net, some_archs(net, 4), bits)


@settings(max_examples=12)
@given(st.one_of(elastic_nets(resolution=False), searched_widths()))
def test_traffic_of_searched_numbers(net):
    check_exact(net, drawn_archs(net))


@settings(max_examples=6)
@given(NETS.filter(small))
def test_the_expected_traffic_is_the_mean_and_its_bounds_are_reached(net):
    expected = ExpectedCost(net, ActivationTraffic(), net.input_shape)
    values = {arch: expected.of(arch.choices) for arch in archs(net)}
    mean = sum(probability(net, arch) * value for arch, value in values.items())
    assert expected().item() == pytest.approx(mean)
    assert least_of(expected) == pytest.approx(min(values.values()))
    assert largest_of(expected) == pytest.approx(max(values.values()))


def test_its_gradient_moves_probability_to_the_candidate_that_moves_less():
    wide = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1))
    net = nn.Sequential(ChoiceBlock({"wide": wide, "plain": nn.Conv2d(4, 4, 1)}))
    expected = ExpectedCost(net, ActivationTraffic(), (4, 5, 5))
    expected().backward()
    assert net[0].alpha.grad[0] > 0 > net[0].alpha.grad[1]
    plain = 4 * 5 * 5 * 4
    assert expected.of({"0": "plain"}) == 2 * plain
    assert expected.of({"0": "wide"}) == 2 * plain + 8 * plain


def test_what_works_in_place_reads_and_writes_the_same_activation():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True), nn.Flatten())
    expected = ExpectedCost(net, ActivationTraffic(), (4, 5, 5))
    assert expected().item() == 2 * 2 * 4 * 5 * 5 * 4
