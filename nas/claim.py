"""Whose a folder is at the moment: one process at a time, and what dead ones have left there."""

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from nas.errors import FolderTakenError

_TEMPORARY = re.compile(r"\..+\.nas-(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]{1,9})-\w+")


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
    """Inside, no other process is inside with the same `lock`.

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
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
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
