"""What every test shares: one thread, the same draws each time, no time limit per example."""

import gc
import importlib.metadata
import os
import sys
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported. Sums change with the number of threads, and xdist runs two processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# So does the number of cores, of which a command takes all: two processes of two threads on two
# cores take several times as long.
os.sched_getaffinity = lambda process: {0}

# A run waits for the disk a dozen times, a tenth of a second together. What it has written outlives
# its process without that, and no test ends the machine.
os.fsync = lambda descriptor: None

# Each Trainer looks through all installed packages for callbacks: a tenth of a tiny run.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)

settings.register_profile(
    "nas", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nas")

# Python looks for cycles among all that was imported, each time that a thousand objects are new.
gc.set_threshold(10_000, 10, 10)
gc.disable()

_EXPORTER = "torch.onnx._internal.exporter._registration"


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Make a test's result independent of the tests that ran before it in this process."""
    # From sys.modules: importing torch here would cost two seconds where no test needs it.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)
    # What a run that is broken leaves is to depend on the epoch, not on the time.
    if callbacks := sys.modules.get("nas.search.callbacks"):
        callbacks.LastCheckpoint.seconds = 0.0
    # For each file the exporter reads the source of all operators again: a third of its time.
    registry = getattr(sys.modules.get(_EXPORTER), "ONNXRegistry", None)
    if registry and not hasattr(registry.from_torchlib, "cache_info"):
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))


def pytest_collection_finish() -> None:
    """What the test files have imported stays, and is not looked through again."""
    gc.freeze()
    gc.enable()
