"""The process of a caller, which goes on after a call."""

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards the process is as it was: what a command may change, since it ends, is set back.

    These are random states, handlers of signals, levels of loggers, filters of warnings, the
    environment, the arguments of the program, and the number of threads.
    """
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]
    levels = {logger: logger.level for logger in loggers}
    handlers: dict[int, Any] = {
        number: signal.getsignal(number) for number in signal.valid_signals()
    }
    environment, arguments = dict(os.environ), list(sys.argv)
    threads, hook = torch.get_num_threads(), threading.excepthook
    try:
        with warnings.catch_warnings(), isolate_rng(torch.cuda.is_available()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
        _set_back(handlers)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.argv[:] = arguments
        torch.set_num_threads(threads)
        threading.excepthook = hook


def _set_back(handlers: Mapping[int, Any]) -> None:
    """Libraries set handlers: with SIGINT ignored, a notebook could not be stopped."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)
