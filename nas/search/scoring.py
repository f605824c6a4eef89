"""How the networks of a batch are scored: in this process or several, at once or in rungs."""

import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from math import isfinite
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import PicklingError
from typing import Annotated, Any

import torch
from pydantic import Field

from nas.arch import Arch
from nas.config.schema import Count, checked
from nas.diagnostics import silence_third_party_warnings
from nas.errors import FailedRunError, InterruptedRunError, NotFiniteError, UserError
from nas.ranks import gathered, world
from nas.search.evaluate import Scoring, checkpoint_of
from nas.search.space import SearchSpace
from nas.search.trials import Rung, Trial, TrialLog

Eta = Annotated[int, Field(ge=2, le=1000)]  # one in so many goes on
Job = tuple[Any, ...]  # the arguments of one call: an architecture, and what else it takes

RUNGS = "rungs"  # in the folder of a run: checkpoints of the networks that may go on


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


@checked("search.halving")
@dataclass(frozen=True)
class Halving:
    """Successive halving of each batch asked for (Jamieson and Talwalkar 2016, algorithm 1).

    All networks of a batch are trained up to ``epochs[0]``, the best ``1 / eta`` of them on to
    ``epochs[1]``, and so on, at least one each time. The schedule of the learning rate is that of
    the longest training, so a network that reaches it is what unbroken training gives. The
    searcher is told what each network had when it was left behind.

    Args:
        eta: of how many one goes on.
        epochs: where trainings pause and are compared, rising; None: no halving.

    Raises:
        UserError: a value out of its range.
    """

    eta: Eta = 3
    epochs: Sequence[Count] | None = None

    def __post_init__(self) -> None:
        if self.epochs is None:
            return
        shown = f"search.halving.epochs={list(self.epochs)}"
        if len(self.epochs) < 2:
            raise UserError(f"{shown} must be at least two, e.g. [1, 3, 9], or null (no halving)")
        if any(b <= a for a, b in zip(self.epochs[:-1], self.epochs[1:], strict=True)):
            raise UserError(f"{shown} must rise, e.g. [1, 3, 9]")

    @property
    def rungs(self) -> Sequence[int]:
        """Where trainings pause; none without halving."""
        return self.epochs or ()

    @property
    def cohort(self) -> int:
        """The smallest batch of which exactly one network, or one in `eta`, reaches the end."""
        return int(self.eta ** max(0, len(self.rungs) - 1))

    def evaluation(
        self,
        outcomes: Outcomes,
        space: SearchSpace,
        log: TrialLog,
        each: Callable[[Trial], None],
        metric: str,
        folder: Path,
    ) -> Callable[[Sequence[Arch]], None]:
        """Scores a batch; a line of `log` for each rung that a network reaches.

        What `log` knows of a network is not done again, so a batch may be scored a second time.

        Args:
            metric: the score that decides who goes on.
            folder: of the checkpoints; those no longer needed are removed.
        """

        def evaluate(archs: Sequence[Arch]) -> None:
            racing = list(archs)
            for place, epochs in enumerate(self.rungs):
                behind = [a for a in racing if len(self._reached(log.get(a))) <= place]
                for outcome in outcomes([(arch, epochs) for arch in behind]):
                    trial = self._trial(outcome, log.get(outcome.arch), space)
                    log.append(trial)
                    each(trial)
                last = place == len(self.rungs) - 1
                ahead = [] if last else self._best(racing, place, log, metric)
                for arch in set(racing) - set(ahead):
                    checkpoint_of(folder, arch).unlink(missing_ok=True)
                racing = ahead

        return evaluate

    def _reached(self, trial: Trial | None) -> list[Rung]:
        """The rungs on record, as far as they are those of this halving."""
        found: list[Rung] = []
        for rung, epochs in zip(trial.rungs if trial else (), self.rungs, strict=False):
            if rung.epochs != epochs:
                break
            found.append(rung)
        return found

    def _trial(self, outcome: Outcome, before: Trial | None, space: SearchSpace) -> Trial:
        epochs: int = outcome.job[1]
        rungs = [rung for rung in self._reached(before) if rung.epochs < epochs]
        spent = (before.seconds, before.cpu_seconds) if before and rungs else (0.0, 0.0)
        return Trial(
            outcome.arch,
            outcome.metrics,
            space.price(outcome.arch),
            spent[0] + outcome.seconds,
            spent[1] + outcome.cpu_seconds,
            outcome.message,
            (*rungs, Rung(epochs, outcome.metrics)),
        )

    def _best(self, racing: Sequence[Arch], place: int, log: TrialLog, metric: str) -> list[Arch]:
        """Those that go on, in the order of `racing`."""
        scores = {}
        for arch in racing:
            trial = log.known[arch.hash]
            value = replace(trial, metrics=trial.rungs[place].metrics).value(metric)
            if isfinite(value):
                scores[arch] = value
        taken = sorted(scores, key=lambda arch: scores[arch])  # stable: of equals the first asked
        kept = set(taken[: max(1, len(racing) // self.eta)])
        return [arch for arch in racing if arch in kept]
