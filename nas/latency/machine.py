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

REPEAT = 0.03  # by which figures of the first half of the time differ from those of the second
LOAD = 0.75  # of the cores, before the start: more than the profile before this one takes


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
    references: Sequence[int], load_before: float | None, repeats: Sequence[float]
) -> dict[str, Any]:
    """Whether figures can be trusted, and every reason against it.

    A machine whose pace changes is no reason, as long as the same figures come out.

    Args:
        references: nanoseconds of the reference kernel, in the order they were measured.
        load_before: see `load`.
        repeats: of each thing measured, its time in the first half over that in the second.
    """
    reasons = []
    facts: dict[str, Any] = {"load_before": load_before}
    if references:
        every = np.asarray(references, dtype=np.float64)
        low = [np.percentile(part, 20) for part in np.array_split(every, 10) if len(part)]
        facts["spread"] = float(np.median(every) / every.min())
        facts["drift"] = float(max(low) / min(low))
    if repeats:
        facts["repeat"] = float(np.median(np.abs(np.asarray(repeats) - 1)))
        if facts["repeat"] > REPEAT:
            reasons.append(f"measured twice, figures differ by {facts['repeat']:.1%}")
    if load_before is not None and load_before > LOAD:
        reasons.append(f"{load_before:.0%} of the cores were busy before the start")
    return {"trusted": not reasons, "reasons": reasons, **facts}


def quiet_text(quiet: Mapping[str, Any]) -> str:
    """One line for people."""
    if quiet["trusted"]:
        repeat = quiet.get("repeat")
        agree = "" if repeat is None else f": measured twice, figures agree to {repeat:.1%}"
        return f"the machine was quiet{agree}"
    return (
        f"not to be trusted: {'; '.join(quiet['reasons'])}. Measure again while nothing else runs"
    )
