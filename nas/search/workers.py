"""Scoring in other processes: `Workers`, and the processes of this machine, `Local`.

`nas.search.clusters` has the processes of a cluster.
"""

import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, Protocol

import torch

from nas.diagnostics import silence_third_party_warnings
from nas.errors import FailedRunError, InterruptedRunError, UserError
from nas.search.evaluate import Scoring
from nas.search.scoring import Job, Outcome, scored

Answer = Outcome | Exception  # an error is an answer, since not every engine can raise it as it is


class Pool(Protocol):
    """Processes of an engine, with one problem."""

    def submit(self, job: Job) -> "Future[Answer]":
        """Begin a call."""
        ...

    def failure(self, error: Exception, jobs: Sequence[Job]) -> Exception:
        """What to say of `error`, which is none of the scoring's.

        Args:
            jobs: the call that gave it, then the others that run.
        """
        ...

    def close(self) -> None:
        """End, whatever is being done."""
        ...


class Engine(Protocol):
    """Where processes are; a new kind is a class of this form and a YAML in ``configs/engine``.

    Attributes:
        local: whether they are on this machine.
    """

    local: ClassVar[bool]

    def check(self, count: int) -> None:
        """Find what is wrong before any training.

        Args:
            count: of the calls that are to run side by side.

        Raises:
            UserError: the engine cannot be used.
        """
        ...

    def pool(self, content: bytes, count: int) -> Pool:
        """Processes that score as `content` says, see `start`.

        Raises:
            UserError: the engine cannot be used.
        """
        ...


class Workers:
    """Processes that score side by side; a `nas.search.scoring.Outcomes`, and a context.

    They are asked for with the first jobs, and the problem is sent to each once. They write no
    trials: this process does, as outcomes arrive.

    Args:
        factory: ``problem -> scoring``, called once in each process.
        problem: what is sent to each process by pickling.
        count: number of jobs that run side by side.
        engine: where; None: on this machine.
    """

    def __init__(
        self,
        factory: Callable[[Any], Scoring],
        problem: Any,
        count: int,
        engine: Engine | None = None,
    ) -> None:
        self.factory, self.problem, self.count = factory, problem, count
        self.engine: Engine = engine or Local()
        self.pool: Pool | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.close()

    def __call__(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """Score, and yield the outcomes as they arrive; jobs are begun in their order.

        Raises:
            UserError: the problem cannot be sent, or the scoring has raised it.
            FailedRunError: a process has died, or the scoring has raised anything else.
            InterruptedRunError: a process was told to end.
        """
        waiting, running = deque(jobs), dict[Future[Answer], Job]()
        while waiting or running:
            while waiting and len(running) < self.count:
                job = waiting.popleft()
                running[self._submitted(job)] = job
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            ready = [future for future in running if future in done]
            answers = [self._answer(future, running) for future in ready]
            # First what is finished, lest the error of one loses the work of another.
            yield from (found for found in answers if isinstance(found, Outcome))
            for found in answers:
                if isinstance(found, Exception):
                    raise found
            for future in ready:
                del running[future]

    def _answer(self, future: "Future[Answer]", running: dict["Future[Answer]", Job]) -> Answer:
        assert self.pool is not None
        try:
            return future.result()
        except Exception as error:
            others = [running[one] for one in running if one is not future]
            return self.pool.failure(error, [running[future], *others])

    def _submitted(self, job: Job) -> "Future[Answer]":
        if self.pool is None:
            self.pool = self.engine.pool(self._content(), self.count)
        try:
            return self.pool.submit(job)
        except BrokenProcessPool as error:  # the death is told as that of a job that runs
            failed: Future[Answer] = Future()
            failed.set_exception(error)
            return failed

    def _content(self) -> bytes:
        try:
            return pickle.dumps((self.factory, self.problem))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"this search cannot be sent to other processes ({error}): let everything it "
                "is made of be defined in modules, or take workers=1"
            ) from None


class Local:
    """Processes of this machine; they share this process's threads, and end with it."""

    local: ClassVar[bool] = True

    def check(self, count: int) -> None:
        """Nothing can be wrong here."""

    def pool(self, content: bytes, count: int) -> Pool:
        """See `Engine`."""
        return Processes(content, count)


class Processes:
    """A `Pool` of processes that are spawned, since one forked while torch has threads may hang.

    Args:
        content: see `start`.
        count: number of processes; each begins with a job.
    """

    def __init__(self, content: bytes, count: int) -> None:
        self.processes: list[BaseProcess] = []
        threads = max(1, torch.get_num_threads() // count)
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(count, context, _start_process, (content, threads))

    def submit(self, job: Job) -> "Future[Answer]":
        """See `Pool`."""
        others = {process.pid for process in active_children()}
        future = self._pool.submit(score_job, job)  # starts a process, unless one is idle
        self.processes += [p for p in active_children() if p.pid not in others]
        return future

    def close(self) -> None:
        """See `Pool`."""
        for process in self.processes:
            process.kill()  # files are replaced whole: whatever it is doing, nothing is torn
        self._pool.shutdown(cancel_futures=True)

    def failure(self, error: Exception, jobs: Sequence[Job]) -> Exception:
        """What to say of the process that died; the executor has ended the others by SIGTERM."""
        self._pool.shutdown()
        codes = [process.exitcode or 0 for process in self.processes]
        code = next((one for one in codes if one not in (0, -signal.SIGTERM)), -signal.SIGTERM)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        hint = "; was there too little memory for so many?" if code == -signal.SIGKILL else ""
        text = f"a worker {how} while it scored trial {' or '.join(map(name_of, jobs))}{hint}"
        return (InterruptedRunError if code == -signal.SIGTERM else FailedRunError)(text)


def name_of(job: Job) -> str:
    """A job in messages."""
    return str(job[0].hash)


_worker: Scoring | Exception | None = None  # of a worker: what it scores with, or why it cannot


def start(content: bytes) -> None:
    """Make this process a worker.

    Args:
        content: ``(factory, problem)``, pickled.
    """
    global _worker
    silence_third_party_warnings()
    try:
        factory, problem = ForkingPickler.loads(content)
        _worker = factory(problem)
    except Exception as error:
        _worker = sendable(error, "a worker could not start")


def score_job(job: Job) -> Answer:
    """Score in a worker."""
    assert _worker is not None
    if isinstance(_worker, Exception):
        return _worker
    try:
        return scored(job, _worker)
    except Exception as error:
        return sendable(error, f"trial {name_of(job)} failed")


def sendable(error: Exception, what: str) -> Exception:
    """The error as one that can be pickled for certain: not every exception can."""
    if isinstance(error, UserError | InterruptedRunError):
        return type(error)(str(error))
    traceback.print_exception(error)
    return FailedRunError(f"{what}: {type(error).__name__}: {error}")


def _start_process(content: bytes, threads: int) -> None:
    for name in ("SIGINT", "SIGUSR1"):  # for the parent, which ends this process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    start(content)


def _end_with_parent() -> None:
    """A worker whose parent was killed would score on, beside those of a resumed search."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
