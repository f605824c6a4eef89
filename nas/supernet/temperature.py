"""Temperature schedules: progress of the architecture search in [0, 1] -> tau."""

from collections.abc import Callable
from functools import partial

from nas.values import Positive, checked

# Partials of plain functions, not closures: a plan may be sent to other processes.
Schedule = Callable[[float], float]


@checked("relax.temperature")
def constant(tau: Positive = 1.0) -> Schedule:
    """The same temperature from beginning to end."""
    return partial(_straight, tau, tau)


@checked("relax.temperature")
def linear(start: Positive, end: Positive) -> Schedule:
    """``start + (end - start) * progress`` (GDAS, Dong and Yang 2019: from 10 to 0.1)."""
    return partial(_straight, start, end)


@checked("relax.temperature")
def exponential(start: Positive, end: Positive) -> Schedule:
    """``start * (end / start) ** progress`` (FBNet, Wu et al. 2019: an exponential decay)."""
    return partial(_geometric, start, end)


def _straight(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _geometric(start: float, end: float, progress: float) -> float:
    return float(start * (end / start) ** progress)
