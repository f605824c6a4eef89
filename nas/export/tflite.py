"""LiteRT (TensorFlow Lite) files in int8: converted by litert-torch, run by its interpreter."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.lowering import executorch_silenced


def int8_tflite_bytes(network: nn.Module, example: Tensor, calibration: Tensor) -> bytes:
    """The content of a .tflite file for one sample: weights, activations, input and output int8.

    Args:
        example: inputs ``(N, ...)``.
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.
    """
    with executorch_silenced(), TemporaryDirectory() as folder:
        import litert_torch
        from ai_edge_quantizer.calibrator import CalibrationInterpreter, CalibrationMode
        from ai_edge_quantizer.quantizer import Quantizer
        from ai_edge_quantizer.recipe import static_wi8_ai8
        from ai_edge_quantizer.utils.qsv_utils import min_max_update

        plain = str(Path(folder) / "plain.tflite")
        litert_torch.convert(network, (example[:1],)).export(plain)
        # By itself it follows the mean of the ranges of samples, which half of these go beyond.
        mode = CalibrationMode.CALIBRATION_PRESERVE_ALL_TENSORS
        calibrator = CalibrationInterpreter(plain, mode, min_max_update)
        runner = calibrator.get_signature_runner()
        (name,) = runner.get_input_details()
        for sample in torch.split(calibration, 1):
            runner(**{name: sample.numpy()})
        quantizer = Quantizer(plain)
        quantizer.load_quantization_recipe(static_wi8_ai8())
        quantized = quantizer.quantize(calibrator.get_calibration_results())
        return bytes(quantized.quantized_model)


def open_tflite(path: Path) -> Callable[[Tensor], Tensor]:
    """The file in LiteRT's interpreter, on one thread; a batch goes through sample by sample.

    Numbers become levels of the input in front of it, and levels of the output numbers behind it.
    """
    with executorch_silenced():
        interpreter = _interpreter(path)
        interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (step, origin) = given["quantization"], made["quantization"]
    limits = np.iinfo(given["dtype"])

    def run(x: Tensor) -> Tensor:
        outputs = []
        for sample in torch.split(x, 1):
            levels = np.rint(sample.numpy() / scale + zero).clip(limits.min, limits.max)
            interpreter.set_tensor(given["index"], levels.astype(given["dtype"]))
            interpreter.invoke()
            found = interpreter.get_tensor(made["index"]).astype(np.float32)
            outputs.append(torch.from_numpy((found - origin) * np.float32(step)))
        return torch.cat(outputs)

    return run


def _interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path), num_threads=1)
