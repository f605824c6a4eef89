"""A few things that are ready to be called, timed beside each other and nothing kept of it."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nas.latency.log import MeasurementLog
from nas.latency.measure import Job, Schedule, Timing, measure, timing
from nas.latency.runtime import Call, keep_memory


def timings(calls: Mapping[str, Call], seconds: float, threads: int = 1) -> dict[str, Timing]:
    """Name -> how long a call takes, all brought to one pace of the machine.

    Args:
        seconds: for all of them; fewer calls where they are long.
        threads: of PyTorch; other runtimes have theirs already.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    keep_memory()
    try:
        with TemporaryDirectory() as folder, torch.inference_mode():
            log = MeasurementLog(Path(folder) / "log", {})
            jobs = [Job(name, partial(calls.__getitem__, name)) for name in calls]
            end = time.monotonic() + seconds
            measure(jobs, log, end, Schedule(), lambda *_: None, len(jobs))
            return {name: timing(log.steady(name)) for name in calls}
    finally:
        torch.set_num_threads(before)
