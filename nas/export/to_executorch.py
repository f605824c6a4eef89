"""The lowering to ExecuTorch in int8, with the XNNPACK backend; float32 is `nas.lowering`'s.

A network and an example go in, the content of a file comes out: nothing here knows of runs or data.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.lowering import executorch_silenced, pte_bytes

_BATCH = 64  # images that calibration looks at in one step


def int8_pte_bytes(network: nn.Module, example: Tensor, calibration: Tensor) -> bytes:
    """As `pte_bytes` for one image, in int8: weights per channel, activations per tensor.

    Args:
        example: inputs ``(N, ...)``, N at least 2.
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
    """
    with executorch_silenced():
        converted = _quantized(network, example, calibration)
    return pte_bytes(converted, (example[:1],))


def _quantized(network: nn.Module, example: Tensor, calibration: Tensor) -> nn.Module:
    """The network with XNNPACK's quantized operators, by PT2E static quantization."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    batch = torch.export.Dim("batch", min=1, max=4 * _BATCH)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(program.module(), quantizer)
    with torch.no_grad():
        for images in torch.split(calibration, _BATCH):
            prepared(images)
    converted: nn.Module = convert_pt2e(prepared)
    return converted


def open_pte(path: Path) -> Callable[[Tensor], Tensor]:
    """The program in ExecuTorch's runtime, on one thread; a batch goes through image by image."""
    from executorch.extension.pybindings import portable_lib

    with executorch_silenced():
        portable_lib._unsafe_reset_threadpool(1)
        program = portable_lib._load_for_executorch(str(path))

    def run(x: Tensor) -> Tensor:
        # Cloned: the next image's output is written where this one's was.
        outputs = [program.forward((image,))[0].clone() for image in torch.split(x, 1)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    return run
