"""Timing many things fairly: interleaved, repeated where unstable, within a time budget.

One call is timed at a time. The latency of a thing is the 20th percentile of its times: the mean,
and often the median, tell more about what else the machine was doing. A fixed kernel is timed
before and after, which tells how fast the machine was at that moment; the times are normalized by
it.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from nas.latency.log import MeasurementLog, Row
from nas.latency.runtimes import Call, keep_memory

UNSTABLE = 1.3  # median over the 1st percentile, above which a thing is measured again
OUTLIER = 2.0  # times the median


@dataclass(frozen=True)
class Schedule:
    """How often things are timed.

    Args:
        most: calls of each thing, where the time budget allows.
        least: calls of each thing, whatever the budget.
        together: calls of a thing in one round.
        warm_ups: calls before the first that counts.
        again: uncounted calls at the start of each round, as the cache holds another thing.
        repeats: further rounds for things that are unstable.
    """

    most: int = 1000
    least: int = 20
    together: int = 4
    warm_ups: int = 20
    again: int = 2
    repeats: int = 8


@dataclass(frozen=True)
class Timing:
    """What is known of the time of one thing, in seconds."""

    seconds: float  # 20th percentile
    median: float
    minimum: float
    calls: int
    outliers: int  # calls of more than twice the median
    stable: bool


def timing(nanoseconds: Sequence[float]) -> Timing:
    """Statistics of the times of single calls ``(n,)``."""
    times = np.asarray(nanoseconds, dtype=np.float64) * 1e-9
    median, minimum = float(np.median(times)), float(times.min())
    return Timing(
        float(np.percentile(times, 20)),
        median,
        minimum,
        len(times),
        int((times > OUTLIER * median).sum()),
        median <= UNSTABLE * float(np.percentile(times, 1)),
    )


Jobs = Mapping[str, Callable[[], Call]]  # name of a thing -> what makes it ready to be called
Tell = Callable[[int, int], None]  # (done, total), for a progress bar


def measure(
    jobs: Jobs,
    log: MeasurementLog,
    seconds: float,
    schedule: Schedule,
    tell: Tell,
    at_once: int,
) -> float:
    """Time all `jobs` that `log` does not hold yet, and write each round into it.

    Args:
        seconds: budget of the timing; calls are fewer, but at least `schedule.least`, where it is
            short. Making things ready, e.g. lowering them to a runtime's file, is not counted.
        at_once: so many are kept ready and interleaved.

    Returns:
        What is left of `seconds`.
    """
    left = [name for name in jobs if not log.done(name)]
    groups = [left[i : i + at_once] for i in range(0, len(left), at_once)]
    done = len(jobs) - len(left)
    for index, names in enumerate(groups):
        group = {name: jobs[name] for name in names}
        before, size = done, len(group)

        def progress(part: float, before: int = before, size: int = size) -> None:
            tell(round(1000 * (before + part * size)), 1000 * len(jobs))

        spent = _Group(group, log, schedule).run(seconds / (len(groups) - index), progress)
        seconds, done = max(0.0, seconds - spent), done + size
    return seconds


def timings(calls: Mapping[str, Call], seconds: float, threads: int = 1) -> dict[str, Timing]:
    """Time a few things that are ready to be called, in turns; no file is kept.

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
            jobs = {name: partial(calls.__getitem__, name) for name in calls}
            measure(jobs, log, seconds, Schedule(), lambda *_: None, len(jobs))
            return {name: timing(log.normalized_times(name)) for name in calls}
    finally:
        torch.set_num_threads(before)


def reference_kernel() -> Call:
    """A small matrix product: a few tenths of a millisecond of the same work every time."""
    a = torch.ones(192, 192)
    out = torch.empty_like(a)

    def run() -> object:
        with torch.inference_mode():
            return torch.mm(a, a, out=out)

    return run


class _Group:
    """Jobs that are kept ready together."""

    def __init__(self, jobs: Jobs, log: MeasurementLog, schedule: Schedule) -> None:
        self.jobs, self.log, self.schedule = jobs, log, schedule
        self.kernel = reference_kernel()
        self.order = random.Random(0)

    def run(self, seconds: float, progress: Callable[[float], None]) -> float:
        """Prepare, warm up, time in rounds; returns the seconds that the last two took.

        Args:
                progress: called with the share that is done.
        """
        prepared: dict[str, Call] = {}
        for name, prepare in self.jobs.items():
            prepared[name] = prepare()
            progress(0.3 * len(prepared) / len(self.jobs))
        start = time.monotonic()
        deadline = start + seconds
        estimates = {name: self._warm_up(call) for name, call in prepared.items()}
        rounds = self._planned(sum(estimates.values()), deadline)
        for index, calls in enumerate(rounds):
            self._round(prepared, calls, sum(rounds))
            progress(0.3 + 0.7 * (index + 1) / len(rounds))
        for _ in range(self.schedule.repeats):
            unstable = {n: c for n, c in prepared.items() if not self._is_stable(n)}
            if unstable and time.monotonic() < deadline:
                self._round(unstable, rounds[0], sum(rounds))
        return time.monotonic() - start

    def _is_stable(self, name: str) -> bool:
        return timing(self.log.normalized_times(name)).stable

    def _warm_up(self, call: Call) -> float:
        """Seconds of a call, the quickest of the warm-ups."""
        return min(_timed(call) for _ in range(max(1, self.schedule.warm_ups))) * 1e-9

    def _planned(self, seconds: float, deadline: float) -> list[int]:
        """Calls of each job in each round, as many as fit before the deadline."""
        plan = self.schedule
        uncounted = 1 + plan.again / plan.together
        fit = int((deadline - time.monotonic()) / max(seconds * uncounted, 1e-9))
        calls = min(plan.most, max(plan.least, fit))
        rounds = max(1, calls // plan.together)
        return [calls // rounds + (index < calls % rounds) for index in range(rounds)]

    def _round(self, prepared: Mapping[str, Call], calls: int, of: int) -> None:
        rows = []
        order = list(prepared)
        with _undisturbed():
            self.order.shuffle(order)
            before = self._reference()
            for name in order:
                call = prepared[name]
                for _ in range(self.schedule.again):
                    call()
                times = [_timed(call) for _ in range(calls)]
                after = self._reference()
                rows.append(Row(name, of, times, before + after))
                before = after
        self.log.add(rows)

    def _reference(self) -> list[int]:
        self.kernel()  # the job before had the cache
        return [_timed(self.kernel) for _ in range(2)]


def _timed(call: Call) -> int:
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
