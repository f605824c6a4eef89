"""The summary of a network: its blocks, and how they are shown."""

import csv
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.memory import PeakMemory
from nas.discretization import arch_of, discretize
from nas.report.summary import csv_text, read_blocks, share, summarize, svg
from nas.report.terminal import console, table
from nas.spaces.nas_bench_201 import NasBench201
from nas.spaces.staged import StagedSpace
from nas.supernet.choice import ChoiceBlock

STAGES = [
    {"ops": ["conv_k3", "sep_k5", "mb_k3_e3_se"], "channels": 4},
    {"ops": ["mb_k3_e3", "identity"], "channels": 4, "repeat": 2},
]
COSTS = {"params": Params(), "macs": MACs(), "peak_memory": PeakMemory()}


@pytest.mark.parametrize("seed", range(4))
def test_parts_add_up_to_the_network(seed):
    torch.manual_seed(seed)
    supernet = StagedSpace((3, 8, 8), 5, STAGES, stem={"channels": 4}, head={"features": 8})
    for parameter in supernet.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    arch = arch_of(supernet)
    parts = summarize(supernet, arch, (3, 8, 8), COSTS)
    network = discretize(supernet, arch)
    total = sum(part.costs.get("params", 0) for part in parts)
    assert total == sum(p.numel() for p in network.parameters())
    assert [part.name for part in parts] == [
        "stem", "blocks.s0b0", "blocks.s1b0", "blocks.s1b1", "head", "classifier",
    ]  # fmt: skip
    assert all(set(part.costs) <= {"params", "macs"} for part in parts)  # the peak is no sum
    assert (parts[0].channels, parts[0].size) == (4, (8, 8))
    for part in parts:
        if part.option == "identity":
            assert (part.channels, part.costs) == (None, {})


def test_a_shared_decision_is_told_where_it_is_carried_out():
    torch.manual_seed(0)
    supernet = NasBench201((3, 8, 8), 10, channels=4, cells=1)
    parts = summarize(supernet, arch_of(supernet), (3, 8, 8), COSTS)
    edges = [part for part in parts if ".edges." in part.name]
    assert len(edges) == 3 * 6
    total = sum(p.numel() for p in discretize(supernet, arch_of(supernet)).parameters())
    assert sum(part.costs.get("params", 0) for part in parts) == total  # "last" has norms alone
    assert all(part.option for part in edges)
    assert {part.name for part in parts if part.option} == {part.name for part in edges}


def test_squeeze_and_excitation_at_the_end_of_a_block_is_not_its_size():
    stages = [{"ops": ["conv_k3_se", "conv_k5_se"], "channels": 4}]
    supernet = StagedSpace((3, 8, 8), 5, stages)
    parts = summarize(supernet, arch_of(supernet), (3, 8, 8), COSTS)
    (block,) = [part for part in parts if part.option]
    assert (block.channels, block.size) == (4, (8, 8))


def test_layers_of_nested_choices_belong_to_the_outermost():
    inner = ChoiceBlock({"k1": nn.Conv1d(2, 2, 1), "k3": nn.Conv1d(2, 2, 3, padding=1)})
    net = nn.Sequential(
        ChoiceBlock({"deep": nn.Sequential(inner, nn.ReLU()), "flat": nn.Identity()}),
        nn.Conv1d(2, 3, 1),
    )
    arch = Arch("Sequential", {"0": "deep", "0.candidates.deep.0": "k3"})
    first, last = summarize(net, arch, (2, 7), COSTS)
    assert (first.name, first.option, first.costs["params"]) == ("0", "deep", 14)
    assert (last.name, last.costs["macs"]) == ("1", 2 * 3 * 7)


def test_an_elastic_layer_is_one_part_and_a_block_left_out_is_none():
    stages = [{"ops": ["elastic_k5_e4"], "channels": [4, 6], "depth": [1, 2]}]
    net = StagedSpace((3, 8, 8), 5, stages, stem={"channels": 4}, head={"features": 8})
    arch = arch_of(net)  # the first options: the smallest
    parts = summarize(net, arch, (3, 8, 8), COSTS)
    told = [(part.name, part.option, part.layers) for part in parts]
    assert told == [
        ("stem", "", 1),
        ("blocks.s0.depth", "1", 0),
        ("blocks.s0.blocks.b0", "out_channels 4, kernel 3, expand 3", 3),
        ("head", "", 1),
        ("classifier", "", 1),
    ]
    params = sum(p.numel() for p in discretize(net, arch).parameters())
    assert sum(part.costs.get("params", 0) for part in parts) == params


PARTS = read_blocks(
    {
        "parts": [
            {
                "name": "a",
                "option": "<op>",
                "channels": 8,
                "size": [4, 4],
                "costs": {"params": 30.0},
            },
            {
                "name": "b" * 40,
                "option": "",
                "channels": None,
                "size": [],
                "costs": {"params": 10.0},
            },
            {"name": "c", "option": "skip", "channels": 10, "size": [1], "costs": {}},
        ]
    }
)


def test_the_svg_is_one_and_shows_the_shares():
    root = ElementTree.fromstring(svg(PARTS, ["params", "macs"], "a & b"))
    bars = [element for element in root.iter() if element.find("{*}title") is not None]
    widths = [float(bar.get("width")) for bar in bars if "params" in bar[0].text]
    assert widths == pytest.approx([150, 50, 0.5])
    assert "<op>" in [element.text for element in root.iter() if element.tag.endswith("text")]


def test_the_terminal_shows_the_same():
    out = console()
    with out.capture() as captured:
        out.print(table(PARTS, ["params"]))
    lines = captured.get().splitlines()
    assert "8 x 4 x 4" in lines[1]
    assert "75%" in lines[1]
    assert "█████████···" in lines[1]
    assert share(PARTS, PARTS[2], "macs") == 0


def test_the_table_has_amounts_and_shares():
    rows = list(csv.DictReader(csv_text(PARTS).splitlines()))
    assert [row["block"] for row in rows] == ["a", "b" * 40, "c"]
    assert (rows[0]["operation"], rows[0]["channels"], rows[0]["size"]) == ("<op>", "8", "4x4")
    assert [float(row["params"]) for row in rows] == [30, 10, 0]
    assert [float(row["params_share"]) for row in rows] == [0.75, 0.25, 0]


def test_a_drawing_of_its_own_has_a_size_and_does_not_style_a_page_that_it_is_put_in():
    alone = ElementTree.fromstring(svg(PARTS, ["params"], "a & b", alone=True))
    assert alone.get("viewBox").split()[2:] == [alone.get("width"), alone.get("height")]
    assert "a & b" in [element.text for element in alone.iter()]
    assert "style" not in svg(PARTS, ["params"], "a & b")
