"""ExecuTorch with the XNNPACK backend, float32 and int8, for one image at a time."""

from pathlib import Path

import torch
from torch import nn

from nas.export.source import Format, Model, Source
from nas.lowering import executorch_silenced, pte_bytes
from nas.run import write_atomic

_BATCH = 64


def write_pte(source: Source, folder: Path) -> None:
    """Float32."""
    write_atomic(folder / "network.pte", pte_bytes(source.network, (source.example[:1],)))


def write_int8(source: Source, folder: Path) -> None:
    """PT2E static quantization: weights per channel, activations per tensor, all int8."""
    with executorch_silenced():
        network = quantized(source)
    write_atomic(folder / "network_int8.pte", pte_bytes(network, (source.example[:1],)))


def quantized(source: Source) -> nn.Module:
    """The network with XNNPACK's quantized operators, ranges taken from the calibration images."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    assert source.calibration is not None
    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    program = torch.export.export(
        source.network,
        (source.example,),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4 * _BATCH)},),
    )
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for batch in torch.split(source.calibration, _BATCH):
            prepared(batch)
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def open_pte(path: Path) -> Model:
    """The program in ExecuTorch's runtime, on one thread; a batch goes through image by image."""
    from executorch.extension.pybindings import portable_lib

    with executorch_silenced():
        portable_lib._unsafe_reset_threadpool(1)
        program = portable_lib._load_for_executorch(str(path))

    def run(x: torch.Tensor) -> torch.Tensor:
        # Cloned: the next image's output is written where this one's was.
        outputs = [program.forward((image,))[0].clone() for image in torch.split(x, 1)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run


PTE = Format(
    ("network.pte",),
    "ExecuTorch (XNNPACK)",
    write_pte,
    open_pte,
    1e-4,
    ("executorch",),
    "executorch",
)
INT8_PTE = Format(
    ("network_int8.pte",),
    "ExecuTorch (XNNPACK)",
    write_int8,
    open_pte,
    None,
    ("executorch", "torchao"),
    "executorch",
)
