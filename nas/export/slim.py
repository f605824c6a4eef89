"""An int8 ONNX file without what no runtime needs: in a small network that is a third of it.

Quantization writes zero points that are zero and therefore the default, names of 40 letters made
of names, shapes that every runtime infers, and for every bias a scale per channel that is the
product of two others. What is computed stays the same to the bit; names of the inner tensors are
numbers afterwards.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

_SHORTEST = 16  # channels, below which the node that computes a bias's scales is the larger


def slim(model: Any) -> None:
    """Make a quantized `onnx.ModelProto` smaller in place."""
    graph = model.graph
    _drop_zero_points(graph)
    _derive_bias_scales(graph)
    _share(graph)
    _drop_unused(graph)
    _rename(graph)
    del graph.value_info[:]
    used = {node.domain for node in graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _values(graph: Any) -> dict[str, Any]:
    from onnx import numpy_helper

    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _drop_zero_points(graph: Any) -> None:
    """Of constants: zero is the default, in the type of what is dequantized."""
    values = _values(graph)
    # onnxruntime fuses a Gemm only where its weights have a zero point.
    kept = {name for node in graph.node if node.op_type != "Conv" for name in node.input}
    for node in graph.node:
        constant = node.op_type == "DequantizeLinear" and node.input[0] in values
        if not constant or len(node.input) < 3 or node.output[0] in kept:
            continue
        if not values[node.input[2]].any():
            del node.input[2]


def _derive_bias_scales(graph: Any) -> None:
    """``scale(bias) = scale(input) * scale(weights)``, multiplied when the file is loaded."""
    from onnx import helper

    values, made = _values(graph), {node.output[0]: node for node in graph.node}
    products = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        parts = [made.get(name) for name in node.input]
        if any(part is None or part.op_type != "DequantizeLinear" for part in parts):
            continue
        scales = [part.input[1] for part in parts if part is not None]
        x, weight, bias = (values.get(name) for name in scales)
        if x is None or weight is None or bias is None or bias.size < _SHORTEST:
            continue
        if np.array_equal(x * weight, bias):
            name = f"{scales[2]}_product"
            products.append(helper.make_node("Mul", scales[:2], [name]))
            parts[2].input[1] = name  # type: ignore[union-attr]
    for product in products:
        graph.node.insert(0, product)


def _share(graph: Any) -> None:
    """One tensor where several hold the same."""
    first: dict[tuple[Any, ...], str] = {}
    other: dict[str, str] = {}
    for name, value in _values(graph).items():
        key = (value.dtype.str, value.shape, value.tobytes())
        other[name] = first.setdefault(key, name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = other.get(name, name)


def _drop_unused(graph: Any) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename(graph: Any) -> None:
    """Short names for all but the inputs and outputs of the whole."""
    outside = {value.name for value in (*graph.input, *graph.output)}
    short: dict[str, str] = {name: name for name in outside}
    numbers = _numbers(outside)
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name:  # an optional input that is left out has none
                    names[i] = short.get(name) or short.setdefault(name, next(numbers))
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]


def _numbers(taken: set[str]) -> Iterator[str]:
    """ "0", "1", ..., without those that are taken."""
    number = 0
    while True:
        if str(number) not in taken:
            yield str(number)
        number += 1
