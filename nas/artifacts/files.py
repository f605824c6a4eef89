"""Files that are written whole, folders that one process writes at a time, and tables as CSV."""

import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nas.errors import FolderTakenError

_TEMPORARY = re.compile(r"\..+\.nas-(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]{1,9})-\w+")
ORPHANS = 15.0  # seconds, for which what a killed process has started may hold its lock
_FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what Excel and LibreOffice take for a formula
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def is_main() -> bool:
    """Whether this is the first, or only, process of a distributed training.

    Told by the environment, as the others are before they know of one another.
    """
    if (rank := os.environ.get("RANK")) is not None:
        return rank == "0"
    # Each may be 0 in a process that another tells apart: Slurm's in those that Lightning starts
    # inside of one task, the local one on every node.
    return all(os.environ.get(n, "0") == "0" for n in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def write_atomic(path: Path, content: str | bytes | memoryview) -> None:
    """Write `content` so that a reader, or a crash, sees the old file or the new one, never half.

    Of a distributed training, the first process alone writes: the others have the same to say. The
    temporary file lies beside the target: a rename is atomic within one file system only.
    """
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=own_prefix(path.name))
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes the file private to its owner; results are meant to be shared.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def copy_atomic(source: Path, target: Path) -> None:
    """Let `target` be a file with the content of `source`, written as `write_atomic` does.

    Where the file system can, both are names of one file, which takes no more room: whatever writes
    either of them replaces that name alone.
    """
    if not is_main():
        return
    temporary = target.parent / f"{own_prefix(target.name)}link"
    try:
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:  # a file system without links
        write_atomic(target, source.read_bytes())
    finally:
        temporary.unlink(missing_ok=True)  # left where both are one file already


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each of these packages that is installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an `OSError` say which file it is about: that of a full disk does not know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; NaN is refused, because JSON has none."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def display_path(path: Path) -> Path:
    """As the user would write it: relative where it lies below the working folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The table as CSV; a text that a spreadsheet would run gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def cell(value: object) -> object:
    """A number as it is; a text so that it stays one, in its cell."""
    if not isinstance(value, str):
        return value
    # `csv` puts no quotes round a carriage return, at which readers begin a new row.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def own_prefix(name: str) -> str:
    """What the names of this process's temporary files for the file `name` begin with."""
    return f".{name}.nas-{_machine()}-{os.getpid()}-"


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes have left in `folder`.

    Only those named by `own_prefix`, and of processes of this machine that no longer live.
    """
    for path in folder.glob(".*.nas-*"):
        found = _TEMPORARY.fullmatch(path.name)
        if not found or found["machine"] != _machine() or _alive(int(found["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def claimed(lock: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold `lock` inside the block, which no other process can do at the same time.

    The system lets go of the lock when its process ends, however it ends. Where there are no such
    locks (some network file systems) nothing is checked.

    Args:
        lock: a file; it holds who works there, and is removed afterwards.
        what: is claimed, for messages.
        wait: until the other process is done; else it is an error.

    Raises:
        FolderTakenError: another process works there.
    """
    descriptor = _locked(lock, what, wait)
    try:
        yield
    finally:
        if descriptor is not None:
            lock.unlink(missing_ok=True)
            os.close(descriptor)


def _locked(lock: Path, what: str, wait: bool) -> int | None:
    try:
        import fcntl
    except ImportError:  # not a POSIX system
        return None
    until = time.monotonic() + ORPHANS
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            if not wait and _is_gone(owner) and time.monotonic() < until:
                os.close(descriptor)
                time.sleep(0.1)
                continue
            if not wait:
                os.close(descriptor)
                raise FolderTakenError(
                    f"{what} is being written by {owner}: wait until it is done, or choose another "
                    "folder with out= or name="
                ) from None
            print(f"waiting for {owner}, which works in {what}", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
            return None
        # Who had it before may have removed the file, and a third process made a new one.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                break
        os.close(descriptor)
    with suppress(OSError):  # a full disk: the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()}".encode(), 0)
    return descriptor


def _is_gone(owner: str) -> bool:
    """Whether this was a process here that has ended."""
    found = re.fullmatch(r"process (\d+) on (.*)", owner)
    return found is not None and found[2] == platform.node() and not _alive(int(found[1]))


@cache
def _machine() -> str:
    """This machine, or this container: where a process's number means this process."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    if os.name != "posix":  # asking would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
