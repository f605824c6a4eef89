"""Cells of NAS-Bench-201 as text: ``|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`` (Dong and Yang 2020)."""

import re
from collections.abc import Sequence

from nas.errors import UserError

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
# Edges (from, to) between the four nodes, in the order of the text; 0 is the input, 3 the output.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def parse(text: str) -> tuple[str, ...]:
    """The operation of each of `EDGES`.

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
    """The text of the cell with these operations on `EDGES`; the inverse of `parse`."""
    nodes = {1: "|", 2: "|", 3: "|"}
    for op, (source, to) in zip(ops, EDGES, strict=False):
        nodes[to] += f"{op}~{source}|"
    return "+".join(nodes.values())


def live(ops: Sequence[str]) -> tuple[bool, ...]:
    """Whether each edge is on a path from the input to the output that no ``none`` cuts.

    Only these change what the cell computes; a runtime that optimises leaves the others out.
    """
    present = [edge for edge, op in zip(EDGES, ops, strict=True) if op != "none"]
    fed, useful = {0}, {3}
    for _ in range(3):
        fed |= {to for source, to in present if source in fed}
        useful |= {source for source, to in present if to in useful}
    return tuple(
        op != "none" and source in fed and to in useful
        for (source, to), op in zip(EDGES, ops, strict=True)
    )


def reaching(ops: Sequence[str]) -> tuple[bool, ...]:
    """Whether each edge is on a path to the output that no ``none`` cuts, wherever it begins.

    More than `live`: an operation on zeros alone computes nothing of use, and yet it runs.
    """
    useful = {3}
    for source, to in reversed(EDGES):  # by falling source within falling target
        if to in useful and ops[EDGES.index((source, to))] != "none":
            useful.add(source)
    return tuple(op != "none" and to in useful for (_, to), op in zip(EDGES, ops, strict=True))
