"""`Darts`: normal and reduction cells, each found once and repeated (Liu et al. 2019)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nas.config.schema import Count, Layers, Positive, checked
from nas.errors import UserError
from nas.ops.blocks import FactorizedReduce, PartialChannels, Site
from nas.ops.catalogue import relu_conv
from nas.supernet.choice import ChoiceBlock
from nas.supernet.edges import Edges, Node, StrongestEdges, pairs
from nas.supernet.elastic_ops import build_op
from nas.supernet.relax import RelaxedDecision, Shared

NODES = 4
INPUTS = 2  # outputs of the two cells before
# Published name of an operation, which is the option of a decision -> its name in the catalogue.
DARTS = {
    "max_pool_3x3": "maxpool_k3_norm",
    "avg_pool_3x3": "avgpool_k3_norm",
    "skip_connect": "skip",
    "sep_conv_3x3": "sep2_k3",
    "sep_conv_5x5": "sep2_k5",
    "dil_conv_3x3": "dil_k3",
    "dil_conv_5x5": "dil_k5",
}


def edge(ops: Mapping[str, str], site: Site[int], partial: int, tied_to: nn.Module) -> nn.Module:
    """A choice among `ops`, tied to the decision on that edge in every cell.

    Args:
        ops: option -> name in the catalogue.
        site: where the edge stands; as many output as input channels.
        partial: K of `PartialChannels`; 1: all channels go through the op.
    """
    assert isinstance(tied_to, Shared)
    channels, stride = site.in_channels, site.stride
    own = channels // partial
    made = {
        option: build_op(name, own, own, stride, affine=site.affine) for option, name in ops.items()
    }
    block = ChoiceBlock(made, tied_to=tied_to)
    return block if partial == 1 else PartialChannels(block, channels, partial, stride)


def check_cells(input_shape: Sequence[int], channels: int, partial: int) -> None:
    """Check the arguments of a cell space.

    Raises:
        UserError: naming the argument.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"cell spaces take images (C, H, W), not inputs of shape {tuple(input_shape)}"
        )
    if channels % partial:
        raise UserError(
            f"space.partial={partial} must divide the channels of every cell, {channels} in the "
            f"first: choose another, or a width at which it does"
        )


class CellDecisions(nn.Module):
    """The decisions of one kind of cell: the op on each edge, and which two edges a node keeps.

    The first node has just two edges, so that nothing is decided about them.
    """

    def __init__(self, weighed: bool) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        self.keep = nn.ModuleDict()
        for node in range(NODES):
            states = range(INPUTS + node)
            own = [Shared(tuple(DARTS)) for _ in states]
            self.ops.update({f"{state}_{INPUTS + node}": op for state, op in enumerate(own)})
            if len(own) > 2:
                kept = Shared(pairs(len(own))) if weighed else StrongestEdges(own)
                self.keep[str(INPUTS + node)] = kept


@dataclass(frozen=True)
class Width:
    """Channels of one cell and of the two before it, and whether it or the last one reduces."""

    channels: int
    before_last: int
    last: int
    reduces: bool
    after_reduction: bool


class Cell(nn.Module):
    """Two inputs brought to C channels, four nodes of kept edges each, their concatenation.

    Shape: two tensors ``(N, C', H', W')`` -> ``(N, 4 C, H, W)``.
    """

    def __init__(
        self, decisions: CellDecisions, width: Width, affine: bool = True, partial: int = 1
    ) -> None:
        super().__init__()
        c = width.channels
        self.first: nn.Module = (
            FactorizedReduce(width.before_last, c, affine)
            if width.after_reduction
            else relu_conv(Site(width.before_last, c, affine=affine), 1)
        )
        self.second = relu_conv(Site(width.last, c, affine=affine), 1)
        self.nodes = nn.ModuleList()
        for node in range(NODES):
            to = INPUTS + node
            edges = []
            for state in range(to):
                stride = 2 if width.reduces and state < INPUTS else 1
                site = Site(c, c, stride, affine=affine)
                edges.append(edge(DARTS, site, partial, decisions.ops[f"{state}_{to}"]))
            self.nodes.append(_node(edges, decisions, to))

    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.first(before_last), self.second(last)]
        for node in self.nodes:
            states.append(node(states))
        return torch.cat(states[INPUTS:], 1)


def _node(edges: Sequence[nn.Module], decisions: CellDecisions, to: int) -> nn.Module:
    if str(to) not in decisions.keep:
        return Edges(dict(enumerate(edges)))
    kept = decisions.keep[str(to)]
    assert isinstance(kept, RelaxedDecision)
    return Node(edges, kept)


@checked("space")
class Darts(nn.Module):
    """Stem, cells (those at 1/3 and 2/3 of the depth reduce), pooling, classifier.

    All normal cells share their decisions, and all reduction cells theirs. A reduction halves the
    sides and doubles the channels. `none` is no candidate: which edges are absent is decided by the
    kept edges, and the rule of the paper never selects it.

    Args:
        channels: of a node of the first cell; the paper searches with 16 and trains with 36.
        cells: in all; the paper searches with 8 and trains with 20.
        edges: "strongest", the two of the largest op probabilities (DARTS); "weighed", by alphas
            of their own (PC-DARTS). See `nas.supernet.edges`.
        width: multiplies the channels.
        partial: K of partial channels, see `PartialChannels`; 1: none.
        affine: whether BatchNorms scale and shift; the DARTS family searches without.
        stem: channels of the stem, over `channels`.

    Shape: ``(N, *input_shape) -> (N, num_outputs)``.

    Raises:
        UserError: one of these cannot be.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: Count,
        name: str = "darts",
        channels: Count = 16,
        cells: Layers = 8,
        edges: Literal["strongest", "weighed"] = "strongest",
        width: Positive = 1.0,
        partial: Count = 1,
        affine: bool = True,
        stem: Count = 3,
    ) -> None:
        channels = partial * max(1, round(channels * width / partial))
        check_cells(input_shape, channels, partial)
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], stem * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(stem * channels),
        )
        widths = list(_widths(channels, stem * channels, cells))
        weighed = edges == "weighed"
        self.normal = CellDecisions(weighed) if not all(w.reduces for w in widths) else None
        self.reduction = CellDecisions(weighed) if any(w.reduces for w in widths) else None
        self.cells = nn.ModuleList()
        for w in widths:
            decisions = self.reduction if w.reduces else self.normal
            assert decisions is not None
            self.cells.append(Cell(decisions, w, affine, partial))
        self.classifier = nn.Linear(NODES * widths[-1].channels, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        before_last = last = self.stem(x)
        for cell in self.cells:
            before_last, last = last, cell(before_last, last)
        y: Tensor = self.classifier(last.mean((2, 3)))
        return y


def _widths(channels: int, stem: int, cells: int) -> Iterator[Width]:
    before_last = last = stem
    after = False
    for number in range(cells):
        reduces = number in (cells // 3, 2 * cells // 3)
        channels *= 2 if reduces else 1
        yield Width(channels, before_last, last, reduces, after)
        before_last, last, after = last, NODES * channels, reduces
