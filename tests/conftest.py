"""What every test shares: one thread, the same draws each time, no time limit per example."""

import importlib.metadata
import os
import sys
from functools import cache

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported. Sums change with the number of threads, and xdist runs two processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Each Trainer looks through all installed packages for callbacks: a tenth of a tiny run.
importlib.metadata.entry_points = cache(importlib.metadata.entry_points)

settings.register_profile(
    "nas", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nas")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Make a test's result independent of the tests that ran before it in this process."""
    # From sys.modules: importing torch here would cost two seconds where no test needs it.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
