"""`format=c`: the files, and the network in them, compiled and run on this machine."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.integer import integer_graph
from nas.integer.c import c_source
from nas.integer.operators import Value

FILES = ("network.c", "network.h", "firmware.c", "samples.h", "CMakeLists.txt")
FIRMWARE = Path(__file__).with_name("firmware")
_SHIPPED = 4  # samples in samples.h


def c_contents(
    network: nn.Module, example: Tensor, calibration: Tensor, about: str, classes: Sequence[str]
) -> list[str | bytes]:
    """The contents of `FILES`.

    Args:
        network: plain, in eval mode.
        example: inputs ``(N, ...)`` for samples.h.
        calibration: inputs ``(M, ...)`` from which the ranges of activations are learned.

    Raises:
        UserError: a layer of the network has no integer form.
    """
    graph = integer_graph(network, calibration)
    source, header = c_source(graph, about)
    levels = graph.start.quantize(example[:_SHIPPED])
    own = [(FIRMWARE / name).read_text(encoding="utf-8") for name in (FILES[2], FILES[4])]
    return [source, header, own[0], samples_header(levels, classes), own[1]]


def samples_header(levels: Tensor, classes: Sequence[str]) -> str:
    """samples.h: inputs as levels ``(N, C, *S)``, written channels last, and names of outputs."""
    rows = channels_last(levels).tolist()
    written = ",\n".join("    {" + ",".join(map(str, row)) + "}" for row in rows)
    names = ", ".join(
        '"' + re.sub(r"[^\w .+-]", "_", name, flags=re.ASCII) + '"' for name in classes
    )
    return (
        "/* Samples of the test part, prepared and in levels of the input. */\n\n"
        f"#define SAMPLES {len(rows)}\n\n"
        f"static const int8_t samples[SAMPLES][NETWORK_INPUT_SIZE] = {{\n{written}\n}};\n\n"
        f"static const char *const classes[NETWORK_OUTPUT_SIZE] = {{{names}}};\n"
    )


def channels_last(levels: Tensor) -> Tensor:
    """Levels ``(N, C, *S)`` -> int8 ``(N, *S * C)``, as they lie in a device's memory."""
    return levels.movedim(1, -1).flatten(1).to(torch.int8).contiguous()


def check_compiler() -> str:
    """The C compiler of this machine.

    Raises:
        UserError: there is none; says how to install one.
    """
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise UserError(
            "format=c is compiled and compared before it is kept, and there is no C compiler "
            "(cc, gcc or clang) here: apt install gcc"
        )
    return found


class CompiledModel:
    """The network of a C file: compiled by this machine's compiler, called sample by sample.

    ``(N, *shape) -> (N, K)`` in real numbers; `run` takes and gives levels.

    Args:
        path: of ``network.c``, which the process itself has written; the header lies beside it.

    Raises:
        UserError: no compiler, or it does not take the file.
    """

    def __init__(self, path: Path) -> None:
        known = _macros(path.with_suffix(".h"))
        self.start, self.end = (_value(known, part) for part in ("INPUT", "OUTPUT"))
        with TemporaryDirectory() as folder:
            library = Path(folder) / "network.so"
            run_compiler(
                [check_compiler(), "-std=c99", "-O3", "-shared", "-fPIC", path, "-o", library]
            )
            self._run = ctypes.CDLL(str(library)).network_run

    def __call__(self, x: Tensor) -> Tensor:
        return self.end.real(self.run(self.start.quantize(x)))

    def run(self, levels: Tensor) -> Tensor:
        """Levels of inputs ``(N, C, *S)`` -> levels of outputs ``(N, K)``."""
        given = channels_last(levels).numpy()
        made = np.zeros((len(given), self.end.numel), dtype=np.int8)
        for row, out in zip(given, made, strict=True):
            self._run(ctypes.c_void_p(row.ctypes.data), ctypes.c_void_p(out.ctypes.data))
        return torch.from_numpy(made).to(torch.int64)


def run_compiler(command: Sequence[object]) -> None:
    """Run a compiler.

    Raises:
        UserError: it complains; the first line of what it says.
    """
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "region" in line]
        said = (lines or done.stderr.splitlines() or ["no message"])[0]
        raise UserError(f"{Path(str(command[0])).name} does not take the C file: {said.strip()}")


def _macros(header: Path) -> dict[str, str]:
    text = header.read_text(encoding="utf-8")
    return dict(re.findall(r"#define NETWORK_(\w+) \(?([-+.\de]+)", text))


def _value(known: Mapping[str, str], part: str) -> Value:
    size, scale, zero = (known[f"{part}_{key}"] for key in ("SIZE", "SCALE", "ZERO"))
    return Value(part, (int(size),), float(scale), int(zero))
