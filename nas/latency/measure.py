"""Timing many things fairly: interleaved, repeated where unstable, within a time budget.

One call is timed at a time. Of the times of one thing the 20th percentile is its latency: the
mean, and often the median, tell more about what else the machine was doing. How fast the machine
was just then, a fixed kernel tells that is timed before and after, and times are brought to one
pace by it.
"""

import gc
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nas.latency.log import MeasurementLog, Row
from nas.latency.machine import reference_kernel
from nas.latency.runtime import Call

UNSTABLE = 1.3  # median over the least in a hundred, from which on a thing is measured again
OUTLIER = 2.0  # times the median


@dataclass(frozen=True)
class Job:
    """One thing to time: `prepare` makes it ready, and its result is called."""

    name: str
    prepare: Callable[[], Call]


@dataclass(frozen=True)
class Schedule:
    """How often things are timed.

    Args:
        most: calls of each, where the time budget allows.
        least: calls of each, whatever the budget.
        together: calls in one round.
        warm_ups: calls before the first that counts.
        again: calls at each return to a thing that do not count: another one had the cache.
        repeats: further rounds for what is unstable.
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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def timing(nanoseconds: Sequence[float]) -> Timing:
    """Sum up the times of single calls."""
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


# Told what is done, of how much; for a bar with the time left.
Tell = Callable[[int, int], None]


def measure(
    jobs: Sequence[Job],
    log: MeasurementLog,
    deadline: float,
    schedule: Schedule,
    tell: Tell,
    at_once: int,
) -> None:
    """Time all `jobs` that `log` does not hold yet, and write each round into it.

    Args:
        deadline: on the clock of `time.monotonic`; calls are fewer, but at least
            `schedule.least`, where it is near.
        at_once: so many are kept ready and interleaved.
    """
    left = [job for job in jobs if not log.done(job.name)]
    groups = [left[i : i + at_once] for i in range(0, len(left), at_once)]
    done = len(jobs) - len(left)
    for index, group in enumerate(groups):
        share = max(0.0, deadline - time.monotonic()) / (len(groups) - index)
        before, size = done, len(group)

        def progress(part: float, before: int = before, size: int = size) -> None:
            tell(round(1000 * (before + part * size)), 1000 * len(jobs))

        _Group(group, log, schedule).run(time.monotonic() + share, progress)
        done += size


class _Group:
    """Jobs that are kept ready together."""

    def __init__(self, jobs: Sequence[Job], log: MeasurementLog, schedule: Schedule) -> None:
        self.jobs, self.log, self.schedule = jobs, log, schedule
        self.reference = reference_kernel()
        self.order = random.Random(0)

    def run(self, deadline: float, progress: Callable[[float], None]) -> None:
        """Prepare, warm up, measure in rounds; `progress` is told the share that is done."""
        prepared: dict[str, Call] = {}
        for job in self.jobs:
            prepared[job.name] = job.prepare()
            progress(0.3 * len(prepared) / len(self.jobs))
        estimates = {name: self._warm_up(call) for name, call in prepared.items()}
        rounds = self._planned(sum(estimates.values()), deadline)
        for index, calls in enumerate(rounds):
            self._round(self.jobs, prepared, calls, sum(rounds))
            progress(0.3 + 0.7 * (index + 1) / len(rounds))
        for _ in range(self.schedule.repeats):
            unstable = [j for j in self.jobs if not timing(self.log.steady(j.name)).stable]
            if unstable and time.monotonic() < deadline:
                self._round(unstable, prepared, rounds[0], sum(rounds))

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

    def _round(
        self, jobs: Sequence[Job], prepared: Mapping[str, Call], calls: int, of: int
    ) -> None:
        rows = []
        order = list(jobs)
        with _undisturbed():
            self.order.shuffle(order)
            before = self._pace()
            for job in order:
                call = prepared[job.name]
                for _ in range(self.schedule.again):
                    call()
                times = [_timed(call) for _ in range(calls)]
                after = self._pace()
                rows.append(Row(job.name, of, times, before + after))
                before = after
        self.log.add(rows)

    def _pace(self) -> list[int]:
        self.reference()  # the job before had the cache
        return [_timed(self.reference) for _ in range(2)]


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
