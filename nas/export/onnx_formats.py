"""ONNX in float32, and in int8 by onnxruntime's static quantization."""

import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.export.slim import slim
from nas.export.source import Format, Model, Source
from nas.lowering import onnx_bytes, onnx_session
from nas.run import write_atomic

TOLERANCE = 1e-4
_BATCH = 64  # images that calibration looks at in one step


def session(model: bytes | str) -> Model:
    """A model in onnxruntime, on one thread."""
    run = onnx_session(model).run
    return lambda x: torch.from_numpy(run(None, {"input": x.numpy()})[0])


def onnx(network: nn.Module, example: Tensor, path: Path) -> float:
    """Write `network` as ONNX with a free batch size; return max |ONNX - eager| on `example`.

    The file is kept only if it computes what the network computes.

    Raises:
        UserError: the extra is not installed, or the outputs differ by more than 1e-4.
    """
    ONNX.check_installed()
    network = network.eval()
    content = onnx_bytes(network, (example,))
    with torch.no_grad():
        difference = float((session(content)(example) - network(example)).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX file computes something else than the network (max difference "
            f"{difference:.2g} > {TOLERANCE}), so it was not kept"
        )
    write_atomic(path, content)
    return difference


def write_onnx(source: Source, folder: Path) -> None:
    """ONNX with a free batch size."""
    write_atomic(folder / "network.onnx", onnx_bytes(source.network, (source.example,)))


def write_int8(source: Source, folder: Path) -> None:
    """Static quantization to QDQ: weights per channel, activations per tensor, all int8."""
    with TemporaryDirectory(dir=folder) as scratch:
        model = quantized(source, Path(scratch))
    slim(model)
    write_atomic(folder / "network_int8.onnx", model.SerializeToString())


def quantized(source: Source, scratch: Path) -> Any:
    """The `onnx.ModelProto` as onnxruntime's tool makes it, through files in `scratch`."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    assert source.calibration is not None
    reader = _Reader(source.calibration)
    logging.getLogger("root").setLevel(logging.ERROR)
    plain, ready, out = (str(scratch / name) for name in ("plain", "ready", "out"))
    Path(plain).write_bytes(onnx_bytes(source.network, (source.example,)))
    # Optimised first: BatchNorm is folded into the convolutions, whose weights are quantized.
    quant_pre_process(plain, ready, skip_symbolic_shape=True)
    quantize_static(
        ready,
        out,
        reader,
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
        self.batches: Iterator[Tensor] = iter(torch.split(images, _BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"input": batch.numpy()}


_NEEDS = ("onnx", "onnxscript", "onnxruntime")
ONNX = Format(
    ("network.onnx",),
    "onnxruntime",
    write_onnx,
    lambda path: session(str(path)),
    TOLERANCE,
    _NEEDS,
    "onnx",
)
INT8_ONNX = Format(
    ("network_int8.onnx",),
    "onnxruntime",
    write_int8,
    lambda path: session(str(path)),
    None,
    _NEEDS,
    "onnx",
)
