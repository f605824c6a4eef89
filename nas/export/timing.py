"""Latency of one network in several runtimes, on one thread, one sample at a time.

On a machine that does other things as well: the models are interleaved, so that a slow moment
meets all of them, and the 20th percentile is read, which other processes hardly move.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from nas.export.source import Model

WARM_UPS = 20
REPETITIONS = 200
_STEADY = 1.3  # median / minimum above which the machine was busy
_ATTEMPTS = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call; `steady` is whether median / minimum was at most 1.3."""

    p20_ms: float
    median_ms: float
    steady: bool

    def fields(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


def latencies(
    models: Mapping[str, Model], x: Tensor, repetitions: int = REPETITIONS
) -> dict[str, Latency]:
    """Name -> latency of the model on `x` ``(1, ...)``; measured again while not steady."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.inference_mode():
            best: dict[str, Latency] = {}
            for _ in range(_ATTEMPTS):
                for name, found in _measured(models, x, repetitions).items():
                    kept = best.get(name)
                    if kept is None or found.p20_ms < kept.p20_ms:
                        best[name] = found
                if all(latency.steady for latency in best.values()):
                    break
            return best
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def _measured(models: Mapping[str, Model], x: Tensor, repetitions: int) -> dict[str, Latency]:
    for model in models.values():
        for _ in range(WARM_UPS):
            model(x)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repetitions):
        for name, model in models.items():
            start = time.perf_counter_ns()
            model(x)
            seconds[name].append((time.perf_counter_ns() - start) / 1e6)
    return {name: _summary(sorted(found)) for name, found in seconds.items()}


def _summary(ms: list[float]) -> Latency:
    median = ms[len(ms) // 2]
    return Latency(ms[len(ms) // 5], median, median <= _STEADY * ms[0])
