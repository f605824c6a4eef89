"""An integer graph as portable C99: constant weights, one static block of memory, no library.

`kernels.c` holds a function for each kind of operator; a file gets those that its network calls.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nas.errors import UserError
from nas.integer.arena import OUTPUT, Plan, memory_index, packed, planned
from nas.integer.graph import IntegerGraph
from nas.integer.operators import (
    Add,
    Concat,
    Conv,
    Mean,
    Move,
    Mul,
    Operator,
    Pool,
    Table,
    Value,
    sides_of,
)
from nas.quantization.packing import pack, pack_bits

_KERNELS = Path(__file__).with_name("kernels.c")
_LOOPS = 4  # of a move


def c_source(
    graph: IntegerGraph, about: str, name: str = "network", classify: bool = True
) -> tuple[str, str]:
    """The texts of ``NAME.c`` and ``NAME.h``.

    Args:
        about: what the network is, in one line.
        name: of the files and of what they define.
        classify: the function looks for the largest output; else it returns 0.

    Raises:
        UserError: a layer of more than 65535 channels, or positions in a row.
    """
    plan = planned(graph)
    writer = _Writer(graph, plan)
    lines = writer.calls()
    if sum(line.startswith("conv(") for line in lines) == 1:
        writer.kernels.add("alone")
    calls = "".join(f"    {line}\n" for line in lines)
    upper = name.upper()
    arena = f"static int8_t arena[{upper}_ARENA_SIZE];\n\n" if plan.size else ""
    source = (
        f"/* {_comment(about)}\n   Written by nas; do not edit. */\n\n"
        f'#include "{name}.h"\n\n{_kernels(writer.kernels)}\n'
        + "".join(writer.constants)
        + f"\n{arena}int {name}_run(const int8_t *input, int8_t *output)\n{{\n{calls}"
        + (_largest(upper) if classify else "    return 0;\n")
        + "}\n"
    )
    return source, _header(graph, plan, about, name)


def _largest(upper: str) -> str:
    """The lines that return the place of the largest output."""
    return (
        "    int best = 0;\n"
        f"    for (int i = 1; i < {upper}_OUTPUT_SIZE; i++)\n"
        "        if (output[i] > output[best])\n            best = i;\n"
        "    return best;\n"
    )


def _header(graph: IntegerGraph, plan: Plan, about: str, name: str) -> str:
    upper = name.upper()
    lines = []
    for part, value in (("INPUT", graph.start), ("OUTPUT", graph.end)):
        sides = ", ".join(map(str, (*value.shape[1:], value.shape[0])))
        lines += [
            f"#define {upper}_{part}_SIZE {value.numel} /* ({sides}), channels last */",
            f"#define {upper}_{part}_SCALE {value.scale!r}",
            f"#define {upper}_{part}_ZERO ({value.zero})",
        ]
    lines.append(
        f"#define {upper}_ARENA_SIZE {plan.size} /* bytes, static, beside the two above */"
    )
    body = "\n".join(lines)
    return (
        f"/* {_comment(about)} */\n\n#ifndef {upper}_H\n#define {upper}_H\n\n"
        "#include <stdint.h>\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n\n'
        f"/* A level q stands for the number SCALE * (q - ZERO). */\n{body}\n\n"
        "/* From levels of the input to levels of the output; returns the place of the largest of\n"
        "   these, which is the class. Not for two calls at the same time. */\n"
        f"int {name}_run(const int8_t *input, int8_t *output);\n\n"
        "#ifdef __cplusplus\n}\n#endif\n\n#endif\n"
    )


def _comment(text: str) -> str:
    """Text that ends no comment."""
    return re.sub(r"[^\w .,;:()'+-]", "_", text, flags=re.ASCII)


def _kernels(names: Iterable[str]) -> str:
    """The parts of `kernels.c` of these names."""
    used = {"common", *names}
    parts = re.split(
        r"^ */\* kernel: (\w+) \*/\n", _KERNELS.read_text(encoding="utf-8"), flags=re.M
    )
    found = zip(parts[1::2], parts[2::2], strict=True)
    return "".join(text for name, text in found if name in used)


class _Writer:
    """Constants and calls of a graph, each constant once."""

    def __init__(self, graph: IntegerGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.values: dict[str, Value] = {graph.start.name: graph.start}
        self.constants: list[str] = []
        self.kernels: set[str] = set()
        self.known: dict[tuple[str, bytes], str] = {}

    def calls(self) -> list[str]:
        """The lines that run the network."""
        lines = []
        for number, operator in enumerate(self.graph.operators):
            self.values[operator.output.name] = operator.output
            made = self._call(number, operator)
            if made:
                lines.append(f"/* {_comment(operator.path or type(operator).__name__)} */")
                lines += made
        end = self.plan.places[self.graph.end.name]
        if end != OUTPUT:
            self.kernels.add("common")
            lines.append(
                f"memcpy(output, {self._place(self.graph.end.name)}, {self.graph.end.numel});"
            )
        return lines

    def _call(self, number: int, operator: Operator) -> list[str]:
        if isinstance(operator, Conv | Pool):
            _check_sides(operator, self.values[operator.inputs[0]])
        if isinstance(operator, Conv):
            return self._conv(number, operator)
        if isinstance(operator, Concat):
            return self._concat(number, operator)
        if isinstance(operator, Move):
            return self._move(number, operator)
        if isinstance(operator, Table):
            levels = self._array("int8_t", f"table_{number}", operator.levels)
            return [self._line("table", operator, f"{levels}, {operator.output.numel}")]
        make: Mapping[type[Operator], Any] = {
            Add: self._add,
            Mul: self._mul,
            Mean: self._mean,
            Pool: self._pool,
        }
        kernel = type(operator).__name__.lower()
        fields = make[type(operator)](operator)
        return [self._line(kernel, operator, self._struct(kernel, number, fields))]

    def _place(self, name: str) -> str:
        place = self.plan.places[name]
        return place if isinstance(place, str) else f"arena + {place}"

    def _line(self, kernel: str, operator: Operator, settings: str, more: str = "") -> str:
        self.kernels.add(kernel)
        if kernel not in ("table", "move", "runs", "pool"):
            self.kernels.add("clamp")
        given = [self._place(name) for name in operator.inputs]
        if kernel == "add" and len(given) == 1:
            given *= 2
        return (
            f"{kernel}({', '.join([settings, *given, self._place(operator.output.name)])}{more});"
        )

    def _array(self, kind: str, name: str, values: NDArray[Any] | Sequence[int]) -> str:
        numbers = np.asarray(values).ravel()
        key = (kind, numbers.astype(np.int64).tobytes())
        if key not in self.known:
            self.known[key] = name
            text = ",".join(map(str, numbers.tolist()))
            wrapped = re.sub(r"(.{1,95})(?:,|$)", r"    \1,\n", text)
            self.constants.append(
                f"static const {kind} {name}[{len(numbers)}] = {{\n{wrapped}}};\n"
            )
        return self.known[key]

    def _struct(self, kernel: str, number: int | str, fields: Mapping[str, Any]) -> str:
        name = f"{kernel}_{number}"
        text = ", ".join(f".{key} = {_literal(value)}" for key, value in fields.items())
        wrapped = re.sub(r"(.{1,95})(?: |$)", r"    \1\n", text)
        self.constants.append(f"static const struct {kernel} {name} = {{\n{wrapped}}};\n")
        return f"&{name}"

    def _conv(self, number: int, conv: Conv) -> list[str]:
        outputs = len(conv.weight)
        rows = np.moveaxis(conv.weight, 1, -1).reshape(outputs, -1)
        content = b"".join(
            pack(torch.from_numpy(row[None]), int(bits))
            for row, bits in zip(rows, conv.bits, strict=True)
        )
        bits = "NULL"
        if packed(conv):
            self.kernels |= {"packed", "unpack"}
        if conv.is_mixed:
            codes = np.frombuffer(pack_bits(torch.from_numpy(conv.bits)), np.uint8)
            bits = self._array("uint8_t", f"bits_{number}", codes)
        source, sides = self.values[conv.inputs[0]], conv.sides_out
        coarse = any(other.shift < 15 for other in self.graph.convolutions())
        self.kernels.add("coarse" if coarse else "fine")
        fields = {
            "weight": self._array("uint8_t", f"weight_{number}", np.frombuffer(content, np.uint8)),
            "bits": bits,
            "all_bits": conv.bits[0],
            "bias": self._array("int16_t", f"bias_{number}", conv.bias),
            "multiplier": self._array("uint16_t", f"multiplier_{number}", conv.multiplier),
            **_window(conv),
            "channels": source.numel // prod(conv.sides_in),
            **{"out_height": sides[0], "out_width": sides[1], "out_channels": outputs},
            **{"group_in": conv.weight.shape[1], "group_out": outputs // conv.groups},
            **{"shift": conv.shift, "bias_shift": conv.shift - conv.point},
            "zero_in": conv.zero_in,
            **_limits(conv),
        }
        row = f"arena + {self.plan.rows[number]}" if number in self.plan.rows else "NULL"
        return [self._line("conv", conv, self._struct("conv", number, fields), f", {row}")]

    def _add(self, add: Add) -> dict[str, Any]:
        zeros, multipliers = (*add.zeros, 0), (*add.multipliers, 0)
        return {
            "count": add.output.numel,
            **{"first": multipliers[0], "second": multipliers[1]},
            **{"zero_first": zeros[0], "zero_second": zeros[1], "shift": add.shift},
            **_limits(add),
        }

    def _mul(self, mul: Mul) -> dict[str, Any]:
        first, second = (self.values[name] for name in mul.inputs)
        channels = first.shape[0]
        return {
            "places": first.numel // channels,
            "channels": channels,
            "step": channels if second.numel == first.numel else 0,
            "multiplier": mul.multiplier,
            **{"zero_first": mul.zeros[0], "zero_second": mul.zeros[1], "shift": mul.shift},
            **_limits(mul),
        }

    def _mean(self, mean: Mean) -> dict[str, Any]:
        source = self.values[mean.inputs[0]]
        return {
            "places": source.numel // source.shape[0],
            "channels": source.shape[0],
            **{"multiplier": mean.multiplier, "shift": mean.shift, "zero_in": mean.zero_in},
            **_limits(mean),
        }

    def _pool(self, pool: Pool) -> dict[str, Any]:
        sides = sides_of(pool.output.shape)
        return {
            **_window(pool),
            "channels": pool.output.numel // prod(sides),
            **{"out_height": sides[0], "out_width": sides[1]},
            **{"largest": int(pool.largest), "whole": int(pool.whole), "zero": pool.output.zero},
        }

    def _concat(self, number: int, concat: Concat) -> list[str]:
        self.kernels |= {"concat", "clamp"}
        lines, channel = [], 0
        total, to = concat.output.shape[0], self._place(concat.output.name)
        for part, name in enumerate(concat.inputs):
            source = self.values[name]
            fields = {
                "places": source.numel // source.shape[0],
                **{"channels": source.shape[0], "step": total},
                **{"multiplier": concat.multipliers[part], "zero_in": concat.zeros[part]},
                **{"zero": concat.output.zero, "shift": concat.shifts[part]},
            }
            settings = self._struct("concat", f"{number}_{part}", fields)
            lines.append(f"concat({settings}, {self._place(name)}, {to} + {channel});")
            channel += source.shape[0]
        return lines

    def _move(self, number: int, move: Move) -> list[str]:
        source = self.values[move.inputs[0]]
        if self.plan.places[source.name] == self.plan.places[move.output.name]:
            return []
        index = memory_index(move, source)
        if (loops := _loops(index)) is not None:
            start, nest = loops
            nest = [(1, 0)] * (_LOOPS - len(nest)) + nest
            counts, strides = (
                f"{{{', '.join(map(str, part))}}}" for part in zip(*nest, strict=True)
            )
            fields = {"start": start, "count": counts, "stride": strides}
            return [self._line("move", move, self._struct("move", number, fields))]
        pairs = _runs(index)
        settings = self._array("int32_t", f"runs_{number}", np.array(pairs))
        return [self._line("runs", move, f"{settings}, {len(pairs)}, {move.output.zero}")]


def _check_sides(operator: Conv | Pool, source: Value) -> None:
    """Its sizes fit the 16 bits that `kernels.c` has for them."""
    sides = operator.sides_in, sides_of(operator.output.shape)
    channels = (
        value.numel // prod(n) for value, n in zip((source, operator.output), sides, strict=True)
    )
    largest = max(*sides[0], *sides[1], *channels)
    if largest >= 2**16:
        raise UserError(
            f"the layer {operator.path!r} has {largest} channels or positions in a row, and a C "
            "file holds up to 65535 of them: pool or stride before it, or use int8_onnx"
        )


def _window(operator: Conv | Pool) -> dict[str, int]:
    kernel = operator.weight.shape[2:] if isinstance(operator, Conv) else operator.kernel
    pairs = {
        "kernel": kernel,
        "stride": operator.stride,
        "pad": operator.padding,
        "dilation": operator.dilation,
    }
    sides = dict(zip(("height", "width"), operator.sides_in, strict=True))
    return sides | {
        f"{key}_{side}": pair[i] for key, pair in pairs.items() for i, side in enumerate("hw")
    }


def _limits(operator: Operator) -> dict[str, int]:
    return {"zero": operator.output.zero, "low": operator.low, "high": operator.high}


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else str(int(value))


def _loops(index: NDArray[np.int64]) -> tuple[int, list[tuple[int, int]]] | None:
    """``index`` as nested loops: its first number, and (count, stride), the outermost first."""
    if index.min(initial=0) < 0:
        return None
    start, nest = int(index[0]), list[tuple[int, int]]()
    while len(index) > 1:
        stride = int(index[1] - index[0])
        jumps = np.flatnonzero(np.diff(index) != stride)
        longest = int(jumps[0]) + 1 if len(jumps) else len(index)
        for count in range(longest, 1, -1):
            if len(index) % count == 0:
                blocks = index.reshape(-1, count)
                if np.array_equal(blocks, blocks[:, :1] + stride * np.arange(count)):
                    break
        else:
            return None
        nest.insert(0, (count, stride))
        index = index[::count]
    return (start, nest) if len(nest) <= _LOOPS else None


def _runs(index: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(begin, length) of elements that lie one after the other; begin -1: zeros."""
    ends = np.flatnonzero(np.where(index[:-1] < 0, index[1:] >= 0, np.diff(index) != 1)) + 1
    begins = [0, *ends.tolist()]
    lengths = np.diff([*begins, len(index)]).tolist()
    return [(max(-1, int(index[b])), n) for b, n in zip(begins, lengths, strict=True)]
