"""Parameters and MACs of published networks, to the integer."""

from pathlib import Path

import pytest
import torch
import torchvision
import yaml

from nas.cost.analytic import FLOPs, MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.spaces.staged import StagedSpace

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


def test_proxyless_mobile_is_priced_as_a_member_of_its_space():
    path = Path(__file__).parents[2] / "configs" / "space" / "mobilenet.yaml"
    table = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = {key: value for key, value in table.items() if not key.startswith("_")}
    with torch.device("meta"):
        space = StagedSpace(SHAPE, 1000, **settings)
    member = {
        f"blocks.s{s}b{b}": kind if kind == "identity" else f"mb_{kind}"
        for s, kinds in enumerate(PROXYLESS_MOBILE, start=1)
        for b, kind in enumerate(kinds.split())
    }
    traced = trace(space, SHAPE)
    costs = [ExpectedCost(space, cost, traced).of(member) for cost in (Params(), MACs())]
    assert costs == [4_080_512, 320_427_584]
