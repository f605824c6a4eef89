"""Spaces from a table of stages."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from nas.decision import decisions
from nas.errors import UserError
from nas.spaces.staged import StagedSpace

CONFIGS = Path(__file__).parents[2] / "configs" / "space"
SHAPES = {
    "chain": (3, 32, 32),
    "chain_tiny": (1, 8, 8),
    "mobilenet": (3, 64, 64),
    "mobilenet_tiny": (1, 28, 28),
}
# Stage by stage; None is a removed block.
PROXYLESS_MOBILE = [
    ["k5_e3", "k3_e3", None, None],
    ["k7_e3", "k3_e3", "k5_e3", "k5_e3"],
    ["k7_e6", "k5_e3", "k5_e3", "k5_e3"],
    ["k5_e6", "k5_e3", "k5_e3", "k5_e3"],
    ["k7_e6", "k7_e6", "k7_e3", "k7_e3"],
    ["k7_e6"],
]


def config(name: str) -> dict:
    table = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    return {key: value for key, value in table.items() if not key.startswith("_")}


def space(*stages: dict, shape=(3, 8, 8), **more) -> StagedSpace:
    return StagedSpace(input_shape=shape, num_outputs=4, stages=list(stages), **more)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_shipped_space_runs_and_learns_with_any_choice(name, last):
    supernet = StagedSpace(input_shape=SHAPES[name], num_outputs=10, **config(name))
    for _, decision in decisions(supernet):
        decision.choose(decision.options[-1 if last else 0])
    logits = supernet(torch.randn(2, *SHAPES[name]))
    logits.square().sum().backward()
    assert logits.shape == (2, 10)
    assert supernet.classifier.weight.grad.abs().sum() > 0
    assert supernet.name == name


def test_every_shipped_space_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} >= set(SHAPES)


def test_chain_halves_the_side_four_times():
    sides = []
    supernet = StagedSpace((3, 32, 32), 10, **config("chain"))
    for block in supernet.blocks:
        block.register_forward_hook(lambda _, args, y: sides.append(tuple(y.shape[1:])))
    supernet(torch.randn(2, 3, 32, 32))
    assert sides == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4), (256, 2, 2)]
    assert [d.options for _, d in decisions(supernet)] == [("conv_k3", "conv_k5", "sep_k3")] * 5


def price(network: nn.Module, side: int) -> tuple[int, int]:
    """Parameters without alphas, and MACs at batch 1, by torch's own counter."""
    alphas = {id(d.alpha) for _, d in decisions(network)}
    counter = FlopCounterMode(display=False)
    with counter:
        network.eval()(torch.empty(1, 3, side, side, device="meta"))
    params = sum(p.numel() for p in network.parameters() if id(p) not in alphas)
    return params, counter.get_total_flops() // 2


def test_mobilenet_as_a_fixed_table_is_the_published_proxyless_network():
    settings = config("mobilenet")
    fixed, searched = settings["stages"][:1], settings["stages"][1:]
    for stage, kinds in zip(searched, PROXYLESS_MOBILE, strict=True):
        rows = [{"ops": [f"mb_{kind}"], "channels": stage["channels"]} for kind in kinds if kind]
        fixed += [{**rows[0], "stride": stage.get("stride", 1)}, *rows[1:]]
    with torch.device("meta"):
        network = StagedSpace((3, 224, 224), 1000, **{**settings, "stages": fixed})
    assert not list(decisions(network))
    assert price(network, 224) == (4_080_512, 320_427_584)


def test_mobilenet_has_the_published_proxyless_network_as_a_member():
    with torch.device("meta"):
        supernet = StagedSpace((3, 224, 224), 1000, **config("mobilenet"))
    member = {
        f"blocks.s{s}b{b}": f"mb_{kind}" if kind else "identity"
        for s, kinds in enumerate(PROXYLESS_MOBILE, start=1)
        for b, kind in enumerate(kinds)
    }
    found = dict(decisions(supernet))
    assert found.keys() == member.keys()
    for name, option in member.items():
        stage, block = name.removeprefix("blocks.").removeprefix("s").split("b")
        assert len(found[name].options) == (6 if block == "0" else 7), (stage, block)
        setattr(supernet.blocks, name.removeprefix("blocks."), found[name].active_if()[option])
    assert price(supernet, 224) == (4_080_512, 320_427_584)


def test_names_options_and_shapes_of_blocks():
    supernet = space(
        {"ops": ["conv_k3", "identity"], "channels": 6, "stride": 2, "repeat": 3},
        {"ops": ["sep_k3"], "channels": 6},
        {"ops": ["conv_k3", "identity", "maxpool_k3"], "channels": 6, "stride": 2},
    )
    assert {name: d.options for name, d in decisions(supernet)} == {
        "blocks.s0b1": ("conv_k3", "identity"),
        "blocks.s0b2": ("conv_k3", "identity"),
        "blocks.s2b0": ("conv_k3", "maxpool_k3"),
    }
    assert supernet.blocks(torch.randn(2, 3, 8, 8)).shape == (2, 6, 2, 2)


@pytest.mark.parametrize("training", [True, False])
def test_logits_are_those_of_the_parts_in_order(training):
    supernet = space(
        {"ops": ["conv_k3"], "channels": 6},
        stem={"channels": 5, "kernel": 5, "stride": 2},
        head={"features": 9},
    ).train(training)
    x = torch.randn(4, 3, 8, 8)
    features = supernet.head(supernet.blocks(supernet.stem(x)))
    assert features.shape == (4, 9, 4, 4)
    assert supernet.stem[0].kernel_size == (5, 5)
    assert_close(supernet(x), supernet.classifier(features.mean((2, 3))))


def test_the_ops_of_the_cell_spaces_stand_in_a_staged_space():
    ops = ["rconv_k3", "dil_k3", "sep2_k5", "skip", "avgpool_k3_norm"]
    supernet = space({"ops": ops, "channels": 6, "stride": 2, "repeat": 2}, stem={"channels": 6})
    assert {name: d.options for name, d in decisions(supernet)} == {
        "blocks.s0b0": tuple(ops),
        "blocks.s0b1": tuple(ops),
    }
    assert supernet(torch.randn(2, 3, 8, 8)).shape == (2, 4)


def test_sequences():
    supernet = space(
        {"ops": ["conv_k3", "sep_k5", "maxpool_k3"], "channels": 6, "stride": 2, "repeat": 2},
        {"ops": ["mb_k3_e3_se", "identity", "zero"], "channels": 6},
        shape=(2, 17),
        stem={"channels": 4},
        head={"features": 8},
    )
    assert supernet(torch.randn(3, 2, 17)).shape == (3, 4)
    assert supernet.blocks(supernet.stem(torch.randn(3, 2, 17))).shape == (3, 6, 9)
    assert not any(isinstance(module, nn.Conv2d) for module in supernet.modules())
    assert len(list(decisions(supernet))) == 3


@pytest.mark.parametrize(
    ("width", "divisor", "channels"),
    [(1.0, 1, [5, 12, 9]), (0.5, 1, [2, 6, 4]), (1.5, 4, [8, 16, 12]), (0.01, 4, [4, 4, 4])],
)
def test_width_multiplies_all_channels(width, divisor, channels):
    supernet = space(
        {"ops": ["conv_k3"], "channels": 12},
        stem={"channels": 5},
        head={"features": 9},
        width=width,
        divisor=divisor,
    )
    convs = [module for module in supernet.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == channels
    assert supernet.classifier.in_features == channels[-1]


def test_activation_is_that_of_every_layer():
    supernet = space(
        {"ops": ["conv_k3", "mb_k3_e3"], "channels": 6},
        stem={"channels": 4},
        head={"features": 8},
        activation="silu",
    )
    kinds = {type(m) for m in supernet.modules() if "activation" in type(m).__module__}
    assert kinds == {nn.SiLU}


def test_dropout_acts_in_training_only():
    supernet = space({"ops": ["conv_k3"], "channels": 64}, dropout=0.5)
    x = torch.randn(2, 3, 8, 8)
    assert not torch.equal(supernet(x), supernet(x))
    assert torch.equal(supernet.eval()(x), supernet(x))


def test_elastic_stages_name_their_decisions_in_order():
    supernet = space(
        {"ops": ["elastic_k5_e4"], "channels": [4, 8], "depth": [1, 2]},
        {"ops": ["elastic_k3_e4", "identity"], "channels": 8, "activation": "hardswish"},
        head={"features": 9, "mix": 7},
        resolution=[6, 8],
    )
    assert {name: decision.options for name, decision in decisions(supernet)} == {
        "features.resolution": (6, 8),
        "features.body.blocks.s0.depth": (1, 2),
        "features.body.blocks.s0.blocks.b0.out_channels": (4, 8),
        "features.body.blocks.s0.blocks.b0.kernel": (3, 5),
        "features.body.blocks.s0.blocks.b0.expand": (3, 4),
        "features.body.blocks.s0.blocks.b1.kernel": (3, 5),
        "features.body.blocks.s0.blocks.b1.expand": (3, 4),
        "features.body.blocks.s1b0.expand": (3, 4),
    }
    hard = [type(m) for m in supernet.features.body.blocks.s1b0.modules()]
    assert nn.Hardswish in hard
    assert supernet(torch.randn(2, 3, 8, 8)).shape == (2, 4)


CONV = {"ops": ["conv_k3"], "channels": 4}
ELASTIC = {"ops": ["elastic_k5_e4"], "channels": 4}
HEAD = {"features": 5}


@pytest.mark.parametrize(
    ("stages", "more", "says"),
    [
        ([CONV, {**CONV, "chanels": 3}], {}, "stage 1 has an unknown key 'chanels' .*'channels'"),
        ([{**CONV, "strides": 2}], {}, r"allowed: \['ops', 'channels', 'stride', 'repeat', "),
        ([{"ops": ["conv_k3"]}], {}, "stage 0 lacks the key 'channels'"),
        ([{**CONV, "channels": 0}], {}, "stage 0: channels=0 must be at least 1"),
        ([{**CONV, "channels": 2.5}], {}, "stage 0: channels=2.5 must be a whole number"),
        ([{**CONV, "repeat": -1}], {}, "stage 0: repeat=-1 must be at least 1"),
        ([{**CONV, "stride": None}], {}, "stage 0: stride=None must be a whole number"),
        ([{**CONV, "stride": True}], {}, "stage 0: stride=True must be a whole number"),
        ([{**CONV, "ops": []}], {}, r"stage 0: ops must be a list .* got \[\]"),
        ([{**CONV, "ops": "conv_k3"}], {}, "stage 0: ops='conv_k3' must be a list of texts"),
        (
            [{**CONV, "ops": ["conv_k3"] * 2}],
            {},
            "ops: 'conv_k3' is listed more than once",
        ),
        ([CONV, {**CONV, "ops": ["conv3"]}], {}, "stage 1: no candidate op 'conv3'; did you mean"),
        ([CONV, {**CONV, "ops": ["conv_k2"]}], {}, "stage 1: op 'conv_k2': the kernel must be odd"),
        (
            [CONV, {"ops": ["identity", "maxpool_k3"], "channels": 8}],
            {},
            "stage 1, block 0: none of .*'identity' does not fit 4 -> 8 channels, stride 1",
        ),
        (
            [{**CONV, "ops": ["conv_k3", "grp_k3_g4"], "channels": 6}],
            {},
            "stage 0: .*divisible by 4",
        ),
        ([{**CONV, "ops": ["ssep_k3"]}], {"shape": (3, 9)}, "stage 0: .*needs images"),
        ([{**CONV, "channels": [8, 4]}], {}, r"channels=\[8, 4\] must be in ascending order"),
        (
            [{**CONV, "ops": ["shuffle_k3"], "channels": [4, 8]}],
            {"head": HEAD},
            "stage 0: .*channels cannot be searched",
        ),
        (
            [{**ELASTIC, "channels": [4, 8]}, {"ops": ["avgpool_k3"], "channels": [2, 8]}],
            {"head": HEAD},
            "stage 1, block 0: .*needs the same decision",
        ),
        (
            [{**CONV, "ops": {"a": "gru", "b": "conv_k3"}, "channels": [4, 8]}],
            {"shape": (3, 9)},
            "stage 0: .*channels cannot be searched",
        ),
        ([{**CONV, "ops": ["tcn_k3_d2"]}], {}, "stage 0: .*needs sequences"),
        ([{**CONV, "ops": ["lstm"], "stride": 2}], {"shape": (3, 9)}, "block 0: .*needs stride 1"),
        ([CONV], {"stem": {"kernel": [3]}}, "the stem: kernel=.* one for each side, 2 here"),
        ([CONV], {"stem": {"kernel": 4}}, "the stem: kernel=4 must be .* odd at stride 1"),
        ([CONV], {"pool": "last"}, "space.pool=last is for sequences"),
        ([{**ELASTIC, "depth": [2, 1]}], {}, r"depth=\[2, 1\] must be in ascending order"),
        ([{**ELASTIC, "depth": 2}], {}, "depth=2 must be a list of whole numbers"),
        ([{**ELASTIC, "depth": [1, 2], "repeat": 2}], {}, "either repeat .* or depth"),
        ([{**ELASTIC, "activation": "rulu"}], {}, "no activation 'rulu'"),
        ([{**ELASTIC, "ops": ["elastic_k4_e6"]}], {}, "the kernel must be odd, got 4"),
        ([CONV], {"resolution": [8]}, r"at least two whole numbers in ascending .* got \[8\]"),
        ([], {}, "stages must be a list of at least one stage"),
        (["conv_k3"], {}, "stage 0 must be a mapping"),
        ([CONV], {"stem": {"chanels": 3}}, "the stem has an unknown key 'chanels'"),
        ([CONV], {"head": {"features": 0}}, "the head: features=0 must be at least 1"),
        ([CONV], {"width": 0.0}, r"width=.* must be above 0"),
        ([CONV], {"dropout": 1.0}, r"dropout=1\.0 must be at least 0 and below 1"),
        ([CONV], {"divisor": 0}, "divisor=0 must be"),
        ([CONV], {"activation": "rulu"}, "no activation 'rulu'"),
        ([CONV], {"shape": (3,)}, r"input_shape must be \(C, H, W\) or \(C, L\), got \(3,\)"),
        ([CONV], {"shape": (3, 0, 8)}, r"input_shape=\(3, 0, 8\) must be at least 1"),
    ],
)
def test_mistakes_are_named(stages, more, says):
    with pytest.raises(UserError, match=says):
        space(*stages, **more)
