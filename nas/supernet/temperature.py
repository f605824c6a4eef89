"""Temperature schedules: progress of the architecture search in [0, 1] -> tau."""

from collections.abc import Callable
from functools import partial

from nas.errors import UserError

# Partials of plain functions, not closures: a plan may be sent to other processes.
Schedule = Callable[[float], float]


def constant(tau: float = 1.0) -> Schedule:
    """The same temperature from beginning to end."""
    _positive(tau=tau)
    return partial(_straight, tau, tau)


def linear(start: float, end: float) -> Schedule:
    """``start + (end - start) * progress`` (GDAS, Dong and Yang 2019: from 10 to 0.1)."""
    _positive(start=start, end=end)
    return partial(_straight, start, end)


def exponential(start: float, end: float) -> Schedule:
    """``start * (end / start) ** progress`` (FBNet, Wu et al. 2019: an exponential decay)."""
    _positive(start=start, end=end)
    return partial(_geometric, start, end)


def _straight(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _geometric(start: float, end: float, progress: float) -> float:
    return float(start * (end / start) ** progress)


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"temperature {name}={value} must be above 0")
