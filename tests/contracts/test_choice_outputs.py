"""Candidates that take several inputs and give structures of tensors."""

from collections import namedtuple
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import expected
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.discretization import discretize
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import one_path, softmax, straight_through

SEEDS = st.integers(0, 2**16)
HARD = [one_path, straight_through]


# Structures.

Pair = namedtuple("Pair", ["first", "second"])


class Gives(nn.Module):
    """A drawn structure whose tensors depend on weights and on all arguments."""

    def __init__(self, structure: Any) -> None:
        super().__init__()
        self.structure, self.mix = structure, nn.Linear(3, 3)

    def forward(self, x: Tensor, *others: Tensor, mask: Tensor | None = None) -> Any:
        y = self.mix(x)
        for other in others:
            y = y + other
        if mask is not None:
            y = y * mask
        values = {"plain": y, "wide": torch.cat([y, y], -1), "sum": y.sum(-1)}
        values |= {"index": y.argmax(-1), "bool": y > 0, "complex": torch.complex(y, -y)}
        return tree_map(lambda leaf: values.get(leaf, leaf), self.structure)


leaves = st.sampled_from(["plain", "wide", "sum", "index", "bool", "complex", None, 3, 0.5])
structures = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, inner)
        | st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(
    structures.filter(lambda s: "plain" in tree_leaves(s) or "sum" in tree_leaves(s)),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([softmax, *HARD]),
    SEEDS,
)
def test_structures_are_mixed_leaf_by_leaf(structure, extra, masked, relax, seed):
    torch.manual_seed(seed)
    block = ChoiceBlock({k: Gives(structure) for k in "pqr"}, relax)
    nn.init.normal_(block.alpha)
    x = torch.randn(2, 3, requires_grad=True)
    args = (x, *torch.randn(extra, 2, 3))
    kwargs = {"mask": torch.rand(2, 3)} if masked else {}
    theta = block.theta
    parts = [op(*args, **kwargs) for op in block.candidates.values()]

    def mix(*each: Any) -> Any:
        if not isinstance(each[0], Tensor):
            return each[0]
        if each[0].is_floating_point() or each[0].is_complex():
            return sum(w * leaf for w, leaf in zip(theta, each, strict=True))
        return each[int(theta.argmax())]

    right = tree_map(mix, *parts)
    y = block(*args, **kwargs)
    assert type(y) is type(right)
    for ours, theirs in zip(tree_leaves(y), tree_leaves(right), strict=True):
        assert_close(ours, theirs) if isinstance(ours, Tensor) else None
        assert isinstance(ours, Tensor) or ours == theirs

    def loss(out: Any) -> Tensor:
        parts = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        parts = [leaf for leaf in parts if leaf.is_floating_point() or leaf.is_complex()]
        return torch.stack([leaf.abs().square().sum() for leaf in parts]).sum()

    expected = torch.autograd.grad(loss(right), [block.alpha, x])
    if relax is one_path:  # its alphas have a gradient of their own
        expected = (torch.autograd.grad(loss(y), block.alpha, retain_graph=True)[0], expected[1])
    for ours, theirs in zip(torch.autograd.grad(loss(y), [block.alpha, x]), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(structures, structures, st.sampled_from([softmax, straight_through]))
def test_what_cannot_be_mixed_is_named(first, other, relax):
    block, x = ChoiceBlock({"ours": Gives(first), "yours": Gives(other)}, relax), torch.randn(2, 3)

    def shape(leaf: Any) -> Any:
        kinds = {"index": "whole", "bool": "whole", "complex": "float"}
        out = Gives(leaf)(x)
        return (out.shape, kinds.get(leaf, "float")) if isinstance(out, Tensor) else repr(leaf)

    alike = repr(tree_map(shape, first)) == repr(tree_map(shape, other))
    message = ""
    try:
        tensors = [t for t in tree_leaves(block(x)) if isinstance(t, Tensor) and t.requires_grad]
        torch.stack([t.abs().sum() for t in tensors] or [block.alpha.sum()]).sum().backward()
    except UserError as error:
        message = str(error)
    seen = [t for t in tree_leaves(Gives(first)(x)) if isinstance(t, Tensor) and t.requires_grad]
    judged = relax is softmax or seen  # nothing is judged by an output without a gradient
    if "{" not in repr(first):  # keys have no order
        assert bool(message) == bool(judged and not alike)
    assert not message or ("ours" in message and "yours" in message)


def test_arguments_that_a_candidate_does_not_take_are_named():
    block = ChoiceBlock({"takes": Gives("plain"), "refuses": nn.Linear(3, 3)})
    with pytest.raises(UserError, match="'refuses' \\(Linear\\) cannot be called"):
        block(torch.randn(2, 3), mask=torch.rand(2, 3))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return len(3)

    with pytest.raises(TypeError, match="has no len"):
        ChoiceBlock([Broken(), nn.Identity()])(torch.randn(2, 3))


def test_tensors_that_cannot_be_found_are_named():
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {x}

    with pytest.raises(UserError, match="gives a set"):
        ChoiceBlock([Opaque(), Opaque()])(torch.randn(2, 3))


class Branches(nn.Module):
    """Takes two tensors and gives two."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False)

    def forward(self, a: Tensor, b: Tensor, *, gate: Tensor) -> dict[str, Tensor]:
        y = self.conv(a.relu_())
        return {"y": y, "z": b * gate} if y.shape[-1] > 1 else {"z": b * gate, "y": y}


class Forks(nn.Module):
    """Two blocks over structures, one of whose outputs goes through a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(
            ChoiceBlock({f"k{k}": Branches(k) for k in (1, 3, 5)}) for _ in range(2)
        )
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a = b = self.stem(x)
        for block in self.blocks:
            out = block(a, b, gate=b.sigmoid())
            a, b = self.norm(out["y"]) if block is self.blocks[1] else out["y"], out["z"]
        return (a + b).mean((2, 3))


@pytest.mark.parametrize("option", ["k1", "k3", "k5"])
def test_costs_of_blocks_over_structures_are_those_of_the_network(option):
    net = Forks().eval()
    choices = {"blocks.0": option, "blocks.1": "k3"}
    network = discretize(net, Arch("Forks", choices))
    for model in (Params(), MACs(), PeakMemory()):
        cost, plain = (expected(n, model, trace(n, (3, 6, 6))) for n in (net, network))
        assert cost.of(choices) == plain.of({}) > 0
