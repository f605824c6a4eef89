"""`NasBench201`: the search space whose every network has been trained (Dong and Yang 2020)."""

import re
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from nas.arch import Arch
from nas.config.schema import Count, Layers, Positive, checked
from nas.errors import UserError
from nas.ops.blocks import Site
from nas.ops.catalogue import relu_conv
from nas.spaces.darts import check_cells, edge
from nas.supernet.relax import Shared

NAME = "nas_bench_201"
STAGES = 3
# Published name of an operation, which is the option of a decision -> its name in the catalogue.
NAS_BENCH_201 = {
    "none": "zero",
    "skip_connect": "skip",
    "nor_conv_1x1": "rconv_k1",
    "nor_conv_3x3": "rconv_k3",
    "avg_pool_3x3": "avgpool_k3",
}
OPS = tuple(NAS_BENCH_201)
# Edges (from, to) between the four nodes, in the order of the text; 0 is the input, 3 the output.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


class Cell(nn.Module):
    """Four nodes, an operation on each of the six edges between them; node 3 is the output.

    ``x_j = sum_{i < j} edge_ij(x_i)``.

    Args:
        decisions: edge -> the decision on it, see `edge_key`.

    Shape: ``(N, C, H, W) -> (N, C, H, W)``.
    """

    def __init__(
        self, decisions: nn.ModuleDict, channels: int, affine: bool = True, partial: int = 1
    ) -> None:
        super().__init__()
        site = Site(channels, channels, affine=affine)
        self.edges = nn.ModuleDict(
            {key: edge(NAS_BENCH_201, site, partial, own) for key, own in decisions.items()}
        )

    def forward(self, x: Tensor) -> Tensor:
        nodes: dict[int, Tensor] = {0: x}
        for source, to in EDGES:
            y = self.edges[edge_key((source, to))](nodes[source])
            nodes[to] = nodes[to] + y if to in nodes else y
        return nodes[3]


class Reduction(nn.Module):
    """The fixed residual block of stride 2 between stages.

    ``conv3x3(conv3x3 / 2) + conv1x1(mean 2x2)``, each 3x3 with ReLU before and BatchNorm after.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True) -> None:
        super().__init__()
        self.first = relu_conv(Site(in_channels, out_channels, 2, affine=affine), 3)
        self.second = relu_conv(Site(out_channels, out_channels, affine=affine), 3)
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.shortcut(x) + self.second(self.first(x))
        return y


@checked("space")
class NasBench201(nn.Module):
    """Stem, three stages of equal cells with a reduction between them, pooling, classifier.

    One decision for each of the six edges, shared by all cells: 5^6 = 15,625 networks. The
    published ones have 16 channels and five cells a stage; a supernet to search on is often
    smaller. `arch_of_cell` and `cell_of` translate to and from the published notation.

    Args:
        channels: of the first stage; each stage has twice those of the one before.
        cells: in each stage.
        width: multiplies the channels.
        partial: K of partial channels, see `PartialChannels`; 1: none.
        affine: whether BatchNorms scale and shift; the DARTS family searches without.

    Shape: ``(N, *input_shape) -> (N, num_outputs)``.

    Raises:
        UserError: one of these cannot be.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: Count,
        name: str = NAME,
        channels: Count = 16,
        cells: Layers = 5,
        width: Positive = 1.0,
        partial: Count = 1,
        affine: bool = True,
    ) -> None:
        channels = max(partial, round(channels * width))
        check_cells(input_shape, channels, partial)
        super().__init__()
        self.name, self.input_shape = name, tuple(input_shape)
        widths = [channels * 2**stage for stage in range(STAGES)]
        self.stem = nn.Sequential(
            nn.Conv2d(input_shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.cell = nn.ModuleDict({edge_key(edge): Shared(tuple(NAS_BENCH_201)) for edge in EDGES})
        self.cells = nn.ModuleList(_stages(self.cell, widths, cells, affine, partial))
        self.last = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(widths[-1], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        y: Tensor = self.classifier(self.last(x).mean((2, 3)))
        return y


def _stages(
    cell: nn.ModuleDict, widths: Sequence[int], count: int, affine: bool, partial: int
) -> Iterator[nn.Module]:
    for stage, width in enumerate(widths):
        if stage:
            yield Reduction(widths[stage - 1], width, affine)
        for _ in range(count):
            yield Cell(cell, width, affine, partial)


def edge_key(edge: tuple[int, int]) -> str:
    """The name of an edge in the module: ``(1, 2)`` is ``"1_2"``."""
    return f"{edge[0]}_{edge[1]}"


def arch_of_cell(text: str, space: str = NAME) -> Arch:
    """The architecture of a cell in the published notation.

    Raises:
        UserError: not the text of a cell.
    """
    names = [f"cell.{edge_key(edge)}" for edge in EDGES]
    return Arch(space, dict(zip(names, parse(text), strict=True)))


def cell_of(arch: Arch) -> str:
    """The published notation of an architecture; the inverse of `arch_of_cell`.

    Raises:
        UserError: an architecture of another space.
    """
    names = [f"cell.{edge_key(edge)}" for edge in EDGES]
    if set(names) != set(arch.choices):
        raise UserError(
            f"an architecture of space {arch.space!r} is no NAS-Bench-201 cell: its decisions are "
            f"{sorted(arch.choices)} and not {names}"
        )
    return render([str(arch.choices[name]) for name in names])


def parse(text: str) -> tuple[str, ...]:
    """Read a cell in the published notation: the operation of each of `EDGES`.

    Raises:
        UserError: not the text of a cell, or an operation that is none of `OPS`.
    """
    found = re.findall(r"\|?([^|~+]+)~(\d)\|", text)
    sources = [int(source) for _, source in found]
    if sources != [source for source, _ in EDGES] or render([op for op, _ in found]) != text:
        raise UserError(f"{text!r} is no NAS-Bench-201 cell, such as {render(OPS[1:2] * 6)!r}")
    for op, _ in found:
        if op not in OPS:
            raise UserError(f"operation {op!r} in the cell {text!r} is not one of {list(OPS)}")
    return tuple(op for op, _ in found)


def render(ops: Sequence[str]) -> str:
    """Write a cell in the published notation; the inverse of `parse`."""
    nodes = {1: "|", 2: "|", 3: "|"}
    for op, (source, to) in zip(ops, EDGES, strict=False):
        nodes[to] += f"{op}~{source}|"
    return "+".join(nodes.values())


def live(ops: Sequence[str]) -> tuple[bool, ...]:
    """Whether each edge is on a path from the input to the output that no ``none`` cuts.

    Only these change what the cell computes; a runtime that optimises leaves the others out.
    """
    fed = {0}
    for (source, to), op in zip(EDGES, ops, strict=True):  # by rising target
        if source in fed and op != "none":
            fed.add(to)
    ends = zip(EDGES, reaching(ops), strict=True)
    return tuple(reaches and source in fed for (source, _), reaches in ends)


def reaching(ops: Sequence[str]) -> tuple[bool, ...]:
    """Whether each edge is on a path to the output that no ``none`` cuts, wherever it begins.

    More than `live`: an operation on zeros alone computes nothing of use, and yet it runs.
    """
    useful = {3}
    for source, to in reversed(EDGES):  # by falling source within falling target
        if to in useful and ops[EDGES.index((source, to))] != "none":
            useful.add(source)
    return tuple(op != "none" and to in useful for (_, to), op in zip(EDGES, ops, strict=True))
