"""Scoring of architectures in this process, in several, or over ranks; outcomes become trials."""

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
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

Job = tuple[Any, ...]  # the arguments of one call


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
    """Call, and measure how long that takes."""
    wall, cpu = time.monotonic(), time.process_time()
    message = None
    try:
        metrics = score(*job)
    except NotFiniteError as error:
        metrics, message = {}, str(error)
    return Outcome(job, metrics, time.monotonic() - wall, time.process_time() - cpu, message)


def in_turn(score: Scoring, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """One call after another, in this process."""
    for job in jobs:
        yield scored(job, score)


def over_ranks(outcomes: Outcomes, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Every rank's share of the calls by `outcomes`; on each, those of all, in the order of jobs.

    Job i is that of rank ``i mod R``. An outcome is the same whoever has found it.
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


def recorded(
    outcomes: Outcomes, space: SearchSpace, log: TrialLog, each: Callable[[Trial], None]
) -> Callable[[Sequence[Arch]], None]:
    """Scores architectures and appends each to `log` as soon as it is finished."""

    def evaluate(archs: Sequence[Arch]) -> None:
        for found in outcomes([(arch,) for arch in archs]):
            costs = space.price(found.arch)
            trial = Trial(
                found.arch, found.metrics, costs, found.seconds, found.cpu_seconds, found.message
            )
            log.append(trial)
            each(trial)

    return evaluate


class Workers:
    """Processes that score side by side; an `Outcomes`, and a context.

    They are spawned at the first job, since a process forked while torch has threads may hang, and
    share this process's threads. They write no trials: this process does, as outcomes arrive.

    Args:
        factory: ``problem -> scoring``, called once in each.
        problem: what is sent to each of them by pickling.
        count: of processes.
    """

    def __init__(self, factory: Callable[[Any], Scoring], problem: Any, count: int) -> None:
        self.factory, self.problem, self.count = factory, problem, count
        self.processes: list[BaseProcess] = []
        self._ends: list[Connection] = []  # this process's, of the pipe to each
        self._busy: dict[Connection, Job] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()  # files are replaced whole: whatever it is doing, nothing is torn
        for process in self.processes:
            process.join()
        for end in self._ends:
            end.close()
        self._busy.clear()

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcomes as they arrive; jobs are begun in their order.

        Raises:
            UserError: the problem cannot be sent, or the scoring has raised it.
            FailedRunError: a process has died, or the scoring has raised anything else.
            InterruptedRunError: a process was told to end.
        """
        waiting = deque(jobs)
        if waiting and not self.processes:
            self._start()
        while waiting or self._busy:
            for end in self._ends:
                if waiting and end not in self._busy:
                    self._send(end, waiting.popleft())
            answers = [self._answer(end) for end in self._ready()]
            # First what is finished, lest the error of one loses the work of another.
            yield from (answer for answer in answers if isinstance(answer, Outcome))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer

    def _start(self) -> None:
        context = get_context("spawn")
        threads = max(1, torch.get_num_threads() // self.count)
        for _ in range(self.count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, threads), daemon=True)
            process.start()
            # Else the pipe would stay open here when that process dies, and no one would notice.
            there.close()
            self.processes.append(process)
            self._ends.append(here)
        for end in self._ends:
            try:
                end.send((self.factory, self.problem))
            except (PicklingError, AttributeError, TypeError) as error:
                raise UserError(
                    f"this search cannot be sent to other processes ({error}): let everything it "
                    "is made of be defined in modules, or take workers=1"
                ) from None
            except OSError:
                raise FailedRunError(self._epitaph(end, "before its first trial")) from None

    def _send(self, end: Connection, job: Job) -> None:
        self._busy[end] = job
        try:
            end.send(job)
        except OSError:
            raise self._death(end) from None

    def _ready(self) -> list[Connection]:
        ready = wait(list(self._busy))
        return [end for end in self._ends if end in ready]

    def _answer(self, end: Connection) -> Outcome | Exception:
        try:
            answer: Outcome | Exception = end.recv()
        except (EOFError, OSError):
            return self._death(end)
        del self._busy[end]
        return answer

    def _death(self, end: Connection) -> FailedRunError:
        return FailedRunError(self._epitaph(end, f"while it scored trial {_name(self._busy[end])}"))

    def _epitaph(self, end: Connection, when: str) -> str:
        process = self.processes[self._ends.index(end)]
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        hint = "; was there too little memory for so many?" if code == -signal.SIGKILL else ""
        return f"a worker {how} {when}{hint}"


def _name(job: Job) -> str:
    return str(job[0].hash)


def _work(pipe: Connection, threads: int) -> None:
    """The life of a worker: what to score with, then jobs, each answered."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # for the parent, which ends this
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence_third_party_warnings()
    torch.set_num_threads(threads)
    score: Scoring | None = None
    error: Exception | None = None
    try:
        factory, problem = pipe.recv()
        score = factory(problem)
    except Exception as caught:
        error = _told(caught, "a worker could not start")
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        pipe.send(error if score is None else _outcome(job, score))


def _outcome(job: Job, score: Scoring) -> Outcome | Exception:
    try:
        return scored(job, score)
    except Exception as error:
        return _told(error, f"trial {_name(job)} failed")


def _told(error: Exception, what: str) -> Exception:
    """As an exception that can be sent for certain: not every one can be pickled."""
    if isinstance(error, UserError | InterruptedRunError):
        return type(error)(str(error))
    traceback.print_exception(error)
    return FailedRunError(f"{what}: {type(error).__name__}: {error}")


def _end_with_parent() -> None:
    """A worker whose parent was killed would score on, beside those of a resumed search."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
