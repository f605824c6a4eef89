"""Steps that may fail, what libraries print that is not for the user, signals, and start-up."""

import gc
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from types import FrameType

from nas.artifacts.files import display_path, write_atomic
from nas.errors import InterruptedRunError, UserError

_LONGEST = 200  # characters of a reason


def silence_third_party_warnings() -> None:
    """Silence Lightning's adverts, its hints about workers, and deprecations of libraries."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # "Received SIGTERM": the run says so itself, and how to go on.
    logging.getLogger("pytorch_lightning.trainer.connectors.signal_connector").setLevel("ERROR")
    for text in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*but have no `val_dataloader`.*",
    ):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="torch|pytorch_lightning|executorch"
    )
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    threading.excepthook = _excepthook


def _excepthook(failed: threading.ExceptHookArgs) -> None:
    # TensorBoard writes in a thread, and raises in the main thread what that one could not write.
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


@contextmanager
def captured() -> Iterator[StringIO]:
    """Take what is written to standard output and error, by C++ code too, away from the user.

    What was written is in the object given when the block has ended.
    """
    said = StringIO()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        try:
            with ExitStack() as stack:
                # The process's own streams too: log handlers keep the stream that they began
                # with, and C++ code knows no other.
                for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                    stream.flush()
                    stack.enter_context(_sent_to(file.fileno(), number))
                stack.enter_context(redirect_stdout(file))
                stack.enter_context(redirect_stderr(file))
                yield said
        finally:
            file.seek(0)
            said.write(file.read())


@contextmanager
def _sent_to(target: int, number: int) -> Iterator[None]:
    """The process's stream of this number goes into the open file `target`."""
    try:
        kept = os.dup(number)
    except OSError:  # the process has no such stream
        yield
        return
    try:
        os.dup2(target, number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def reason(error: BaseException) -> str:
    """Why, in one short line: exporters put the cause below pages of advice."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    while error.__cause__ is not None:
        error = error.__cause__
    lines = (line.strip() for line in str(error).splitlines())
    first = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {first[:_LONGEST]}" if first else type(error).__name__


def record(error: BaseException, said: str, path: Path) -> str:
    """Write the traceback of `error` and what was `said` before; where, for a message."""
    content = "".join(traceback.format_exception(error)) + (f"\nprinted:\n{said}" if said else "")
    try:
        write_atomic(path, content)
    except OSError:  # e.g. a full disk, which may have been the error
        return ""
    return f" (all of it: {display_path(path)})"


class Attempts:
    """Steps after a training: one that fails becomes a warning and does not cost the training.

    Attributes:
        warnings: one line for each step that failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []

    @contextmanager
    def attempt(self, name: str, lacking: str) -> Iterator[None]:
        """Run a block that may fail: an error becomes a warning.

        Args:
            name: of the file ``NAME_error.txt`` in the run's folder.
            lacking: what the run then lacks, e.g. "no ONNX file".
        """
        log = self.folder / f"{name}_error.txt"
        try:
            with captured() as said:
                yield
        except InterruptedRunError:
            raise
        except Exception as error:
            where = "" if isinstance(error, UserError) else record(error, said.getvalue(), log)
            self.warnings.append(f"{lacking}: {reason(error)}{where}")
            logging.getLogger("nas").warning(self.warnings[-1])
        else:
            with suppress(OSError):
                log.unlink(missing_ok=True)  # of an earlier session
            sys.stderr.write(said.getvalue())


GRACE = 5.0  # seconds after the first in which another one does not disturb the end of the run


@contextmanager
def interrupting() -> Iterator[None]:
    """Inside, these signals raise KeyboardInterrupt in the main thread, as SIGINT does.

    A signal that somebody handles already is left to them. Lightning then neither takes SIGUSR1
    for a wish to be queued again, nor waits with SIGTERM for the end of a step.
    """
    last = -GRACE

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= GRACE:
            last = now
            raise KeyboardInterrupt

    names = ("SIGTERM", "SIGUSR1")
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]
    free = [number for number in found if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        free = []
    for number in free:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


_stopped = False


def stop_collecting() -> None:
    """Look for no cycles among objects until `collect_again`, where Python does.

    What a command loads and builds stays, half a million objects, through which Python would look
    again with each quarter that comes: a fifth of the time to the first step.
    """
    global _stopped
    if gc.isenabled():
        gc.disable()
        _stopped = True


def collect_again() -> None:
    """After `stop_collecting` look for cycles again, but not among what there is by now."""
    global _stopped
    if _stopped:
        gc.freeze()
        gc.enable()
        _stopped = False


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no cycles are looked for: for a while in which very many objects come that stay."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
