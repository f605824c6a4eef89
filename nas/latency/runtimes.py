"""Runtimes: from a module to something that can be called and timed, on this machine."""

import ctypes
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.copying import copied
from nas.errors import UserError
from nas.integer import integer_graph
from nas.integer.boards import BOARDS, check_boards, instructions, tool_versions
from nas.integer.graph import IntegerGraph
from nas.latency.units import Conditions
from nas.lowering import (
    Tensors,
    executorch_silenced,
    onnx_bytes,
    onnx_session,
    pte_bytes,
    required,
)

Call = Callable[[], object]  # runs a module once, to the end
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
HERTZ = 1e8  # of an emulated board: an instruction of it takes 10 ns
_EMULATED = "qemu_"  # what the names of such runtimes begin with
REMOTE = ("ssh", "serial")  # see `nas.latency.remote`
_CALIBRATION = 8  # samples for the ranges of activations
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


@dataclass(frozen=True)
class Runtime:
    """What runs a network on a device.

    Args:
        packages: their versions decide how fast it is.
        prepare: ``(module, inputs)`` -> what runs the module on them; the module is in eval mode
            and of the number format of the inputs.
        elsewhere: ``(module, inputs, whole, seconds)`` -> nanoseconds of single calls, where they
            are not timed here, but on a board or by an emulator. `whole`: a network, not a unit.
            `seconds`: the time budget of this network in all rounds.
        rounds: how often `elsewhere` is asked; 1: it counts instructions, which repeat exactly.
        tools: name -> version of other programs that decide how fast it is.
        machine: what runs it; "": see `machine_of`.
    """

    packages: tuple[str, ...]
    prepare: Callable[[nn.Module, Tensors], Call]
    elsewhere: Callable[[nn.Module, Tensors, bool, float], Sequence[int]] | None = None
    rounds: int = 1
    tools: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""

    @property
    def counts(self) -> bool:
        """Whether the same figures come each time."""
        return self.elsewhere is not None and self.rounds == 1


def _torch(accelerator: str, threads: int) -> Runtime:
    """PyTorch as it is."""
    return Runtime(("torch",), lambda module, inputs: _on_device(module, inputs, accelerator))


def _torch_compile(accelerator: str, threads: int) -> Runtime:
    """PyTorch with `torch.compile`; a C++ compiler must be installed."""

    def prepare(module: nn.Module, inputs: Tensors) -> Call:
        # Each unit is compiled for its own shapes; the cache of one would fill up.
        torch.compiler.reset()
        call = _on_device(torch.compile(module, dynamic=False), inputs, accelerator)
        try:
            call()
        except Exception as error:
            raise UserError(
                f"torch.compile fails here ({_reason(error)}): it needs a C++ compiler; choose "
                "runtime=torch or runtime=onnxruntime"
            ) from None
        return call

    return Runtime(("torch",), prepare)


def _onnxruntime(accelerator: str, threads: int) -> Runtime:
    """ONNX Runtime with all its graph optimizations, on the file that `nas export` writes."""
    check_onnx()
    provider = PROVIDERS[accelerator]
    if provider not in required("onnxruntime", "onnx").get_available_providers():
        raise UserError(
            f"this onnxruntime has no {provider}: pip install onnxruntime-gpu, or use "
            "accelerator=cpu"
        )

    def prepare(module: nn.Module, inputs: Tensors) -> Call:
        session = onnx_session(onnx_file(module, inputs), threads, provider)
        names = [node.name for node in session.get_inputs()]
        feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        run: Callable[..., object] = session.run
        return lambda: run(None, feed)

    return Runtime(("onnxruntime", "torch"), prepare)


def _executorch(accelerator: str, threads: int) -> Runtime:
    """ExecuTorch with all that XNNPACK knows delegated to it, on the file of `nas export`."""
    if accelerator != "cpu":
        raise UserError("runtime=executorch runs on the CPU (XNNPACK): accelerator=cpu")
    engine = required("executorch.runtime", "executorch").Runtime.get()
    portable = required("executorch.extension.pybindings.portable_lib", "executorch")
    portable._unsafe_reset_threadpool(threads)

    def prepare(module: nn.Module, inputs: Tensors) -> Call:
        content = pte_file(module, inputs)
        with executorch_silenced():
            program = engine.load_program(content)
            method = program.load_method("forward")
        arguments = list(inputs)

        def run(_program: Any = program) -> object:  # the method lives as long as its program
            return method.execute(arguments)

        return run

    return Runtime(("executorch", "torch"), prepare)


def _qemu(accelerator: str, threads: int, board: str) -> Runtime:
    """The C file of `nas export format=c`, int8, on a Cortex-M that QEMU emulates."""
    check_boards([board])

    def count(module: nn.Module, inputs: Tensors, whole: bool, seconds: float) -> list[int]:
        found = instructions(BOARDS[board], integer_graph_of(module, inputs), whole)
        return [round(found * 1e9 / HERTZ)]

    def prepare(module: nn.Module, inputs: Tensors) -> Call:
        return partial(count, module, inputs, True, 0.0)

    return Runtime(("torch",), prepare, count, tools=tool_versions())


def integer_graph_of(module: nn.Module, inputs: Tensors) -> IntegerGraph:
    """The int8 network of a C file, with ranges of normal values: what is measured, not deployed.

    Raises:
        UserError: several inputs, or a layer that has no integer form.
    """
    if len(inputs) != 1:
        raise UserError(
            f"{type(module).__name__} takes {len(inputs)} tensors, and a C file has one input: "
            "this space cannot be profiled on a board"
        )
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(_CALIBRATION, *inputs[0].shape[1:], generator=generator)
    return integer_graph(module, data)


def check_onnx() -> None:
    """Raises UserError unless ONNX files can be written and run."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        required(package, "onnx")


def onnx_file(module: nn.Module, inputs: Tensors, free_batch: bool = True) -> bytes:
    """`nas.lowering.onnx_bytes`; for exactly these shapes where the batch cannot be free.

    Raises:
        UserError: the module cannot be written as ONNX.
    """
    attempts = [partial(onnx_bytes, module, inputs, free_batch=False)]
    if free_batch:
        attempts.insert(0, partial(onnx_bytes, module, inputs))
    return _written(module, "written as ONNX", *attempts)


def pte_file(module: nn.Module, inputs: Tensors) -> bytes:
    """`nas.lowering.pte_bytes`.

    Raises:
        UserError: ExecuTorch is not installed, or cannot lower the module.
    """
    return _written(module, "lowered to ExecuTorch", lambda: pte_bytes(module, inputs))


def _written(module: nn.Module, how: str, *attempts: Callable[[], bytes]) -> bytes:
    """What the first attempt gives that does not fail."""
    reasons = []
    for attempt in attempts:
        try:
            return attempt()
        except UserError:
            raise
        except Exception as error:
            reasons.append(_reason(error))
    raise UserError(f"{type(module).__name__} cannot be {how}: {'; '.join(reasons)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def keep_memory() -> None:
    """Let the C library keep what PyTorch frees, where that is glibc; for this process, for good.

    By default large activations go back to the system in most calls, page by page, and come again:
    a third of a MobileNet's time, or none of it, depending on the state of the heap. With this no
    call after the first asks for new memory, as with the allocators that servers use.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _on_device(module: Any, inputs: Tensors, accelerator: str) -> Call:
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


RUNTIMES: Mapping[str, Callable[[str, int], Runtime]] = {
    "torch": _torch,
    "torch_compile": _torch_compile,
    "onnxruntime": _onnxruntime,
    "executorch": _executorch,
    **{f"{_EMULATED}{board}": partial(_qemu, board=board) for board in BOARDS},
}


def runtime(name: str, accelerator: str, conditions: Conditions) -> Runtime:
    """The runtime of that name, set to the threads of `conditions`.

    Raises:
        UserError: no such runtime or accelerator, one that is not installed, or no GPU here.
    """
    if name not in RUNTIMES:
        raise UserError(f"runtime={name!r} is not one of {', '.join((*RUNTIMES, *REMOTE))}")
    if accelerator not in PROVIDERS:
        raise UserError(f"accelerator={accelerator!r} is not one of {', '.join(PROVIDERS)}")
    if accelerator == "cuda" and name.startswith("torch") and not torch.cuda.is_available():
        raise UserError("accelerator=cuda: PyTorch finds no CUDA device here; use accelerator=cpu")
    if name.startswith(_EMULATED):
        check_int8(name, accelerator, conditions)
    torch.set_num_threads(conditions.threads)
    if name.startswith("torch") and accelerator == "cpu":
        keep_memory()
    return RUNTIMES[name](accelerator, conditions.threads)


def check_int8(runtime: str, accelerator: str, conditions: Conditions) -> None:
    """Raises UserError for other conditions than those of a C file on a microcontroller."""
    if (accelerator, conditions) != ("cpu", Conditions()):
        raise UserError(
            f"runtime={runtime} measures one sample in int8, not {conditions} on {accelerator}: "
            "leave accelerator, batch, dtype and threads as they are by default"
        )


def copy_to_measure(module: nn.Module, conditions: Conditions) -> nn.Module:
    """A copy in eval mode and the number format to measure; runtimes may change what they get."""
    return copied(module).eval().to(getattr(torch, conditions.dtype))


def inputs_like(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype], conditions: Conditions
) -> Tensors:
    """A batch of these shapes for one sample: normal values, or zeros of a whole-number dtype."""
    made = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        full = (shape[0] * conditions.batch, *shape[1:]) if shape else shape
        if dtype.is_floating_point:
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(full, generator=generator)
            made.append(values.to(getattr(torch, conditions.dtype)))
        else:
            made.append(torch.zeros(full, dtype=dtype))
    return tuple(made)


def machine_of(runtime: str, accelerator: str) -> str:
    """What runs networks in a runtime: a board that is emulated, or this machine."""
    if not runtime.startswith(_EMULATED):
        return machine_name(accelerator)
    board = BOARDS[runtime.removeprefix(_EMULATED)]
    return f"{board.cpu} ({board.machine} in QEMU), one instruction a cycle at {HERTZ / 1e6:g} MHz"


def machine_name(accelerator: str = "cpu") -> str:
    """The processor as the system calls it; of a GPU its own name."""
    if accelerator == "cuda" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def machine_load() -> float | None:
    """Processes that wanted to run in the last minute, a share of the cores; None: not known."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)
