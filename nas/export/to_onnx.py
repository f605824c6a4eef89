"""The lowering to ONNX in int8, by onnxruntime's static quantization; float32 is `nas.lowering`'s.

A network and an example go in, the content of a file comes out: nothing here knows of runs or data.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nas.export.slim import slim
from nas.lowering import onnx_bytes, onnx_session

NEEDS = ("onnx", "onnxscript", "onnxruntime")
_BATCH = 64  # images that calibration looks at in one step


def int8_onnx_bytes(network: nn.Module, example: Tensor, calibration: Tensor) -> bytes:
    """As `onnx_bytes`, quantized to QDQ: weights per channel, activations per tensor, all int8.

    Args:
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
    """
    model = quantized(network, example, calibration)
    slim(model)
    content: bytes = model.SerializeToString()
    return content


def quantized(network: nn.Module, example: Tensor, calibration: Tensor) -> Any:
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


def open_onnx(model: bytes | str | Path) -> Callable[[Tensor], Tensor]:
    """A file, or its content, in onnxruntime on one thread of the CPU."""
    content = model if isinstance(model, bytes) else str(model)
    run = onnx_session(content).run
    return lambda x: torch.from_numpy(run(None, {"input": x.numpy()})[0])
