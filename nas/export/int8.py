"""int8: training a network for it, and the files of onnxruntime and of ExecuTorch.

A network and inputs go in, a network or the content of a file comes out: nothing here knows of runs
or data. float32 files are `nas.lowering`'s.
"""

import logging
from collections.abc import Iterable
from itertools import count
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nas.copying import copied
from nas.lowering import executorch_silenced, onnx_bytes, pte_bytes
from nas.quantization.quantizers import fake_quantize, first_step, levels, step_and_zero
from nas.tasks import Task, check_finite

ROUNDED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_BATCH = 64  # images that calibration looks at in one step
_SHORTEST = 16  # channels, below which the node that computes a bias's scales is the larger


class RoundedWeight(nn.Module):
    """Weights ``(C_out, ...)`` in 255 levels of steps that follow the largest weight of a channel.

    Not those of `nas.quantization`, which are trained: onnxruntime and XNNPACK read them off the
    weights that they are given.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded; the gradient is that of the identity."""
        step = first_step(weight.detach(), 8, "minmax").view(-1, *[1] * (weight.ndim - 1))
        return fake_quantize(weight, step, torch.zeros(()), -levels(8), levels(8), 0.0)


class RoundedInput:
    """A forward pre-hook that follows the range of a layer's input and rounds to its 256 levels."""

    def __init__(self, momentum: float = 0.1) -> None:
        self.momentum = momentum
        self.range: tuple[Tensor, Tensor] | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        now = (x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0))
        low, high = self.range or now
        self.range = (low.lerp(now[0], self.momentum), high.lerp(now[1], self.momentum))
        limits = -levels(8) - 1, levels(8)
        return (fake_quantize(x, *step_and_zero(*self.range, *limits), *limits, 0.0), *inputs[1:])


def fine_tune(
    network: nn.Module,
    task: Task,
    loader: Iterable[tuple[Tensor, Tensor]],
    epochs: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """A copy of `network` trained on with int8's rounding; in eval mode, of the same layers.

    Rounding is as XNNPACK's and onnxruntime's: weights symmetric per output channel, inputs of
    convolutions and linear layers per tensor. BatchNorm keeps its statistics, as it will be folded:
    a scale per output channel, which the weight's own scale takes up, so nothing is folded here.

    Args:
        task: gives the loss.
        loader: batches of one epoch, anew at each iteration.
        lr: of SGD with momentum, falling to 0 along a cosine.
        seed: of random draws in the network (dropout).
    """
    trained = copied(network).eval()  # eval: BatchNorm keeps its statistics
    layers = [m for m in trained.modules() if isinstance(m, ROUNDED)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", RoundedWeight())
    hooks = [layer.register_forward_pre_hook(RoundedInput()) for layer in layers]
    torch.manual_seed(seed)
    _train(trained, task, loader, epochs, lr)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return trained


def _train(
    network: nn.Module, task: Task, loader: Iterable[tuple[Tensor, Tensor]], epochs: int, lr: float
) -> None:
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + cos(pi * epoch / epochs)) / 2
        for x, targets in loader:
            loss = check_finite(task.loss(network(x), targets), epoch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()


def int8_onnx_bytes(network: nn.Module, example: Tensor, calibration: Tensor) -> bytes:
    """As `onnx_bytes`, quantized to QDQ: weights per channel, activations per tensor, all int8.

    Args:
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
    """
    model = qdq_model(network, example, calibration)
    slim(model)
    content: bytes = model.SerializeToString()
    return content


def qdq_model(network: nn.Module, example: Tensor, calibration: Tensor) -> Any:
    """The `onnx.ModelProto` as onnxruntime's tool makes it."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger("root").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        plain, ready, out = (str(Path(folder) / name) for name in ("plain", "ready", "out"))
        Path(plain).write_bytes(onnx_bytes(network, (example,)))
        # Optimised first: BatchNorm is folded into the convolutions, whose weights are quantized.
        quant_pre_process(plain, ready, skip_symbolic_shape=True)
        quantize_static(
            ready,
            out,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QInt8,
            extra_options={"TensorQuantOverrides": _one_scale(onnx.load(ready), QuantType.QInt8)},
        )
        return onnx.load(out)


def _one_scale(model: Any, kind: Any) -> dict[str, list[dict[str, Any]]]:
    """Weights with one scale for all channels: those of grouped transposed convolutions.

    They are ``(C_in, C_out / groups, ...)``: onnxruntime's tool takes the channels of one group
    for all of them, and fails on a bias.
    """
    nodes = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    groups = {
        node.input[1]: next((a.i for a in node.attribute if a.name == "group"), 1) for node in nodes
    }
    override = {"quant_type": kind, "symmetric": True}
    return {name: [override] for name, count in groups.items() if count > 1}


class _Reader:
    """What onnxruntime asks for batches, until there is None."""

    def __init__(self, images: Tensor) -> None:
        self.batches = iter(torch.split(images, _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


def slim(model: Any) -> None:
    """Take out of a quantized `onnx.ModelProto` what no runtime needs; it computes the same.

    In a small network that is a third of the file: zero points that are zero and so the default,
    names of 40 letters (numbers afterwards), shapes that every runtime infers, and for every bias a
    scale per channel that is the product of two others.
    """
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
    numbers = (str(n) for n in count() if str(n) not in outside)
    for node in graph.node:
        node.name = ""
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name:  # an optional input that is left out has none
                    names[i] = short.get(name) or short.setdefault(name, next(numbers))
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]


def int8_pte_bytes(network: nn.Module, example: Tensor, calibration: Tensor) -> bytes:
    """As `pte_bytes` for one image, in int8: weights per channel, activations per tensor.

    Args:
        example: inputs ``(N, ...)``, N at least 2.
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    with executorch_silenced():
        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        converted = pt2e_model(network, example, calibration, quantizer)
    return pte_bytes(converted, (example[:1],))


def pt2e_model(
    network: nn.Module, example: Tensor, calibration: Tensor, quantizer: Any
) -> nn.Module:
    """The network with quantized operators, by PT2E static quantization.

    Args:
        example: inputs ``(N, ...)``; of one sample: it takes one at a time.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    alone = len(example) == 1
    sizes = None if alone else ({0: torch.export.Dim("batch", min=1, max=4 * _BATCH)},)
    program = torch.export.export(network, (example,), dynamic_shapes=sizes)
    # Its guards are a module, which passes of quantizers do not take.
    prepared = prepare_pt2e(program.module(check_guards=False), quantizer)
    with torch.no_grad():
        for images in torch.split(calibration, 1 if alone else _BATCH):
            prepared(images)
    converted: nn.Module = convert_pt2e(prepared)
    return converted
