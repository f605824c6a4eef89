"""SIGTERM and SIGUSR1, which schedulers send before they kill, end a command like Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
