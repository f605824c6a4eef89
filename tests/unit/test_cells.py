"""The cell spaces against published counts, and the forms they take."""

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.decision import apply, decisions, free
from nas.discretization import arch_of, discretize
from nas.errors import UserError
from nas.ops.blocks import FactorizedReduce
from nas.spaces.darts import Darts
from nas.spaces.nas_bench_201 import NasBench201, arch_of_cell, cell_of, render

# Cells published as DARTS_V2: op and state it comes from, two for each node.
NORMAL = [("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1)]
NORMAL += [("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2)]
REDUCTION = [("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1)]
REDUCTION += [("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1)]


def darts_v2(space: nn.Module) -> Arch:
    taken = {name: decision.options[0] for name, decision in decisions(space)}
    for kind, cell in (("normal", NORMAL), ("reduction", REDUCTION)):
        for node in range(4):
            two = cell[2 * node : 2 * node + 2]
            taken |= {f"{kind}.ops.{state}_{node + 2}": op for op, state in two}
            if node:
                taken[f"{kind}.keep.{node + 2}"] = tuple(sorted(state for _, state in two))
    return Arch(space.name, taken)


def params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_published_darts_network_has_its_published_parameters():
    with torch.device("meta"):
        space = Darts((3, 32, 32), 10, channels=36, cells=20)
        assert params(discretize(space, darts_v2(space))) == 3_349_342


@pytest.mark.parametrize(
    ("op", "count"), [("nor_conv_3x3", 1_531_546), ("skip_connect", 73_306), ("none", 73_306)]
)
def test_published_nas_bench_201_networks_have_their_published_parameters(op, count):
    with torch.device("meta"):
        space = NasBench201((3, 32, 32), 10)
        assert params(discretize(space, arch_of_cell(render([op] * 6)))) == count


def test_a_cell_is_an_arch_and_back():
    text = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"
    space = NasBench201((3, 8, 8), 10, channels=2, cells=1)
    arch = arch_of_cell(text)
    apply(space, arch)
    assert arch_of(space) == arch
    assert arch.choices["cell.1_2"] == "avg_pool_3x3"
    assert cell_of(arch) == text
    with pytest.raises(UserError, match="no NAS-Bench-201 cell"):
        cell_of(Arch("chain", {"blocks.s0b0": "conv_k3"}))


def test_an_arch_fits_whatever_the_size_of_the_network():
    small = Darts((3, 8, 8), 10, channels=4, cells=3, partial=2, edges="weighed")
    large = Darts((3, 8, 8), 10, channels=2, cells=5)
    assert [name for name, _ in decisions(small)] == [name for name, _ in decisions(large)]
    discretize(large, arch_of(small))
    narrow = NasBench201((3, 8, 8), 10, channels=4, cells=1, partial=2)
    discretize(NasBench201((3, 8, 8), 10, channels=2, cells=2), arch_of(narrow))


SPACES = {
    "darts, weighed": lambda: Darts((3, 7, 8), 10, channels=4, cells=1, edges="weighed"),
    "darts, partial": lambda: Darts((3, 7, 8), 10, channels=4, cells=1, partial=2),
    "darts, not affine": lambda: Darts((3, 8, 8), 10, channels=2, cells=1, affine=False),
    "nas_bench_201, partial": lambda: NasBench201((3, 7, 8), 10, channels=4, cells=1, partial=2),
}


@pytest.mark.parametrize("make", SPACES.values(), ids=SPACES)
def test_one_hot_is_the_extracted_network_and_its_price_exact(make):
    torch.manual_seed(0)
    space, x = make().eval(), torch.randn(2, 3, 7, 8)
    x = x if space.input_shape[1] == 7 else torch.randn(2, 3, 8, 8)
    cost = ExpectedCost(space, Params(), space.input_shape)
    for _ in range(4):
        taken = {
            name: d.options[int(torch.randint(len(d.options), ()))] for name, d in decisions(space)
        }
        arch = Arch(space.name, taken)
        network = discretize(space, arch)
        apply(space, arch)
        assert torch.equal(space(x), network(x))
        assert float(cost().detach()) == cost.of(taken) == params(network)
        free(space)


def test_the_two_strongest_edges_are_kept():
    torch.manual_seed(1)
    space = Darts((3, 8, 8), 10, channels=2, cells=1)
    for _, decision in decisions(space):
        if not decision.derived:
            nn.init.normal_(decision.alpha)
    choices = arch_of(space).choices
    for node in (3, 4, 5):
        strengths = [
            float(space.reduction.ops[f"{state}_{node}"].alpha.detach().softmax(0).max())
            for state in range(node)
        ]
        order = sorted(range(node), key=strengths.__getitem__)
        assert choices[f"reduction.keep.{node}"] == tuple(sorted(order[-2:]))


def test_all_edges_count_fully_while_the_strongest_are_searched_for():
    torch.manual_seed(0)
    space = Darts((3, 8, 8), 10, channels=2, cells=1).eval()
    node = space.cells[0].nodes[3]
    states = [torch.randn(1, 4, 4, 4) for _ in range(5)]
    states[:2] = [torch.randn(1, 4, 8, 8) for _ in range(2)]
    outputs = [edge(x) for edge, x in zip(node.edges, states, strict=True)]
    torch.testing.assert_close(node(states), sum(outputs))


def test_weighed_edges_count_with_the_probability_that_they_are_kept():
    torch.manual_seed(0)
    space = Darts((3, 8, 8), 10, channels=2, cells=1, edges="weighed").eval()
    node = space.cells[0].nodes[1]  # of three edges: pairs 01, 02, 12
    nn.init.normal_(space.reduction.keep["3"].alpha)
    theta = space.reduction.keep["3"].theta.detach()
    states = [torch.randn(1, 4, side, side) for side in (8, 8, 4)]
    outputs = [edge(x) for edge, x in zip(node.edges, states, strict=True)]
    weights = [theta[0] + theta[1], theta[0] + theta[2], theta[1] + theta[2]]
    expected = sum(w * y for w, y in zip(weights, outputs, strict=True))
    torch.testing.assert_close(node(states), expected)


@pytest.mark.parametrize("sides", [(8, 8), (7, 8), (5, 5)])
def test_a_factorized_reduction_sees_every_second_pixel_both_ways(sides):
    torch.manual_seed(0)
    made = FactorizedReduce(2, 3).eval()
    x = torch.randn(1, 2, *sides)
    assert made(x).shape == (1, 3, *((side + 1) // 2 for side in sides))
    made.odd.weight.data.fill_(1.0)
    norm = made.norm.weight[2] / (made.norm.running_var[2] + made.norm.eps).sqrt()
    found = made(x)[0, 2, 0, 0]
    torch.testing.assert_close(found, x[0, :, 1, 1].relu().sum() * norm)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Darts((3, 8), 10), r"images \(C, H, W\)"),
        (lambda: Darts((3, 8, 8), 10, cells=0), r"space\.cells=.* must be"),
        (lambda: Darts((3, 8, 8), 10, edges="all"), r"space\.edges='all'"),
        (
            lambda: NasBench201((3, 8, 8), 10, channels=6, partial=4),
            r"space\.partial=4 must divide",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()
