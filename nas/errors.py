"""What can end a run, each with a message for the user and an exit code of its own."""


class UserError(ValueError):
    """A mistake in what the user gave: what is wrong, the value, what is allowed, how to fix it.

    The command line prints it as one line and ends with exit code 2.
    """


class FailedRunError(RuntimeError):
    """A run began and did not end well; the message says how to go on. Exit code 1."""


class InterruptedRunError(RuntimeError):
    """Ctrl-C, or a scheduler's signal, ended a run. Exit code 130."""


class NotFiniteError(RuntimeError):
    """The loss became NaN or infinite; going on would train nothing."""
