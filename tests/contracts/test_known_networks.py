"""Parameters and MACs of published networks, to the integer."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch.utils.flop_counter import FlopCounterMode

from nas.arch import Arch
from nas.cost.analytic import FLOPs, MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import Trace, trace
from nas.decision import decisions
from nas.discretization import arch_of, discretize
from nas.objective import Plain
from nas.search.proxyless import ProxylessSearch
from nas.search.reinforce import ReinforceSearch
from nas.spaces.staged import StagedSpace
from nas.supernet.proxyless import TwoPaths, draw_mixing, draw_path, mixing

SHAPE = (3, 224, 224)
KNOWN = {
    "mobilenet_v2": (3_504_872, 300_774_272),
    "mnasnet1_0": (4_383_312, 314_415_872),
    "shufflenet_v2_x1_0": (2_278_604, 144_907_992),
    "resnet18": (11_689_512, 1_814_073_344),
    "efficientnet_b0": (5_288_548, 385_814_752),
}
# Kernel and expansion of each block; "identity" is a removed one.
PROXYLESS_MOBILE = [
    "k5_e3 k3_e3 identity identity",
    "k7_e3 k3_e3 k5_e3 k5_e3",
    "k7_e6 k5_e3 k5_e3 k5_e3",
    "k5_e6 k5_e3 k5_e3 k5_e3",
    "k7_e6 k7_e6 k7_e3 k7_e3",
    "k7_e6",
]


@pytest.mark.parametrize("name", KNOWN)
def test_torchvision(name):
    with torch.device("meta"):
        network = getattr(torchvision.models, name)(weights=None)
    traced = trace(network, SHAPE)
    params, macs, flops = (ExpectedCost(network, c, traced)() for c in (Params(), MACs(), FLOPs()))
    assert (params.item(), macs.item()) == KNOWN[name]
    assert flops.item() == 2 * KNOWN[name][1]


@pytest.fixture(scope="module")
def space() -> StagedSpace:
    """The space of `mobilenet.yaml`, without memory or arithmetic."""
    path = Path(__file__).parents[2] / "configs" / "space" / "mobilenet.yaml"
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = {key: value for key, value in table.items() if not key.startswith("_")}
    with torch.device("meta"):
        return StagedSpace(SHAPE, 1000, **settings)


@pytest.fixture(scope="module")
def traced(space) -> Trace:
    return trace(space, SHAPE)


MEMBER = {
    f"blocks.s{s}b{b}": kind if kind == "identity" else f"mb_{kind}"
    for s, kinds in enumerate(PROXYLESS_MOBILE, start=1)
    for b, kind in enumerate(kinds.split())
}
PROXYLESS_COSTS = [4_080_512, 320_427_584]


def test_proxyless_mobile_is_priced_as_a_member_of_its_space(space, traced):
    costs = [ExpectedCost(space, cost, traced).of(MEMBER) for cost in (Params(), MACs())]
    assert costs == PROXYLESS_COSTS


def test_proxyless_mobile_is_built_as_a_member_of_its_space(space):
    network = discretize(space, Arch(space.name, MEMBER)).eval()
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *SHAPE))
    params = sum(p.numel() for p in network.parameters())
    assert [params, counter.get_total_flops() // 2] == PROXYLESS_COSTS


def decided(space: StagedSpace) -> StagedSpace:
    """A copy with memory, whose alphas leave no doubt."""
    net = copy.deepcopy(space).to_empty(device="cpu")
    for name, block in decisions(net):
        block.free()
        block.tau.fill_(1.0)
        taken = torch.tensor([option == MEMBER[name] for option in block.options])
        block.alpha.data = 60.0 * taken
    return net


def test_the_searches_on_sampled_paths_hold_proxyless_mobile(space, traced):
    net = decided(space)
    costs = {cost.name: ExpectedCost(net, cost, traced) for cost in (Params(), MACs())}
    for kind in (ProxylessSearch, ReinforceSearch):
        kind(
            supernet=net,
            costs=costs,
            objective=Plain(),
            weight_optimizer=partial(torch.optim.SGD, lr=0.1),
            alpha_optimizer=torch.optim.Adam,
            epochs=1,
        )
        # The path of a weight step.
        draw_path(net, torch.Generator().manual_seed(0))
        assert [cost().item() for cost in costs.values()] == PROXYLESS_COSTS
        assert arch_of(net).choices == MEMBER
    # The distribution that an alpha step is priced by.
    with mixing(net, draw_mixing(net, TwoPaths.draw, torch.Generator().manual_seed(0))):
        found = [cost().item() for cost in costs.values()]
    assert found == pytest.approx(PROXYLESS_COSTS, rel=1e-9)
