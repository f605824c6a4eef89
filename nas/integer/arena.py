"""Where the values of a graph lie in one block of memory, planned before anything runs.

In memory the channels come last, ``(*S, C)``, so that a convolution finds the numbers that it adds
up beside each other.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from nas.integer.graph import IntegerGraph
from nas.integer.operators import Add, Conv, Move, Mul, Operator, Shape, Table, Value

INPUT, OUTPUT = "input", "output"  # what the caller holds
_TRIES = 40  # orders in which values are given their places, from each of several first ones


@dataclass(frozen=True)
class Plan:
    """Where everything lies.

    Args:
        places: value -> `INPUT`, `OUTPUT`, or where it begins in the arena.
        rows: number of an operator that unpacks weights -> where a row of them goes in the arena.
        size: bytes of the arena.
        least: bytes that live at once at the worst step: no arena is smaller.
    """

    places: Mapping[str, str | int]
    rows: Mapping[int, int]
    size: int
    least: int


@dataclass(frozen=True)
class _Buffer:
    """Bytes that are needed from step `first` to step `last`, both included."""

    name: str
    size: int
    first: int
    last: int


def planned(graph: IntegerGraph) -> Plan:
    """Places for all values: a value that only looks at another one lies where that one does.

    An operator that works element by element writes over an input that nothing reads any more.
    """
    roots = _roots(graph)
    first, last = _lives(graph, roots)
    sizes = {value.name: value.numel for value in _values(graph)}
    held = {roots[graph.start.name]: INPUT}
    held.setdefault(roots[graph.end.name], OUTPUT)
    buffers = [
        _Buffer(name, sizes[name], first[name], last[name])
        for name in dict.fromkeys(roots.values())
        if name not in held
    ]
    rows = {i: f"row {i}" for i, op in enumerate(graph.operators) if packed(op)}
    for number, name in rows.items():
        conv = graph.operators[number]
        assert isinstance(conv, Conv)
        buffers.append(_Buffer(name, conv.fan_in, number, number))
    offsets, size, least = _placed(buffers)
    places: dict[str, str | int] = {
        name: held[root] if root in held else offsets[root] for name, root in roots.items()
    }
    return Plan(places, {i: offsets[name] for i, name in rows.items()}, size, least)


def packed(operator: Operator) -> bool:
    """Whether it unpacks weights of fewer than 8 bits."""
    return isinstance(operator, Conv) and bool((operator.bits < 8).any())


def memory_order(shape: Shape) -> NDArray[np.int64]:
    """The flat index in ``(C, *S)`` of each element in the order of memory."""
    return np.moveaxis(np.arange(prod(shape)).reshape(shape), 0, -1).ravel()


def memory_index(move: Move, source: Value) -> NDArray[np.int64]:
    """Where each element of a moved value comes from, both in the order of memory; -1: zero."""
    where = np.empty(source.numel + 1, dtype=np.int64)
    where[memory_order(source.shape)] = np.arange(source.numel)
    where[-1] = -1
    return where[move.index[memory_order(move.output.shape)]]


def _values(graph: IntegerGraph) -> list[Value]:
    return [graph.start, *(operator.output for operator in graph.operators)]


def _roots(graph: IntegerGraph) -> dict[str, str]:
    """Value -> the one in whose memory it lies."""
    by_name = {value.name: value for value in _values(graph)}
    roots = {graph.start.name: graph.start.name}
    lives = _last_reads(graph)
    for number, operator in enumerate(graph.operators):
        name = operator.output.name
        roots[name] = name
        if isinstance(operator, Move):
            source = by_name[operator.inputs[0]]
            index = memory_index(operator, source)
            if np.array_equal(index, np.arange(source.numel)):
                roots[name] = roots[source.name]
        elif isinstance(operator, Table | Add | Mul) and operator.output is not graph.end:
            over = operator.inputs[:1] if isinstance(operator, Mul) else operator.inputs
            for given in over:
                group = [other for other, root in roots.items() if root == roots[given]]
                dead = all(lives.get(other, -1) <= number for other in group if other != name)
                if dead and roots[given] != graph.start.name:
                    roots[name] = roots[given]
                    break
    return roots


def _last_reads(graph: IntegerGraph) -> dict[str, int]:
    last = {name: i for i, operator in enumerate(graph.operators) for name in operator.inputs}
    return {**last, graph.end.name: len(graph.operators)}


def _lives(graph: IntegerGraph, roots: Mapping[str, str]) -> tuple[dict[str, int], dict[str, int]]:
    first: dict[str, int] = {roots[graph.start.name]: 0}
    last: dict[str, int] = {}
    reads = _last_reads(graph)
    for number, operator in enumerate(graph.operators):
        root = roots[operator.output.name]
        first.setdefault(root, number)
        last[root] = max(last.get(root, number), reads.get(operator.output.name, number))
    return first, last


def _placed(buffers: Sequence[_Buffer]) -> tuple[dict[str, int], int, int]:
    """Offsets, the size of it all, and the bytes that live at once at most."""
    steps = {buffer.first for buffer in buffers}
    least = max(
        (sum(b.size for b in buffers if b.first <= step <= b.last) for step in steps), default=0
    )
    orders: list[Callable[[_Buffer], tuple[int, ...]]] = [
        lambda b: (-b.size, b.first),
        lambda b: (b.first, -b.size),
        lambda b: (b.first - b.last, -b.size),
        lambda b: (-b.last, -b.size),
        lambda b: (-b.size * (b.last - b.first + 1), b.first),
    ]
    found: tuple[dict[str, int], int] | None = None
    for order in orders:
        queue = sorted(buffers, key=order)
        for _ in range(_TRIES):
            offsets = _lowest(queue)
            size = max((offsets[b.name] + b.size for b in buffers), default=0)
            if found is None or size < found[1]:
                found = offsets, size
            if found[1] == least:
                return *found, least
            # What lies at the top comes earlier.
            top = next(b for b in queue if offsets[b.name] + b.size == size)
            place = queue.index(top)
            queue.insert(place // 2, queue.pop(place))
    assert found is not None
    return *found, least


def _lowest(buffers: Sequence[_Buffer]) -> dict[str, int]:
    """One after the other at the lowest place where none lies that lives at the same time."""
    offsets: dict[str, int] = {}
    done: list[_Buffer] = []
    for buffer in buffers:
        beside = sorted(
            (offsets[o.name], offsets[o.name] + o.size)
            for o in done
            if o.first <= buffer.last and buffer.first <= o.last
        )
        place = 0
        for begin, end in beside:
            if place + buffer.size <= begin:
                break
            place = max(place, end)
        offsets[buffer.name] = place
        done.append(buffer)
    return offsets
