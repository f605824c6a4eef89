"""What the libraries underneath say to developers is kept from the users of this one."""

import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


def quiet() -> None:
    """Lightning's adverts and hints about workers are not for the user of a search."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    for text in (".*does not have many workers.*", ".*smaller than the logging interval.*"):
        warnings.filterwarnings("ignore", text)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|pytorch_lightning")
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
