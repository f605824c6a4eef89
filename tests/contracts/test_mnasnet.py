"""The space of MnasNet: its published members, and layers that share what their stage chooses."""

import itertools
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import apply, decisions, free, split_parameters
from nas.discretization import discretize
from nas.errors import UserError
from nas.spaces.staged import StagedSpace

from .strategies import counted, randomized

SHAPE = (3, 224, 224)
# Of each stage: op, kernel, squeeze-and-excitation, channels, layers.
B1 = [
    ("sep", 3, False, 16, 1),
    ("mb3", 3, False, 24, 3),
    ("mb3", 5, False, 40, 3),
    ("mb6", 5, False, 80, 3),
    ("mb6", 3, False, 96, 2),
    ("mb6", 5, False, 192, 4),
    ("mb6", 3, False, 320, 1),
]
A1 = [
    ("sep", 3, False, 16, 1),
    ("mb6", 3, False, 24, 2),
    ("mb3", 5, True, 40, 3),
    ("mb6", 3, False, 80, 4),
    ("mb6", 3, True, 112, 2),
    ("mb6", 5, True, 160, 3),
    ("mb6", 3, False, 320, 1),
]
B1_COSTS = {"params": 4_383_312, "macs": 314_415_872}  # torchvision's mnasnet1_0


def table(name: str) -> dict:
    path = Path(__file__).parents[2] / "configs" / "space" / f"{name}.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {key: value for key, value in settings.items() if not key.startswith("_")}


def member(stages: list[tuple]) -> Arch:
    choices: dict[str, str | int] = {}
    for s, (op, kernel, se, channels, depth) in enumerate(stages):
        own = {"op": op, "kernel": f"k{kernel}", "se": "se" if se else "plain"}
        own |= {"skip": "identity", "channels": channels, "depth": depth}
        choices |= {f"shared.s{s}.{key}": option for key, option in own.items()}
    return Arch("mnasnet", choices)


@pytest.fixture(scope="module")
def space() -> StagedSpace:
    with torch.device("meta"):
        return StagedSpace(SHAPE, 1000, **table("mnasnet")).eval()


def thinned() -> StagedSpace:
    """The space with the options that the published networks take alone: it is priced by all that
    an option can meet, and that takes long."""
    settings = table("mnasnet")
    for row, (a, b) in zip(settings["stages"], zip(A1, B1, strict=True), strict=True):
        row["channels"] = sorted({a[3], b[3]})
        row["depth"] = sorted({a[4], b[4]})
        row["ops"] = {key: row["ops"][key] for key in dict.fromkeys((a[0], b[0], "sep"))}
    with torch.device("meta"):
        return StagedSpace(SHAPE, 1000, **settings).eval()


def test_published_networks_are_priced_as_members(space):
    few = thinned()
    traced = trace(few, SHAPE)
    costs = {cost.name: ExpectedCost(few, cost, traced) for cost in (Params(), MACs())}
    with torch.device("meta"):
        exact = counted(discretize(space, member(A1)))
        assert counted(discretize(space, member(B1))) == B1_COSTS
    for stages, known in ((A1, exact), (B1, B1_COSTS)):
        own = {name: member(stages).choices[name] for name, _ in decisions(few)}
        assert {name: cost.of(own) for name, cost in costs.items()} == known
    # "3.9M" and "312M" in Table 1 of the paper.
    assert round(exact["params"] / 1e6, 1) == 3.9
    assert round(exact["macs"] / 1e6) == 312


def test_mnasnet_b1_is_torchvisions_with_its_weights(space):
    network = discretize(space, member(B1)).to_empty(device="cpu").eval()
    known = torchvision.models.mnasnet1_0(weights=None).eval()
    for module in known.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.uniform_(-0.1, 0.1)
    own, theirs = (list(n.state_dict().values()) for n in (network, known))
    assert [value.shape for value in own] == [value.shape for value in theirs]
    with torch.no_grad():
        for value, given in zip(own, theirs, strict=True):
            value.copy_(given)
        x = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(network(x), known(x))


STAGES = [
    {
        "ops": {"conv": "conv_k{kernel}{se}", "mb2": "mb_k{kernel}_e2{se}"},
        "factors": {"kernel": {"k3": 3, "k5": 5}, "se": {"plain": "", "se": "_se"}},
        "skip": ["none", "identity", "avgpool_k3"],
        "channels": [4, 8],
        "depth": [2, 3],
    }
]


@pytest.fixture(scope="module")
def small() -> StagedSpace:
    torch.manual_seed(0)
    made = StagedSpace((2, 6, 6), 3, STAGES, stem={"channels": 4}, head={"features": 6})
    return randomized(made).eval()


def archs(space: nn.Module):
    own = dict(decisions(space))
    for options in itertools.product(*(decision.options for decision in own.values())):
        yield Arch(space.name, dict(zip(own, options, strict=True)))


def test_every_network_is_the_supernet_with_that_choice_and_costs_the_same(small):
    x = torch.randn(2, 2, 6, 6)
    traced = trace(small, small.input_shape)
    costs = {cost.name: ExpectedCost(small, cost, traced) for cost in (Params(), MACs())}
    for arch in itertools.islice(archs(small), 0, None, 5):
        network = discretize(small, arch)
        apply(small, arch)
        assert torch.equal(small(x), network(x))
        exact = counted(network)
        assert {name: cost.of(arch.choices) for name, cost in costs.items()} == exact
    free(small)


def test_layers_of_a_stage_share_its_choices(small):
    names = [name for name, _ in decisions(small)]
    keys = ("op", "kernel", "se", "skip", "channels", "depth")
    assert names == [f"shared.s0.{key}" for key in keys]
    taken = dict(zip(names, ("mb2", "k5", "se", "avgpool_k3", 8, 3), strict=True))
    layers = list(discretize(small, Arch(small.name, taken)).blocks.s0.blocks)
    kernels = [[m.kernel_size[0] for m in b.modules() if isinstance(m, nn.Conv2d)] for b in layers]
    # expansion, depthwise, squeeze, excitation, projection
    assert kernels == [[1, 5, 1, 1, 1]] * 3
    pools = [sum(isinstance(m, nn.AvgPool2d) for m in b.modules()) for b in layers]
    assert pools == [0, 1, 1]  # the first changes the channels
    assert {m.out_channels for m in layers[1].modules() if isinstance(m, nn.Conv2d)} == {8, 16, 2}


def test_training_a_narrow_network_moves_the_first_slices_and_their_statistics(small):
    (lead,) = (d for n, d in decisions(small) if n == "shared.s0.channels")
    lead.choose(4)
    small.train()
    norms = [m for m in small.modules() if isinstance(m, _BatchNorm) and m.num_features == 8]
    before = {m: m.running_mean.clone() for m in norms}
    weights = split_parameters(small).weights
    small(torch.randn(8, 2, 6, 6)).square().sum().backward()
    moved = [(m.running_mean != before[m]) for m in norms]
    assert any(m[:4].any() for m in moved)
    wide = [m for m, norm in zip(moved, norms, strict=True) if norm in outputs(small)]
    assert not any(m[4:].any() for m in wide)
    assert any(w.grad is not None and w.grad.abs().sum() > 0 for w in weights)
    small.zero_grad()
    small.eval()
    free(small)


def outputs(space: StagedSpace) -> list[nn.Module]:
    """The last norm of each convolution of the stage, of as many features as its output."""
    blocks = [m for m in space.modules() if type(m).__name__ == "ElasticWidth"]
    return [m.op[1] for m in blocks if m.op[0].kernel_size != (1, 1) and m.op[0].groups == 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"ops": {"a": "conv_k{kernel}", "b": "conf_k{kernel}"}, "factors": None},
            "conv_k{kernel}",
        ),
        ({"ops": ["conv_k3"]}, "factors needs ops as a mapping"),
        ({"ops": {"a": "conv_k3{se}"}}, "no form in ops has {kernel}"),
        ({"skip": ["conv_k3"]}, "has weights"),
        ({"skip": []}, "skip must be a list"),
        ({"factors": {"kernel": {"k3": 3, "three": 3}}}, "more than one label"),
        ({"ops": {"a": "conv_k{kernel}"}, "factors": {"kernel": {"k4": 4}}}, "must be odd"),
        ({"factors": {"kernel": [3, 5]}}, "must be a mapping"),
        ({"factors": {"skip": {"a": 1}}}, "cannot be called 'skip'"),
    ],
)
def test_bad_rows_are_named(change, said):
    with pytest.raises(UserError, match=said.replace("{", r"\{").replace("}", r"\}")):
        StagedSpace((2, 6, 6), 3, [{**STAGES[0], **change}], head={"features": 6})
