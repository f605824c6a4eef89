"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in what the user gave: what is wrong, the value, what is allowed, how to fix it.

    The command line prints it as one line and ends with exit code 2.
    """
