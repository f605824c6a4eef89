"""How the networks of a batch are scored: in this process, in several, or over ranks."""

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pickle import PicklingError
from typing import Any

import torch

from nas.arch import Arch
from nas.diagnostics import silence_third_party_warnings
from nas.errors import FailedRunError, InterruptedRunError, NotFiniteError, UserError
from nas.ranks import gathered, world
from nas.search.evaluate import Scoring
from nas.search.space import SearchSpace
from nas.search.trials import Trial, TrialLog

Job = tuple[Any, ...]  # the arguments of one call: an architecture, and what else it takes


@dataclass(frozen=True)
class Outcome:
    """What one call gave; `metrics` is empty where the loss became NaN, as `message` then says."""

    job: Job
    metrics: Mapping[str, float]
    seconds: float  # wall clock
    cpu_seconds: float
    message: str | None = None

    @property
    def arch(self) -> Arch:
        """The architecture that was scored."""
        arch: Arch = self.job[0]
        return arch


Outcomes = Callable[[Sequence[Job]], Iterator[Outcome]]  # in any order, each as it is there


def scored(job: Job, score: Scoring) -> Outcome:
    """Call `score`, and measure how long that takes."""
    wall, cpu = time.monotonic(), time.process_time()
    message = None
    try:
        metrics = score(*job)
    except NotFiniteError as error:
        metrics, message = {}, str(error)
    return Outcome(job, metrics, time.monotonic() - wall, time.process_time() - cpu, message)


def in_turn(score: Scoring, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Make one call after another, in this process."""
    for job in jobs:
        yield scored(job, score)


def over_ranks(outcomes: Outcomes, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Let every rank make its share of the calls; each then has all outcomes, in the order of jobs.

    Rank ``i mod R`` makes call i. An outcome is the same on whichever rank it was found.
    """
    rank, ranks = world()
    if ranks == 1:
        yield from outcomes(jobs)
        return
    places = {job: place for place, job in enumerate(jobs)}
    told = ("metrics", "seconds", "cpu_seconds", "message")
    own: Iterator[tuple[int, dict[str, Any]]] = (
        (places[found.job], {name: getattr(found, name) for name in told})
        for found in outcomes(jobs[rank::ranks])
    )
    for job, found in zip(jobs, gathered(own, len(jobs)), strict=True):
        yield Outcome(job, **found)


class Workers:
    """Processes that score side by side; an `Outcomes`, and a context that ends them.

    They are spawned with the first jobs, since a process forked while torch has threads may hang,
    and share this process's threads. They write no trials: this process does, as outcomes arrive.

    Args:
        factory: ``problem -> scoring``, called once in each process.
        problem: what is sent to each process by pickling.
        count: number of processes.
    """

    def __init__(self, factory: Callable[[Any], Scoring], problem: Any, count: int) -> None:
        self.factory, self.problem, self.count = factory, problem, count
        self.processes: list[BaseProcess] = []
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # files are replaced whole: whatever it is doing, nothing is torn
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Score, and yield the outcomes as they arrive; jobs are begun in their order.

        Raises:
            UserError: the problem cannot be sent, or the scoring has raised it.
            FailedRunError: a process has died, or the scoring has raised anything else.
            InterruptedRunError: a process was told to end.
        """
        waiting, running = deque(jobs), dict[Future[Outcome], Job]()
        while waiting or running:
            try:
                while waiting and len(running) < self.count:
                    running[self._submit(waiting[0])] = waiting[0]
                    waiting.popleft()
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                # First what is finished, lest the error of one loses the work of another.
                ready = [future for future in running if future in done]
                for future in sorted(ready, key=lambda one: one.exception() is not None):
                    outcome = future.result()
                    del running[future]
                    yield outcome
            except BrokenProcessPool:
                raise self._death(list(running.values()) or [waiting[0]]) from None

    def _submit(self, job: Job) -> Future[Outcome]:
        pool = self._pool = self._pool or self._new_pool()
        others = {process.pid for process in active_children()}
        future = pool.submit(_score_job, job)  # starts a process, unless one is idle or all run
        self.processes += [p for p in active_children() if p.pid not in others]
        return future

    def _new_pool(self) -> ProcessPoolExecutor:
        try:
            content = bytes(ForkingPickler.dumps((self.factory, self.problem)))
        except (PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"this search cannot be sent to other processes ({error}): let everything it "
                "is made of be defined in modules, or take workers=1"
            ) from None
        threads = max(1, torch.get_num_threads() // self.count)
        context = get_context("spawn")
        return ProcessPoolExecutor(self.count, context, _start_worker, (content, threads))

    def _death(self, jobs: Sequence[Job]) -> FailedRunError | InterruptedRunError:
        """What to say of the process that died; the pool has ended the others by SIGTERM."""
        assert self._pool is not None
        self._pool.shutdown()
        codes = [process.exitcode or 0 for process in self.processes]
        code = next((one for one in codes if one not in (0, -signal.SIGTERM)), -signal.SIGTERM)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        hint = "; was there too little memory for so many?" if code == -signal.SIGKILL else ""
        text = f"a worker {how} while it scored trial {' or '.join(map(_name, jobs))}{hint}"
        return (InterruptedRunError if code == -signal.SIGTERM else FailedRunError)(text)


def _name(job: Job) -> str:
    return str(job[0].hash)


_worker: Scoring | Exception | None = None  # of a worker: what it scores with, or why it cannot


def _start_worker(content: bytes, threads: int) -> None:
    global _worker
    for name in ("SIGINT", "SIGUSR1"):  # for the parent, which ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence_third_party_warnings()
    torch.set_num_threads(threads)
    try:
        factory, problem = ForkingPickler.loads(content)
        _worker = factory(problem)
    except Exception as error:
        _worker = _sendable(error, "a worker could not start")


def _score_job(job: Job) -> Outcome:
    assert _worker is not None
    if isinstance(_worker, Exception):
        raise _worker
    try:
        return scored(job, _worker)
    except Exception as error:
        raise _sendable(error, f"trial {_name(job)} failed") from None


def _sendable(error: Exception, what: str) -> Exception:
    """The error as one that can be pickled for certain: not every exception can."""
    if isinstance(error, UserError | InterruptedRunError):
        return type(error)(str(error))
    traceback.print_exception(error)
    return FailedRunError(f"{what}: {type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """A worker whose parent was killed would score on, beside those of a resumed search."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def recorded(
    outcomes: Outcomes, space: SearchSpace, log: TrialLog, each: Callable[[Trial], None]
) -> Callable[[Sequence[Arch]], None]:
    """A function that scores architectures and appends each to `log` as soon as it is finished."""

    def evaluate(archs: Sequence[Arch]) -> None:
        for found in outcomes([(arch,) for arch in archs]):
            costs = space.price(found.arch)
            trial = Trial(
                found.arch, found.metrics, costs, found.seconds, found.cpu_seconds, found.message
            )
            log.append(trial)
            each(trial)

    return evaluate
