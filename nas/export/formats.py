"""The formats by name: what each writes, by which lowering, and the runtime that reads it.

A new one is a `Format` and a line in `chosen`.
"""

import importlib.util
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.artifacts.files import write_atomic
from nas.copying import copied
from nas.errors import UserError
from nas.export.cortex_m import DEFAULT, check_cortex_m, cortex_m_pte_bytes, open_cortex_m
from nas.export.int8 import int8_onnx_bytes, int8_pte_bytes
from nas.export.loading import load_weights, state_bytes
from nas.export.python import python_source
from nas.export.tflite import int8_tflite_bytes, open_tflite
from nas.inputs import Inputs, arguments, run
from nas.integer.compiled import FILES, CompiledModel, c_contents, check_compiler
from nas.lowering import onnx_bytes, open_onnx, open_pte, pte_bytes
from nas.quantization.network import dequantized

FORMATS = (
    *("state_dict", "python", "onnx", "pt2", "pte", "int8_onnx", "int8_pte", "c"),
    *("pte_cortex_m", "tflite_int8"),
)
BOARDED = ("c", "pte_cortex_m")  # which are for the boards that are asked for
SEVERAL = ("state_dict", "onnx")  # what networks of several inputs can be written as
TOLERANCE = 1e-4  # largest |difference| of a logit in float32 that another order of sums explains

Model = Callable[[Any], Tensor]  # a batch -> logits (N, classes), in some runtime


@dataclass(frozen=True)
class Source:
    """A network with what is needed to write it.

    Args:
        network: plain, in eval mode, on the CPU, in floating point.
        example: real inputs as `nas.inputs.Inputs`, at least 2 samples.
        about: what it is, in one line.
        input: shape, classes, mean and std, as in result.json.
        calibration: inputs ``(M, ...)`` from which int8 formats learn the ranges.
        rounded: the network with its bits, for formats that hold them; None: it has none.
        cpu: of `nas.export.cortex_m.CPUS`, for the format that is for one of them.
    """

    network: nn.Module
    example: Any
    about: str
    input: Mapping[str, Any]
    calibration: Tensor = field(default_factory=lambda: torch.empty(0))
    rounded: nn.Module | None = None
    cpu: str = DEFAULT


@dataclass(frozen=True)
class Format:
    """One way to write a network, and the runtime that reads it.

    Args:
        files: names of what is written; the first one is what is opened.
        runtime: what runs it, for the card.
        contents: of these files.
        open: path of the first file -> the model in its runtime.
        tolerance: largest |difference| of the logits from eager; None: judged by accuracy, int8.
        needs: modules that must be installed.
        extra: the extra that brings them.
        check_programs: raises UserError where something else that it needs is missing.
        simulated: what opens it is no runtime: too slow for many samples, and not timed.
    """

    files: tuple[str, ...]
    runtime: str
    contents: Callable[[Source], Sequence[str | bytes]]
    open: Callable[[Path], Model]
    tolerance: float | None
    needs: tuple[str, ...] = ()
    extra: str = ""
    check_programs: Callable[[], object] | None = None
    simulated: bool = False

    @property
    def int8(self) -> bool:
        """Whether weights and activations are 8-bit integers."""
        return self.tolerance is None

    def write(self, source: Source, folder: Path) -> None:
        """Write the files into `folder`."""
        for file, content in zip(self.files, self.contents(source), strict=True):
            write_atomic(folder / file, content)

    def check_installed(self) -> None:
        """Raises UserError, naming how to install it, where a package or program is missing."""
        for module in self.needs:
            if find_spec(module) is None:
                raise UserError(f"{self.files[0]} needs {module}: pip install 'dnas[{self.extra}]'")
        if self.check_programs is not None:
            self.check_programs()


def _python(source: Source) -> list[str | bytes]:
    known = source.input
    constants = {
        "INPUT_SHAPE": list(known["shape"]),
        "MEAN": list(known["mean"]),
        "STD": list(known["std"]),
        "CLASSES": list(known["classes"]),
    }
    text = python_source(source.network, source.example[:2], source.about, constants, "network.pt")
    return [text, state_bytes(source.network)]


def _open_python(path: Path) -> Model:
    """Import the file, which this process has just written, and load its weights."""
    spec = importlib.util.spec_from_file_location("nas_exported_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.load()
    return network


def _pt2(source: Source) -> list[str | bytes]:
    """torch.export, with a free batch size."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(source.network, (source.example,), dynamic_shapes=({0: batch},))
    program.example_inputs = None  # the user's images do not belong into the file
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # nor this machine's paths
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return [buffer.getvalue()]


def _open_pt2(path: Path) -> Model:
    module: nn.Module = torch.export.load(path).module()
    return module


def _state_dict(network: nn.Module) -> Format:
    """The format that is read back into a module like `network`."""

    def opened(path: Path) -> Model:
        fresh = copied(network)
        for tensor in fresh.state_dict().values():
            tensor.zero_()  # what is not in the file must not pass for having been read from it
        load_weights(fresh, path)
        return partial(run, fresh.eval())

    return Format(("network.pt",), "PyTorch", lambda s: [state_bytes(s.network)], opened, 0.0)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_PTE = "ExecuTorch (XNNPACK)"
_KNOWN = {
    "python": Format(("network.py", "network.pt"), "PyTorch", _python, _open_python, 0.0),
    "onnx": Format(
        ("network.onnx",),
        "onnxruntime",
        lambda s: [onnx_bytes(s.network, arguments(s.example))],
        open_onnx,
        TOLERANCE,
        _ONNX,
        "onnx",
    ),
    "pt2": Format(("network.pt2",), "torch.export", _pt2, _open_pt2, TOLERANCE),
    "pte": Format(
        ("network.pte",),
        _PTE,
        lambda s: [pte_bytes(s.network, (s.example[:1],))],
        open_pte,
        TOLERANCE,
        ("executorch",),
        "executorch",
    ),
    "int8_onnx": Format(
        ("network_int8.onnx",),
        "onnxruntime",
        lambda s: [int8_onnx_bytes(s.network, s.example, s.calibration)],
        open_onnx,
        None,
        _ONNX,
        "onnx",
    ),
    "int8_pte": Format(
        ("network_int8.pte",),
        _PTE,
        lambda s: [int8_pte_bytes(s.network, s.example, s.calibration)],
        open_pte,
        None,
        ("executorch", "torchao"),
        "executorch",
    ),
    "c": Format(
        FILES,
        "C99",
        lambda s: c_contents(
            s.rounded or s.network, s.example, s.calibration, s.about, s.input["classes"]
        ),
        CompiledModel,
        None,
        check_programs=check_compiler,
    ),
    "pte_cortex_m": Format(
        ("network_cortex_m.pte",),
        "ExecuTorch (Cortex-M), simulated",
        lambda s: [cortex_m_pte_bytes(s.network, s.example, s.calibration, s.cpu)],
        open_cortex_m,
        None,
        ("executorch", "torchao"),
        "executorch",
        check_programs=check_cortex_m,
        simulated=True,
    ),
    "tflite_int8": Format(
        ("network_int8.tflite",),
        "LiteRT",
        lambda s: [int8_tflite_bytes(s.network, s.example, s.calibration)],
        open_tflite,
        None,
        ("litert_torch", "ai_edge_quantizer", "ai_edge_litert"),
        "tflite",
    ),
}


def check_inputs(names: Iterable[str], example: Inputs) -> None:
    """Raises UserError where a format cannot be written for networks of several inputs."""
    for name in names if not isinstance(example, Tensor) else ():
        if name not in SEVERAL:
            raise UserError(
                f"format={name} is for networks of one input, and this one takes several: choose "
                f"out of {', '.join(SEVERAL)}"
            )


def chosen(names: Sequence[str], network: nn.Module) -> dict[str, Format]:
    """Name -> format, each of them usable here.

    Raises:
        UserError: an unknown name, or a package that is not installed.
    """
    known = {"state_dict": _state_dict(network), **_KNOWN}
    for name in names or [""]:
        if name not in known:
            raise UserError(f"format={name!r} is not one of {', '.join(known)}")
        known[name].check_installed()
    return {name: known[name] for name in dict.fromkeys(names)}


def onnx(network: nn.Module, example: Inputs, path: Path) -> float:
    """Write `network` as ONNX with a free batch size; return max |ONNX - eager| on `example`.

    The file is kept only if it computes what the network computes. Of a quantised network it is
    the copy in floating point, see `nas.quantization.network.dequantized`.

    Raises:
        UserError: the extra is not installed, or the outputs differ by more than 1e-4.
    """
    _KNOWN["onnx"].check_installed()
    network = dequantized(network.eval())
    content = onnx_bytes(network, arguments(example))
    with torch.no_grad():
        difference = float((open_onnx(content)(example) - run(network, example)).abs().max())
    if not difference <= TOLERANCE:
        raise UserError(
            f"the ONNX file computes something else than the network (max difference "
            f"{difference:.2g} > {TOLERANCE}), so it was not kept"
        )
    write_atomic(path, content)
    return difference
