"""The machine that measures: its name, and whether it is quiet enough for its figures to hold."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.latency.runtime import Call

# Of a kernel that always does the same work: beyond these, something else was running.
SPREAD = 1.3  # median over minimum
DRIFT = 1.15  # slowest over quickest round, by their 20th percentiles
LOAD = 0.25  # of the cores, before measuring starts


def machine_name(accelerator: str = "cpu") -> str:
    """The processor as the system calls it; of a GPU its own name."""
    if accelerator == "cuda" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions, of Python and the system too."""
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def load() -> float | None:
    """Processes that wanted to run in the last minute, a share of the cores."""
    if not hasattr(os, "getloadavg"):
        return None
    return os.getloadavg()[0] / (os.cpu_count() or 1)


def reference_kernel() -> Call:
    """A small matrix product: a few tenths of a millisecond of the same work every time."""
    a = torch.ones(192, 192)
    out = torch.empty_like(a)

    def run() -> object:
        with torch.inference_mode():
            return torch.mm(a, a, out=out)

    return run


def quietness(
    rounds: Sequence[Sequence[int]], load_before: float | None, unstable: int, of: int
) -> dict[str, Any]:
    """Whether figures can be trusted, and every reason against it.

    Args:
        rounds: nanoseconds of the reference kernel, one row for each round of measurements.
        load_before: see `load`.
        unstable: of `of` units and networks, those whose own times spread too much.
    """
    reasons = []
    facts: dict[str, Any] = {"load_before": load_before}
    if rounds:
        every = np.concatenate([np.asarray(row, dtype=np.float64) for row in rounds])
        low = [float(np.percentile(row, 20)) for row in rounds]
        facts["spread"] = float(np.median(every) / every.min())
        facts["drift"] = max(low) / min(low)
        if facts["spread"] > SPREAD:
            reasons.append(f"a fixed kernel's median is {facts['spread']:.2f} of its minimum")
        if facts["drift"] > DRIFT:
            reasons.append(f"it was {facts['drift']:.2f} times as slow in one round as in another")
    if load_before is not None and load_before > LOAD:
        reasons.append(f"{load_before:.0%} of the cores were busy before the start")
    if of and unstable > 0.1 * of:
        reasons.append(f"{unstable} of {of} measurements spread too much")
    return {"trusted": not reasons, "reasons": reasons, **facts}


def quiet_text(quiet: Mapping[str, Any]) -> str:
    """One line for people."""
    if quiet["trusted"]:
        return "the machine was quiet"
    return (
        f"not to be trusted: {'; '.join(quiet['reasons'])}. Measure again while nothing else runs"
    )
