"""C files on microcontrollers: cross-compiled, run in QEMU, flash and RAM from the map."""

import re
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from nas.errors import UserError
from nas.integer.c import c_source
from nas.integer.compiled import FIRMWARE, channels_last, run_compiler, samples_header
from nas.integer.graph import IntegerGraph

_GCC, _NM, _QEMU = "arm-none-eabi-gcc", "arm-none-eabi-nm", "qemu-system-arm"
_PACKAGES = {
    _GCC: "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    _QEMU: "qemu-system-arm",
}
_SPECS = "rdimon.specs"
_SHIFT = 5  # an instruction takes 2^5 ns of the emulated time: about one tick of the timer
_MOST = 200_000  # bytes of samples in one program
_SECONDS = 300.0  # for one program


@dataclass(frozen=True)
class Board:
    """A Cortex-M that QEMU has a machine for.

    Args:
        cpu: as the compiler names it.
        machine: as QEMU names it.
        clock: of its timer, in Hz.
        flags: of the compiler, beside the CPU.
        code, data, stack: where the machine has memory for a large program.
    """

    cpu: str
    machine: str
    clock: float
    flags: tuple[str, ...] = ("-mfloat-abi=soft",)
    code: int = 0x400
    data: int = 0x20000000
    stack: int = 0x20400000


BOARDS = {
    "cortex_m4": Board("cortex-m4", "mps2-an386", 25e6),
    "cortex_m7": Board("cortex-m7", "mps2-an500", 25e6),
    "cortex_m55": Board(
        "cortex-m55",
        "mps3-an547",
        32e6,
        ("-mfloat-abi=hard",),
        code=0x01000000,
        data=0x21000000,
        stack=0x21400000,
    ),
}


@dataclass(frozen=True)
class OnBoard:
    """What a network takes on a board.

    Args:
        flash: bytes of code and constants of network.c in the linker map.
        weights: of these, weights, biases and multipliers.
        ram: bytes of its static data in the map, with one input and one output.
        stack: bytes of the deepest calls at most, as the compiler says.
        instructions: for one sample, the mean.
        samples: that were run.
        equal: of these, whose outputs are those of the host to the bit.
    """

    flash: int
    weights: int
    ram: int
    stack: int
    instructions: float
    samples: int
    equal: int


def check_boards(names: Collection[str]) -> None:
    """Raises UserError for an unknown board, and where compiler, library or QEMU is missing."""
    for name in names:
        if name not in BOARDS:
            raise UserError(f"board={name!r} is not one of {', '.join(BOARDS)}")
        for program, packages in _PACKAGES.items():
            if shutil.which(program) is None:
                raise UserError(
                    f"board={name} needs {program}: apt install --no-install-recommends {packages}"
                )
    if names and not _has_library():
        raise UserError(
            f"{_GCC} lacks newlib with semihosting ({_SPECS}): apt install --no-install-recommends "
            f"{_PACKAGES[_GCC]}"
        )


def _has_library() -> bool:
    asked = [_GCC, f"-print-file-name={_SPECS}"]
    done = subprocess.run(asked, capture_output=True, text=True)
    return Path(done.stdout.strip()).is_absolute()  # else the name alone


def on_board(board: Board, folder: Path, levels: Tensor, expected: Tensor) -> OnBoard:
    """Cross-compile the files of `folder`, run them in QEMU and compare.

    Args:
        folder: with the files of `format=c`.
        levels: inputs ``(N, C, *S)``.
        expected: outputs ``(N, K)`` of the host, in levels.

    Raises:
        UserError: a program is missing, the compiler does not take the files, or the network does
            not run to its end.
    """
    found: list[Tensor] = []
    took: list[int] = []
    part = max(1, _MOST // channels_last(levels[:1]).numel())
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        _compile(board, folder, place)
        for inputs in torch.split(levels, part):
            outputs, ticks = _run(board, folder, place, inputs, expected.shape[1])
            found += outputs
            took += ticks
        sizes = map_sizes((place / "firmware.map").read_text(encoding="utf-8"), "network.o")
        weights = _weights(place / "network.o")
        stack = _stack((place / "network.su").read_text(encoding="utf-8"))
    same = (torch.stack(found) == expected).all(1)
    given = channels_last(levels[:1]).numel() + expected.shape[1]
    return OnBoard(
        flash=sizes["text"] + sizes["rodata"] + sizes["data"],
        weights=weights,
        ram=sizes["data"] + sizes["bss"] + given,
        stack=stack,
        instructions=_instructions(board, sum(took) / len(took)),
        samples=len(same),
        equal=int(same.sum()),
    )


def instructions(board: Board, graph: IntegerGraph, classify: bool) -> float:
    """Instructions of one call of `graph` on the processor in QEMU: the same figure each time.

    Args:
        classify: with the search for the largest output, which a part of a network has not.

    Raises:
        UserError: as `on_board`.
    """
    shape = graph.start.shape
    values = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    levels = graph.start.quantize(values * 64 * graph.start.scale)
    with TemporaryDirectory() as scratch:
        folder, place = Path(scratch) / "files", Path(scratch) / "made"
        folder.mkdir()
        place.mkdir()
        source, header = c_source(graph, "counted", classify=classify)
        for name, text in (("network.c", source), ("network.h", header)):
            (folder / name).write_text(text, encoding="utf-8")
        shutil.copy(FIRMWARE / "firmware.c", folder)
        _compile(board, folder, place)
        _, (ticks,) = _run(board, folder, place, levels, graph.end.numel)
    return _instructions(board, ticks)


def tool_versions() -> dict[str, str]:
    """The compiler and the emulator, which decide what is counted."""
    found = {}
    for program in (_GCC, _QEMU):
        said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
        found[program] = said.splitlines()[0] if said else "unknown"
    return found


def _instructions(board: Board, ticks: float) -> float:
    return ticks * 1e9 / (board.clock * float(1 << _SHIFT))


def _compile(board: Board, folder: Path, place: Path) -> None:
    """network.o, and network.su with the stack that its functions take."""
    own = [_GCC, "-std=c99", "-O2", "-mthumb", f"-mcpu={board.cpu}", *board.flags]
    run_compiler([*own, "-fstack-usage", "-c", folder / "network.c", "-o", place / "network.o"])


def _run(
    board: Board, folder: Path, place: Path, inputs: Tensor, outputs: int
) -> tuple[list[Tensor], list[int]]:
    """Outputs and ticks of the timer, for each sample."""
    names = [str(number) for number in range(outputs)]
    (place / "samples.h").write_text(samples_header(inputs, names), encoding="utf-8")
    # Copied, as a header is first looked for beside the file that includes it.
    shutil.copy(folder / "firmware.c", place)
    shutil.copy(folder / "network.h", place)
    link = [
        *(f"--specs={_SPECS}", "-nostartfiles", "-Wl,-e,reset"),
        *("-Wl,--section-start=.vectors=0", f"-Wl,-Ttext-segment={board.code:#x}"),
        *("-Wl,-z,max-page-size=4", f"-Wl,-Tdata={board.data:#x}"),
        f"-Wl,--defsym=__stack={board.stack:#x}",
        f"-Wl,-Map={place / 'firmware.map'}",
    ]
    own = [_GCC, "-std=gnu99", "-O2", "-mthumb", f"-mcpu={board.cpu}", *board.flags]
    run_compiler([*own, place / "firmware.c", place / "network.o", *link, "-o", place / "firmware"])
    command = [
        *(_QEMU, "-M", board.machine, "-nographic", "-monitor", "none", "-serial", "none"),
        *("-semihosting-config", "enable=on,target=native", "-icount", f"shift={_SHIFT}"),
        *("-kernel", str(place / "firmware")),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{len(inputs)} samples take more than {_SECONDS:.0f} s on {board.machine} in QEMU"
        ) from None
    lines = re.findall(r"ticks (\d+), levels((?: -?\d+)+)", done.stdout)
    if len(lines) != len(inputs):
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
        raise UserError(f"the network does not run to its end on {board.machine} in QEMU: {said}")
    return [torch.tensor([*map(int, levels.split())]) for _, levels in lines], [
        int(ticks) for ticks, _ in lines
    ]


def map_sizes(text: str, name: str) -> dict[str, int]:
    """Bytes that an object file takes in a linker map: text, rodata, data, bss."""
    sizes = dict.fromkeys(("text", "rodata", "data", "bss"), 0)
    pattern = (
        rf"^ \.(text|rodata|data|bss)[\w.]*\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+\S*{re.escape(name)}$"
    )
    for section, size in re.findall(pattern, text, flags=re.M):
        sizes[section] += int(size, 16)
    return sizes


def _weights(program: Path) -> int:
    """Bytes of the arrays that hold what training has made."""
    table = subprocess.run(
        [_NM, "-S", str(program)], capture_output=True, text=True, check=True
    ).stdout
    names = r"(?:weight|bits|bias|multiplier)_\d+"
    found = re.findall(rf"^[0-9a-f]+ ([0-9a-f]+) \w {names}$", table, re.M)
    return sum(int(size, 16) for size in found)


def _stack(text: str) -> int:
    """Of a call of the network: its own, the largest kernel's, and those that kernels call."""
    own = {
        line.split("\t")[0].rpartition(":")[2]: int(line.split("\t")[1])
        for line in text.splitlines()
    }
    inner = ("dot", "at_edge", "inside", "unpack", "clamp")
    called = sum(size for name, size in own.items() if name.partition(".")[0] in inner)
    kernels = [
        size
        for name, size in own.items()
        if name != "network_run" and name.partition(".")[0] not in inner
    ]
    return own.get("network_run", 0) + max(kernels, default=0) + called


def described(name: str, found: OnBoard) -> str:
    """One line for the terminal."""
    same = f"{found.equal} of {found.samples} samples as on this machine to the bit"
    return (
        f"{name}: flash {found.flash:,} B, RAM {found.ram:,} B, stack {found.stack:,} B, "
        f"{found.instructions:,.0f} instructions; {same}"
    )
