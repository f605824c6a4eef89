"""Latency of one network in several runtimes, on one thread, one sample at a time."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import Tensor

from nas.export.source import Model
from nas.latency.measure import timings

SECONDS = 20.0  # at most, for all runtimes of one network


def latencies(
    network: Model, models: Mapping[str, Model], x: Tensor, seconds: float = SECONDS
) -> dict[str, dict[str, Any]]:
    """Name, and "eager" for `network` itself -> its `nas.latency.measure.Timing`, for a JSON file.

    Args:
        x: one sample ``(1, ...)``.
    """
    calls = {name: partial(model, x) for name, model in {"eager": network, **models}.items()}
    found = timings(calls, seconds)
    eager = found["eager"].seconds
    return {n: {**asdict(t), "ratio_to_eager": t.seconds / eager} for n, t in found.items()}
