"""Measuring with ONNX Runtime, and the ONNX files that are measured."""

import inspect
import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UserError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """ONNX Runtime with all its graph optimizations.

    Raises:
        UserError: it is not installed, or was built without this accelerator.
    """

    name = "onnxruntime"
    packages = ("onnxruntime", "torch")

    def __init__(self, accelerator: str, threads: int) -> None:
        check_installed()
        self._onnxruntime = _module("onnxruntime")
        self._provider = PROVIDERS[accelerator]
        if self._provider not in self._onnxruntime.get_available_providers():
            raise UserError(
                f"this onnxruntime has no {self._provider}: pip install onnxruntime-gpu, or use "
                "accelerator=cpu"
            )
        self._threads = threads

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.log_severity_level = 3
        session = self._onnxruntime.InferenceSession(
            onnx_bytes(module, inputs), options, providers=[self._provider]
        )
        names = [node.name for node in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        run: Callable[..., object] = session.run
        return lambda: run(None, feed)


def check_installed() -> None:
    """Raises UserError unless ONNX files can be written and run."""
    for package in ("onnx", "onnxruntime"):
        _module(package)


def _module(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"runtime=onnxruntime needs {name}, which is not installed: pip install 'dnas[onnx]'"
        ) from None


def onnx_bytes(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """`module` as the content of an ONNX file for inputs of exactly these shapes.

    Raises:
        UserError: the module cannot be written as ONNX.
    """
    failures = []
    for write in (_by_tracing, _by_export):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return write(module, inputs)
        except Exception as error:
            failures.append(" ".join(str(error).split())[:200])
    raise UserError(f"{type(module).__name__} cannot be written as ONNX: {'; '.join(failures)}")


def _names(inputs: tuple[Tensor, ...]) -> list[str]:
    return [f"input{i}" for i in range(len(inputs))]


def _by_tracing(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    # PyTorch's older exporter: a tenth of the time, which for dozens of units is what counts.
    if "dynamo" not in inspect.signature(torch.onnx.export).parameters:
        raise RuntimeError("no exporter by tracing")
    buffer = io.BytesIO()
    export: Callable[..., object] = torch.onnx.export
    export(module, inputs, buffer, dynamo=False, input_names=_names(inputs))
    return buffer.getvalue()


def _by_export(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            module, inputs, dynamo=True, verbose=False, input_names=_names(inputs)
        )
    finally:
        log.setLevel(before)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content
