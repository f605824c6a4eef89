"""Learning-rate schedules as plain functions: step -> factor on the optimizer's own rate."""

from collections.abc import Callable
from math import cos, pi


def warmup_cosine(warmup: float, total: int, floor: float = 0.0) -> Callable[[int], float]:
    """Linear from 0 over `warmup` steps, then half a cosine from 1 to `floor` at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1.0, total - warmup))
        return floor + (1 - floor) * (1 + cos(pi * progress)) / 2

    return factor
