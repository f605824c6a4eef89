"""What can end a run, each with a message for the user and an exit code of its own."""

import errno


class UserError(ValueError):
    """A mistake in what the user gave: what is wrong, the value, what is allowed, how to fix it.

    The command line prints it as one line and ends with exit code 2.
    """


class FolderTakenError(UserError):
    """A run's folder is that of another run, or another process works in it."""


class FailedRunError(RuntimeError):
    """A run began and did not end well; the message says how to go on. Exit code 1."""


class InterruptedRunError(RuntimeError):
    """Ctrl-C, SIGTERM or SIGUSR1 ended a run. Exit code 130."""


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; going on would train nothing."""


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
