"""Measuring on a board that this machine reaches: a file goes there, times come back.

A network is written as a file, a command of the user's runs it, and what the command prints is
read: over ssh, or off a serial port to whose microcontroller the command has flashed the network.
"""

import hashlib
import io
import math
import os
import re
import select
import shlex
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from torch import nn

from nas.errors import UserError
from nas.integer.c import c_source
from nas.latency.runtimes import (
    Runtime,
    check_int8,
    check_onnx,
    integer_graph_of,
    onnx_file,
    pte_file,
)
from nas.latency.units import Conditions
from nas.lowering import Tensors, required

File = Literal["onnx", "pte", "c"]
ON_HOST = Path(__file__).with_name("on_host.py")
ONNXRUNTIME = f"python3 {ON_HOST.name} {{file}} {{calls}} {{seconds}} {{threads}}"
ROUNDS = 2  # over all networks: what the first gives is compared with what the second gives
_PACKAGES = {"onnx": ("torch", "onnx"), "pte": ("torch", "executorch"), "c": ("torch",)}
_EXAMPLE = {"ssh": "pi@raspberrypi", "serial": "/dev/ttyACM0"}
_WAIT = 600.0  # seconds for a command, and for the first line of a board
_UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1.0}
_TIME = r"([-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|(?i:inf|infinity|nan))) ?(s|ms|us|ns)"
# In a folder of its own, of which nothing stays behind.
_RUN = 'd=$(mktemp -d) && cd "$d" && tar xf - && ({command}); s=$?; cd /; rm -rf "$d"; exit $s'


@dataclass(frozen=True)
class Board:
    """A board that can be reached, and how networks are measured on it.

    Args:
        runtime: "ssh" or "serial".
        address: of ssh, e.g. "pi@raspberrypi"; or a serial port, e.g. "/dev/ttyACM0".
        command: what is run in a folder with the file, on the host of ssh; or here, to build and
            flash it. {file}, {calls}, {seconds} and {threads} are replaced. None: `on_host.py`.
        file: what a network is written as.
        calls: of each network, where its seconds allow.
        conditions: of which C files have none.

    Raises:
        UserError: the command is missing.
    """

    runtime: str
    address: str
    command: str | None
    file: File
    calls: int
    conditions: Conditions

    def __post_init__(self) -> None:
        if self.command is None and (self.runtime, self.file) != ("ssh", "onnx"):
            does = "times" if self.runtime == "ssh" else "builds and flashes"
            raise UserError(
                f"runtime={self.runtime} needs the command that {does} a {self.file} file: "
                "command='... {file}', see docs/budgets.md"
            )

    def files(self, module: nn.Module, inputs: Tensors, whole: bool) -> dict[str, bytes]:
        """Name -> content; the command is about the first one."""
        if self.file == "onnx":
            content = onnx_file(module, inputs, free_batch=False)
            return {"network.onnx": content, ON_HOST.name: ON_HOST.read_bytes()}
        if self.file == "pte":
            return {"network.pte": pte_file(module, inputs)}
        source, header = c_source(integer_graph_of(module, inputs), "measured", classify=whole)
        own = f'#define NETWORK_ID "{_id(source.encode())}"\n'
        texts = {"network.c": source, "network.h": header, "network_id.h": own}
        return {name: text.encode() for name, text in texts.items()}

    def filled(self, file: str, seconds: float) -> str:
        """The command for one file."""
        text = self.command or ONNXRUNTIME
        values = {"file": file, "calls": self.calls, "seconds": round(seconds, 3)}
        for name, value in {**values, "threads": self.conditions.threads}.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text


def remote(
    name: str,
    address: str | None,
    command: str | None,
    file: File | None,
    calls: int,
    accelerator: str,
    conditions: Conditions,
) -> Runtime:
    """What measures on the board at `address`.

    Args:
        name: "ssh" or "serial".
        file: None: "onnx" over ssh, "c" over a serial port.

    Raises:
        UserError: a key is missing or does not go with the others, a package or program is not
            installed, or the board cannot be reached.
    """
    if address is None:
        raise UserError(f"runtime={name} needs to know its board: address={_EXAMPLE[name]}")
    if accelerator != "cpu":
        raise UserError(f"accelerator={accelerator}: with runtime={name} the command decides that")
    file = file or ("onnx" if name == "ssh" else "c")
    board = Board(name, address, command, file, calls, conditions)
    if name == "serial" and file != "c":
        raise UserError(f"file={file}: a microcontroller behind a serial port takes file=c")
    if file == "c":
        check_int8(f"{name} file=c", accelerator, conditions)
    elif file == "pte":
        required("executorch", "executorch")
    else:
        check_onnx()
    run = _over_ssh if name == "ssh" else _over_serial
    host = _host(address) if name == "ssh" else _port(address)

    def times(module: nn.Module, inputs: Tensors, whole: bool, seconds: float) -> Sequence[int]:
        return run(board, board.files(module, inputs, whole), seconds / ROUNDS)

    def prepare(module: nn.Module, inputs: Tensors) -> Callable[[], object]:
        return lambda: times(module, inputs, True, 0.0)

    tools = {"command": command or ONNXRUNTIME}
    return Runtime(_PACKAGES[file], prepare, times, ROUNDS, tools, host)


def _host(address: str) -> str:
    """The host and its system."""
    if shutil.which("ssh") is None:
        raise UserError("runtime=ssh needs ssh: apt install openssh-client")
    said = _ssh(address, "uname -srm", b"")
    return f"{address} ({said.strip()})"


def _over_ssh(board: Board, files: Mapping[str, bytes], seconds: float) -> list[int]:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    command = _RUN.format(command=board.filled(next(iter(files)), seconds))
    said = _ssh(board.address, command, packed.getvalue())
    found = [_nanoseconds(line, _TIME, board.address) for line in said.splitlines()]
    times = [time for time in found if time is not None]
    if not times:
        last = (said.strip() or "nothing").splitlines()[-1][:200]
        raise UserError(
            f"the command on {board.address} must print a line like '0.812 ms' for each call, "
            f"and its last line is {last!r}"
        )
    return times


def _ssh(address: str, command: str, given: bytes) -> str:
    """What a command prints on the host, in any login shell."""
    # Nothing asks for passwords; and no address is an option, which could run programs here.
    words = ["ssh", "-o", "BatchMode=yes", "--", address, f"sh -c {shlex.quote(command)}"]
    return _output(words, f"{address} fails", given)


def _output(words: Sequence[str], fails: str, given: bytes, folder: Path | None = None) -> str:
    try:
        done = subprocess.run(words, input=given, capture_output=True, timeout=_WAIT, cwd=folder)
    except subprocess.TimeoutExpired:
        raise UserError(f"{fails}: it takes more than {_WAIT:.0f} s for one network") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip() or "no message"
        raise UserError(f"{fails} (exit {done.returncode}): {said.splitlines()[-1][:300]}")
    return done.stdout.decode(errors="replace")


def _port(address: str) -> str:
    """The port, where it can be opened."""
    os.close(_opened(address))
    return address


def _opened(address: str) -> int:
    """A file descriptor of the port, at 115200 baud; no byte is changed on the way."""
    try:
        import termios
        import tty
    except ImportError:
        raise UserError("runtime=serial is for Linux and macOS; use export_to= here") from None
    try:
        port = os.open(address, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(port)
        modes = termios.tcgetattr(port)
        modes[2] |= termios.CLOCAL | termios.CREAD
        modes[4] = modes[5] = termios.B115200
        termios.tcsetattr(port, termios.TCSANOW, modes)
    except (OSError, termios.error) as error:
        raise UserError(f"cannot open the serial port {address}: {error}") from None
    return port


def _over_serial(board: Board, files: Mapping[str, bytes], seconds: float) -> list[int]:
    # Opened before it is flashed, as the first lines are lost else.
    port = _opened(board.address)
    try:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            first = next(iter(files))
            command = board.filled(str(folder / first), seconds)
            _output(["sh", "-c", command], f"{command!r} fails", b"", folder)
        return _read(port, board, _id(files[first]), seconds)
    finally:
        os.close(port)


def _read(port: int, board: Board, name: str, seconds: float) -> list[int]:
    """Times of the network of that id: the board may print those of the one before it."""
    pattern, text, times = f"{name} {_TIME}", b"", list[int]()
    start = time.monotonic()
    while len(times) < board.calls:
        passed = time.monotonic() - start
        if passed > (seconds if times else _WAIT):
            break
        ready, _, _ = select.select([port], [], [], 0.1)
        text += _bytes(port, board.address) if ready else b""
        *lines, text = text.split(b"\n")
        said = [line.decode(errors="replace") for line in lines]
        found = [_nanoseconds(line, pattern, board.address) for line in said]
        times += [time for time in found if time is not None]
    if not times:
        raise UserError(
            f"{board.address} prints no line like '{name} 812 us' within {_WAIT:.0f} s: the "
            "firmware must print NETWORK_ID of network_id.h and the time of each call"
        )
    return times[: board.calls]


def _bytes(port: int, address: str) -> bytes:
    """What a port that is ready has to read, which is nothing where it has come to its end."""
    try:
        found, why = os.read(port, 4096), "no more bytes"
    except OSError as error:
        found, why = b"", str(error.strerror)
    if not found:
        raise UserError(
            f"{address} was closed while the board was measured ({why}): it was unplugged "
            "or reset, or another program reads it"
        )
    return found


def _nanoseconds(line: str, pattern: str, address: str) -> int | None:
    """Of a line of the board at `address`; None where it tells no time."""
    found = re.fullmatch(pattern, line.strip())
    if found is None:
        return None
    nanoseconds = float(found[1]) * _UNITS[found[2]]
    if not 0 < nanoseconds < math.inf:
        raise UserError(
            f"{address} prints {line.strip()[:200]!r}: the time of a call must be finite and more "
            "than 0; print a finer unit (us or ns) where it is rounded to 0"
        )
    return max(1, round(nanoseconds))


def _id(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()[:12]
