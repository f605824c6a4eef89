"""Steps that may fail without the run failing: a warning in one line, the whole text in a file."""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nas.errors import InterruptedRunError, UserError
from nas.quiet import captured
from nas.run import shown, write_atomic

_LONGEST = 200  # characters of a reason


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
    return f" (all of it: {shown(path)})"


class Attempts:
    """What comes after a training: a step that fails costs a warning, not the training.

    Attributes:
        warnings: what was told the user, one line for each step that failed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warnings: list[str] = []

    @contextmanager
    def attempt(self, name: str, lacking: str) -> Iterator[None]:
        """Let the block fail.

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
