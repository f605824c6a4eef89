"""What can end a run, each with a message for the user and an exit code of its own."""

import errno
import importlib
import os
import re
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What the user can mend by giving another path, or rights to this one.
_PATHS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG,
    errno.EROFS, errno.ELOOP, errno.EINVAL, errno.EEXIST,
)  # fmt: skip

# Page of docs/ -> what the messages speak of that it helps with, and the verbs that it is about.
PAGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "data": (r"\bdata[.=/]|\bclass folder", ()),
    "budgets": (r"\b(budget|cost|device|profile)[.=/]", ("profile",)),
    "compress": (r"\bmodel[.=]|\bspace=given\b|\bspace\.model\b", ()),
    "spaces": (r"\bspace[.=/]", ()),
    "front": (r"\bfront=", ("extract",)),
    "searches": (r"\b(search|objective|relax|guard|experiment)[.=/]", ()),
    "boards": (r"\bboard=|format=c\b|integer form", ()),
    "export": (r"\bformat=", ("export",)),
    "results": (r"\bresume=", ("report", "draw")),
    "sweeps": (r"\b(launcher\b|engine[=.])", ()),
}


def page_of(message: str, verb: str) -> str | None:
    """The page of the documentation that helps with a refusal; None: none."""
    named = [page for page, (words, _) in PAGES.items() if re.search(words, message)]
    return next(iter([*named, *(page for page, (_, own) in PAGES.items() if verb in own)]), None)


class UserError(ValueError):
    """A mistake in what the user gave: what is wrong, the value, what is allowed, how to fix it.

    The command line prints it as one line and ends with exit code 2; a notebook shows that line.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows instead of a traceback, which is of no use to the user."""
        return [f"{type(self).__name__}: {self}"]


class FolderTakenError(UserError):
    """A run's folder is that of another run, or another process works in it."""


class FailedRunError(RuntimeError):
    """A run began and did not end well; the message says how to go on. Exit code 1."""


class InterruptedRunError(RuntimeError):
    """Ctrl-C, SIGTERM or SIGUSR1 ended a run. Exit code 130."""


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; going on would train nothing."""


def needed(package: str, extra: str, what: str) -> Any:
    """An optional package, imported.

    Args:
        package: its name for Python.
        extra: the extra of this package that brings it.
        what: needs it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{what} needs {package} ({error}): pip install 'dnas[{extra}]'") from None


def about_path(error: BaseException) -> str | None:
    """A message on a path that cannot be used; None where that is not what went wrong."""
    if not isinstance(error, OSError) or error.errno not in _PATHS or error.filename is None:
        return None
    name = str(error.filename)
    name = name if len(name) <= 120 else f"{name[:80]}... ({len(name)} characters)"
    return f"{name} cannot be used ({error.strerror}): give another path, or rights to this one"


def write_traceback(error: BaseException, folder: Path | None = None) -> Path:
    """Write how `error` came about into `folder`, or the system's for temporary files."""
    text = "".join(traceback.format_exception(error))
    if folder is not None:
        path = folder / "traceback.txt"
        try:
            path.write_text(text, encoding="utf-8", errors="backslashreplace")
            return path
        except OSError:
            pass  # e.g. the disk is full
    descriptor, name = tempfile.mkstemp(prefix="nas-traceback-", suffix=".txt")
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)


def is_full(error: BaseException) -> bool:
    """Whether a full disk, or a used up quota, is behind an error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def refusal(error: OSError) -> str:
    """What the system has refused, in words for the user."""
    name = error.filename
    if is_full(error):
        where = f" while {name} was written" if name else ""
        return f"the disk is full ({error.strerror}){where}: free some space"
    return f"cannot write {name} ({error.strerror})" if name else str(error)
