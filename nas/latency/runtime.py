"""Runtimes: from a module to something that can be called and timed."""

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.latency.key import Conditions

Call = Callable[[], object]  # runs a unit once, to the end
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


class Runtime(Protocol):
    """What runs a network on a device."""

    @property
    def name(self) -> str: ...

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose versions decide how quick it is."""
        ...

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
        """`module`, in eval mode and of the number format of `inputs`, ready to run on them."""
        ...


@dataclass(frozen=True)
class Eager:
    """PyTorch as it is."""

    accelerator: str = "cpu"
    name: str = "torch"
    packages: tuple[str, ...] = ("torch",)

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
        return _on_device(module, inputs, self.accelerator)


@dataclass(frozen=True)
class Compiled:
    """PyTorch with `torch.compile`; a C++ compiler must be installed."""

    accelerator: str = "cpu"
    name: str = "torch_compile"
    packages: tuple[str, ...] = ("torch",)

    def prepare(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
        # Each unit is compiled for its own shapes; the cache of one would fill up.
        torch.compiler.reset()
        compiled = torch.compile(module, dynamic=False)
        call = _on_device(compiled, inputs, self.accelerator)
        try:
            call()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"torch.compile fails here ({reason}): it needs a C++ compiler; choose "
                "runtime=torch or runtime=onnxruntime"
            ) from None
        return call


def keep_memory() -> None:
    """Let the C library keep what PyTorch frees, where that is glibc; for this process, for good.

    By default large activations go back to the system in most calls, page by page, and come again:
    a third of a MobileNet's time, or none of it, as the heap happens to lie. No call after the
    first asks for new memory then, as with the allocators that servers use.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _on_device(module: Any, inputs: tuple[Tensor, ...], accelerator: str) -> Call:
    inputs = tuple(x.to(accelerator) for x in inputs)
    module.to(accelerator)

    def run() -> object:
        with torch.inference_mode():
            return module(*inputs)

    def run_and_wait() -> object:
        out = run()
        torch.cuda.synchronize()
        return out

    return run_and_wait if accelerator == "cuda" else run


def _onnxruntime(accelerator: str, threads: int) -> Runtime:
    from nas.latency.onnx_runtime import OnnxRuntime

    return OnnxRuntime(accelerator, threads)


def _executorch(accelerator: str, threads: int) -> Runtime:
    from nas.latency.executorch import ExecuTorch

    if accelerator != "cpu":
        raise UserError("runtime=executorch runs on the CPU (XNNPACK): accelerator=cpu")
    return ExecuTorch(threads)


RUNTIMES: Mapping[str, Callable[[str, int], Runtime]] = {
    "torch": lambda accelerator, threads: Eager(accelerator),
    "torch_compile": lambda accelerator, threads: Compiled(accelerator),
    "onnxruntime": _onnxruntime,
    "executorch": _executorch,
}


def runtime(name: str, accelerator: str, conditions: Conditions) -> Runtime:
    """The runtime of that name, set to the threads of `conditions`.

    Raises:
        UserError: no such runtime or accelerator, one that is not installed, or no GPU here.
    """
    if name not in RUNTIMES:
        raise UserError(f"runtime={name!r} is not one of {', '.join(RUNTIMES)}")
    if accelerator not in ("cpu", "cuda"):
        raise UserError(f"accelerator={accelerator!r} is not one of cpu, cuda")
    if accelerator == "cuda" and name.startswith("torch") and not torch.cuda.is_available():
        raise UserError("accelerator=cuda: PyTorch finds no CUDA device here; use accelerator=cpu")
    torch.set_num_threads(conditions.threads)
    if name.startswith("torch") and accelerator == "cpu":
        keep_memory()
    return RUNTIMES[name](accelerator, conditions.threads)
