"""Measuring with ExecuTorch (XNNPACK on the CPU), and the .pte files that are measured."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import UserError


class ExecuTorch:
    """ExecuTorch with everything that XNNPACK knows delegated to it.

    Raises:
        UserError: it is not installed.
    """

    name = "executorch"
    packages = ("executorch", "torch")

    def __init__(self, threads: int) -> None:
        self._runtime = _import("executorch.runtime").Runtime.get()
        portable = _import("executorch.extension.pybindings.portable_lib")
        portable._unsafe_reset_threadpool(threads)

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        program = self._runtime.load_program(pte_bytes(module, inputs))
        method = program.load_method("forward")
        arguments = list(inputs)

        def run(_program: Any = program) -> object:  # the method lives as long as its program
            return method.execute(arguments)

        return run


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UserError("ExecuTorch is not installed: pip install 'dnas[executorch]'") from None


def pte_bytes(module: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    """`module` as the content of a .pte file for inputs of exactly these shapes.

    Raises:
        UserError: ExecuTorch is not installed, or cannot lower the module.
    """
    exir = _import("executorch.exir")
    xnnpack = _import("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    logging.getLogger("executorch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, inputs)
            lowered = exir.to_edge_transform_and_lower(
                exported, partitioner=[xnnpack.XnnpackPartitioner()]
            )
            content: bytes = lowered.to_executorch().buffer
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{type(module).__name__} cannot be lowered to ExecuTorch: {reason}"
        ) from None
    return content
