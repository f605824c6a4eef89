"""Flash and RAM of the C file (`format=c`) on a microcontroller, while its network is searched.

Both are estimates from above of what the linker map says of the cross-compiled file;
experiments/boards compares them. Code is that of `nas/integer/kernels.c` for Cortex-M with -O2.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from torch import nn

from nas.cost.activations import Buffer, Read
from nas.cost.analytic import packed_bytes
from nas.cost.dry_run import Example
from nas.cost.expected import Expected, layer_terms
from nas.cost.layer import LayerSpec
from nas.cost.memory import peak_terms
from nas.cost.operators import Operator
from nas.cost.polynomial import (
    Condition,
    Polynomial,
    consistent,
    probability,
    united,
    weighted_sum,
)
from nas.cost.trace import Trace, trace
from nas.quantization import packing

_CODE = 1376  # bytes: convolution, and the function that calls the layers
_LAYER = 56 + 16  # constants that hold the sizes of a convolution, and the code of its call
_CHANNEL = 4  # bias and multiplier of an output channel
_UNPACK = 90  # code that unpacks weights of fewer than 8 bits
# Kernel -> bytes of one call with its constants, of its code, and how many fewer both take where
# it is the only call: compilers put the code into the caller then, and the constants into the code.
_KERNELS: Mapping[str, tuple[int, int, int]] = {
    "add": (40, 150, 100),
    "mul": (40, 156, 85),
    "mean": (36, 220, 100),
    "pool": (52, 350, 185),
    "concat": (80, 140, 0),
    "table": (276, 30, 0),
    "move": (56, 130, 105),
    "runs": (40, 80, 65),
}
# Part of an operator's name in PyTorch -> the kernel that it calls.
_CALLED = {"clone": "move", "copy": "move", "zeros": "runs", "cat": "concat", "sub": "add"}
_CALLED |= {"constant_pad": "runs"}
_CALLED |= {name: name for name in ("add", "mul", "mean", "pool")}
_RUN = 8  # bytes of where a run of elements begins, and how long it is
_COPY = "rounded copy"  # names of operators that only a graph of integers has
_MOVE = "moved copy"
_EXACT = 8  # places of a kernel, up to which its code counts only where one of them is taken
_LIMITS = ("relu", "hardtanh", "clamp")  # part of the operator in front, where they alone read it
_BEFORE_LIMITS = ("convolution", "addmm", "batch_norm", "add", "mul", "mean")


@dataclass(frozen=True)
class Flash:
    """Bytes of code and constants of the network's C file.

    Weights as they are packed, 4 bytes for each output channel, what tells each layer its sizes,
    and the code of the kernels that the space may call. BatchNorm is folded where it can be, and
    is a convolution elsewhere.

    Args:
        weight_bits: of weights that have no bits of their own.
    """

    weight_bits: int = 8
    name: str = "flash"
    unit: str = "B"

    def expected(self, model: nn.Module, example: Example | Trace) -> Expected:
        """The flash of `model` under its thetas.

        Args:
            example: as for `nas.cost.trace.trace`; or a `Trace` made before.

        Raises:
            UserError: as `trace` does.
        """
        traced = example if isinstance(example, Trace) else trace(model, example)
        traced = _as_written(traced)
        parts: list[tuple[float, Polynomial]] = [
            (1, layer_terms(traced, _Layers(self.weight_bits))),
            *_operators(traced),
            *_unpacking(traced, self.weight_bits),
        ]
        return Expected(model, self.name, self.unit, [weighted_sum(parts)], traced.options)


@dataclass(frozen=True)
class Ram:
    """Bytes of the network's static memory on a microcontroller, with one input and one output.

    The activations that live at once, in 8 bits, as `nas.cost.memory.PeakMemory` counts them, with
    the row of weights that a layer of fewer than 8 bits unpacks; the caller holds the input and the
    output all the time.
    """

    name: str = "ram"
    unit: str = "B"

    def expected(self, model: nn.Module, example: Example | Trace) -> Expected:
        """The RAM of `model` under its thetas.

        Args:
            example: as for `nas.cost.trace.trace`; or a `Trace` made before.

        Raises:
            UserError: as `trace` does.
        """
        traced = example if isinstance(example, Trace) else trace(model, example)
        traced = _with_rows(_as_written(traced))
        held = {*traced.starts, *(buffer for _, buffer in traced.outputs)}
        sizes = [0 if i in held else b.numel for i, b in enumerate(traced.buffers)]
        outputs = max(traced.buffers[buffer].numel for _, buffer in traced.outputs)
        given = sum(traced.buffers[buffer].numel for buffer in traced.starts) + outputs
        peaks = peak_terms(traced, sizes, fuse=True)
        added: Polynomial = {frozenset(): float(given)}
        return Expected(model, self.name, self.unit, peaks, traced.options, added)


def _as_written(traced: Trace) -> Trace:
    """The operators that the C file has, and the copies that only it makes."""
    return _with_copies(_with_moves(_without_padding(traced)))


def _without_padding(traced: Trace) -> Trace:
    """Zeros around what only convolutions read are padding of these: nothing is copied."""
    readers: dict[int, set[str]] = defaultdict(set)
    for operator in traced.operators:
        for _, buffer in operator.reads:
            readers[buffer].add(operator.name)
    padded: dict[int, tuple[Read, ...]] = {}
    kept = []
    for operator in traced.operators:
        reads = tuple(
            (condition | own, source)
            for condition, buffer in operator.reads
            for own, source in padded.get(buffer, ((frozenset(), buffer),))
        )
        made = operator.makes[:1]
        if operator.name == "constant_pad_nd" and readers[made[0]] == {"convolution"}:
            padded[made[0]] = reads
        else:
            kept.append(replace(operator, reads=reads))
    return replace(traced, operators=tuple(kept))


def _with_moves(traced: Trace) -> Trace:
    """A part of a value is a copy of it, and so is a map that the caller gets as a row of numbers.

    Channels are the last in memory, and a value has no gaps. Where a copy is read in place of the
    whole, and saves memory by that, is not looked at.
    """
    given = {buffer for _, buffer in traced.outputs}
    buffers, operators, moved = [*traced.buffers], [], {}
    for operator in traced.operators:
        operators.append(operator)
        if not operator.view or not operator.reads:
            continue
        shapes = re.findall(r"\d+(?:x\d+)+", operator.text)
        if not shapes:
            continue
        read, *made = (tuple(map(int, text.split("x"))) for text in shapes)
        parts = [shape for shape in made if prod(shape) < prod(read)]
        rows = min(prod(read[2:]), read[1]) > 1 and {shape[1:2] for shape in made} != {read[1:2]}
        for _, buffer in operator.reads:
            if buffer in given and rows and not parts:
                moved[buffer] = len(buffers)
                parts = [read]
        for shape in parts:
            made_here = (len(buffers),)
            operators.append(
                Operator(_MOVE, operator.module, operator.choices, operator.reads, made_here)
            )
            buffers.append(Buffer(prod(shape), buffers[0].dtype))
    outputs = tuple((condition, moved.get(b, b)) for condition, b in traced.outputs)
    return replace(traced, buffers=tuple(buffers), operators=tuple(operators), outputs=outputs)


def _with_copies(traced: Trace) -> Trace:
    """A layer of inputs of fewer than 8 bits reads a copy of them, where they are not its own.

    See `nas.integer.grids`: its own are those that nothing else reads, of an operator that can keep
    its results within fewer levels.
    """
    readers: dict[int, list[Operator]] = defaultdict(list)
    for operator in traced.operators:
        for _, buffer in operator.reads if not operator.view else ():
            readers[buffer].append(operator)
    makers = {buffer: operator for operator in traced.operators for buffer in operator.makes}
    buffers, operators = [*traced.buffers], []
    for operator in traced.operators:
        narrow = any(0 < layer.bits_in < 8 for layer in operator.layers)
        if narrow and not all(
            _keeps_levels(makers.get(buffer))
            and all(
                other is operator or not consistent(other.condition | operator.condition)
                for other in readers[buffer]
            )
            for _, buffer in operator.reads
        ):
            read = [traced.buffers[buffer] for _, buffer in operator.reads]
            copy: tuple[Read, ...] = ((frozenset(), len(buffers)),)
            made = (len(buffers),)
            operators.append(
                Operator(_COPY, operator.module, operator.choices, operator.reads, made, (), True)
            )
            buffers.append(max(read, key=lambda buffer: buffer.numel))
            operator = replace(operator, reads=copy)
        operators.append(operator)
    return replace(traced, buffers=tuple(buffers), operators=tuple(operators))


def _keeps_levels(maker: Operator | None) -> bool:
    if maker is None:  # the input of the network
        return False
    limits = any(part in maker.name for part in (*_BEFORE_LIMITS, *_LIMITS))
    return maker.pointwise or (limits and "pool" not in maker.name)


def _with_rows(traced: Trace) -> Trace:
    """A layer of fewer than 8 bits makes a row of unpacked weights, which nothing reads later."""
    buffers, operators = [*traced.buffers], []
    for operator in traced.operators:
        rows = [_fan_in(layer) for layer in operator.layers if 0 < layer.bits_weight < 8]
        if rows:
            operator = replace(operator, makes=(*operator.makes, len(buffers)))
            buffers.append(Buffer(max(rows), "int8"))
        operators.append(operator)
    return replace(traced, buffers=tuple(buffers), operators=tuple(operators))


def _fan_in(layer: LayerSpec) -> int:
    """Weights of one output channel of a call."""
    return layer.in_channels // layer.groups * prod(layer.kernel)


@dataclass(frozen=True)
class _Layers:
    """Bytes of layers with weights: the weights, and what belongs to each call."""

    bits: int
    name: str = "flash"
    unit: str = "B"
    extra_kinds: ClassVar = ("folded", "gained")

    def __call__(self, layer: LayerSpec) -> float:
        if layer.kind in ("conv", "linear"):
            fan_in, ends = _fan_in(layer), 0.0
            if not layer.bits_weight:  # rows end at whole bytes, which a tensor does not tell
                ends = layer.out_channels * (-(-fan_in * self.bits // 8) - fan_in * self.bits / 8)
            elif len(layer.rows) > 1:
                ends = packing.bytes_of_bits(layer.out_channels)
            return _LAYER + _CHANNEL * layer.out_channels + ends
        tensor = layer.role.rpartition(".")[2]
        if tensor == "running_mean":  # a norm that stays is a depthwise convolution of kernel 1
            own = layer.numel * (1 + _CHANNEL) + _LAYER
            return -own if layer.kind == "folded" else own
        if layer.kind != "parameter" or layer.ndim < 2:
            return 0
        packed = packed_bytes(layer)
        return layer.numel * self.bits / 8 if packed is None else packed


def _operators(traced: Trace) -> Iterator[tuple[float, Polynomial]]:
    """Bytes of what has no weights, each with the probability that it is there; all the code."""
    readers = Counter(buffer for op in traced.operators for _, buffer in op.reads if not op.view)
    makers = {buffer: op for op in traced.operators for buffer in op.makes}
    called: dict[str, list[Condition]] = defaultdict(list)  # by the kernel
    for operator in traced.operators:
        limits = operator.name.rstrip("_") in _LIMITS
        kernel = "add" if limits or operator.name == _COPY else _kernel(operator)
        if kernel is None or (limits and _fused(operator, readers, makers)):
            continue
        called[kernel].append(operator.condition)
        there = probability([operator.condition])
        yield _KERNELS[kernel][0], there
        if "constant_pad" in operator.name:
            yield _RUN * _runs(operator), there
    yield _CODE, {frozenset(): 1.0}
    for kind, conditions in called.items():
        yield _KERNELS[kind][1], _once(dict.fromkeys(conditions), traced)
        for sign, only in _alone(conditions, traced):
            yield -sign * _KERNELS[kind][2], only


def _runs(operator: Operator) -> int:
    """Of padded maps: a row and what lies between it and the next, and what lies before them."""
    sides = [int(n) for n in operator.text.rpartition("->")[2].split("x")[2:]]
    return 2 * prod(sides[:-1]) + 1


def _kernel(operator: Operator) -> str | None:
    """What it calls; None for what it has no code for, or that of convolutions."""
    if operator.view or operator.layers or "batch_norm" in operator.name:
        return None
    found = next((kernel for part, kernel in _CALLED.items() if part in operator.name), None)
    # A function of one number is a table, sums and products with a constant too.
    return "table" if operator.pointwise and found != "move" else found


def _unpacking(traced: Trace, bits: int) -> Iterator[tuple[float, Polynomial]]:
    """The code that unpacks weights, where a layer has fewer than 8 bits."""
    where = {
        operator.condition: None
        for operator in traced.operators
        if any((layer.bits_weight or bits) < 8 for layer in operator.layers)
    }
    if where:
        yield _UNPACK, _once(where, traced)


def _once(conditions: Iterable[Condition], traced: Trace) -> Polynomial:
    """The probability that code is there that all of these share; 1 where they are many."""
    places = united(conditions, traced.options)
    return probability(places) if len(places) <= _EXACT else {frozenset(): 1.0}


def _alone(conditions: Sequence[Condition], traced: Trace) -> Iterator[tuple[int, Polynomial]]:
    """Terms of the probability that exactly one of these holds; none where they are many."""
    for number, own in enumerate(conditions) if len(conditions) <= _EXACT else ():
        others = (own | c for i, c in enumerate(conditions) if i != number)
        both = united((c for c in others if consistent(c)), traced.options)
        if own not in both:
            yield 1, probability([own])
            yield -1, probability(both)


def _fused(operator: Operator, readers: Counter[int], makers: Mapping[int, Operator]) -> bool:
    """Whether the limits of an activation go into the operator in front."""
    if operator.overwrites:  # in place: only behind a norm, see `nas.ops.blocks.act`
        return True
    given = [buffer for _, buffer in operator.reads]
    return all(
        readers[buffer] == 1 and any(part in makers[buffer].name for part in _BEFORE_LIMITS)
        for buffer in given
        if buffer in makers
    ) and all(buffer in makers for buffer in given)
