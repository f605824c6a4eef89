"""Clusters that are there, by address: `Ray` and `Dask`.

Both give the futures of the standard library, which `nas.search.workers.Workers` waits for. joblib
has backends for both, but that of Ray (2.60) cannot give results as they arrive, and with that of
Dask (joblib 1.6) a search waits for ever for a trial whose worker has died for good.
"""

import logging
import os
import signal
import socket
import sys
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar
from urllib.parse import urlsplit

from nas.config.schema import Name, NonNegative, checked
from nas.errors import FailedRunError, UserError
from nas.search.scoring import Job
from nas.search.workers import Answer, Pool, name_of, score_job, start

RETRIES = 3  # of a trial whose worker has died; in Dask the scheduler's `allowed-failures`
PATIENCE = 10  # seconds for a cluster's answer
START = {"ray": "ray start --head", "dask": "dask scheduler"}


@dataclass(frozen=True)
class Sent:
    """What a worker of a cluster has to know; it sees this machine's folders under the same names.

    Args:
        key: of the search; a worker that has it already does not start again.
        content: see `nas.search.workers.start`.
        folder: the working directory, as paths may be relative.
        path: where modules are.
    """

    key: str
    content: bytes
    folder: str
    path: tuple[str, ...]

    @classmethod
    def of(cls, content: bytes) -> "Sent":
        """`content`, from here."""
        return cls(uuid.uuid4().hex, content, os.getcwd(), tuple(sys.path))


_started: str | None = None  # key of what this worker scores with


def score_sent(sent: Sent, job: Job) -> Answer:
    """Score in a worker of a cluster, which may have scored for others before."""
    global _started
    if _started != sent.key:
        try:
            os.chdir(sent.folder)
        except OSError as error:
            return UserError(
                f"a worker on {os.uname().nodename} does not see the folder {sent.folder} "
                f"({error.strerror}): the cluster's machines must share it"
            )
        sys.path += [place for place in sent.path if place not in sys.path]
        start(sent.content)
        _started = sent.key
    return score_job(job)


def _package(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UserError(
            f"engine={extra} needs the package {name}: pip install 'dnas[{extra}]', here and on "
            "the cluster"
        ) from None


class Cluster:
    """What `Ray` and `Dask` share; an `nas.search.workers.Engine`."""

    local: ClassVar[bool] = False
    name: ClassVar[str]
    address: str

    def check(self, count: int) -> None:
        """See `nas.search.workers.Engine`.

        Raises:
            UserError: one network at a time, or `_opened` refuses.
        """
        if count == 1:
            raise UserError(
                f"engine={self.name} needs the number of networks to be scored side by side: "
                "search.workers=N, or search.ranking.workers=N after the training of a supernet"
            )
        _check_answers(self.name, self.address)
        self._opened().close()

    def pool(self, content: bytes, count: int) -> Pool:
        """See `nas.search.workers.Engine`."""
        _check_answers(self.name, self.address)
        opened = self._opened()
        opened.send(Sent.of(content))
        return opened

    def _opened(self) -> "Connection":
        """A connection to the cluster.

        Raises:
            UserError: the package is missing, nothing answers, or it cannot score.
        """
        raise NotImplementedError


class Connection(Pool):
    """A `Pool` of a cluster's workers.

    Args:
        engine: for messages.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine

    def send(self, sent: Sent) -> None:
        """Put `sent` where all workers can take it from."""
        raise NotImplementedError

    def failure(self, error: Exception, jobs: Sequence[Job]) -> Exception:
        """See `nas.search.workers.Pool`."""
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:200]
        return FailedRunError(
            f"engine={self.engine}: trial {name_of(jobs[0])} was given up, as its worker died "
            f"again and again or the cluster has gone ({reason})"
        )


@checked("engine")
@dataclass(frozen=True)
class Ray(Cluster):
    """A Ray cluster; trials are its tasks.

    Args:
        address: ``auto`` (that of this machine, or of RAY_ADDRESS), HOST:PORT or ray://HOST:PORT.
        cpus: that Ray reserves for a trial.
        gpus: that Ray reserves for a trial; with some, each trial is a process of its own.
    """

    name: ClassVar[str] = "ray"
    address: Name = "auto"
    cpus: NonNegative = 1
    gpus: NonNegative = 0

    def _opened(self) -> Connection:
        ray = _package("ray", self.name)
        own, handler = not ray.is_initialized(), signal.getsignal(signal.SIGTERM)
        try:
            if own:
                ray.init(self.address, log_to_driver=False, logging_level="ERROR")
                signal.signal(signal.SIGTERM, handler)  # Ray's would end a search without a word
        except Exception as error:
            raise _unreachable(self.name, self.address, error) from None
        there = ray.cluster_resources()
        for resource, wanted in (("CPU", self.cpus), ("GPU", self.gpus)):
            if wanted > (present := there.get(resource, 0)):
                if own:
                    ray.shutdown()
                raise UserError(
                    f"engine.{resource.lower()}s={wanted:g} of a trial is more than the cluster "
                    f"at engine.address={self.address} has ({present:g})"
                )
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": RETRIES}
        return _RayConnection(ray, options, own)


class _RayConnection(Connection):
    def __init__(self, ray: Any, options: dict[str, Any], own: bool) -> None:
        super().__init__("ray")
        self.ray, self.own, self.running = ray, own, dict[Any, Any]()
        self.task = ray.remote(**options)(score_sent)

    def send(self, sent: Sent) -> None:
        self.sent = self.ray.put(sent)

    def submit(self, job: Job) -> "Future[Answer]":
        reference = self.task.remote(self.sent, job)
        future: Future[Answer] = reference.future()
        self.running[future] = reference
        future.add_done_callback(lambda done: self.running.pop(done, None))
        return future

    def close(self) -> None:
        for reference in list(self.running.values()):
            self.ray.cancel(reference, force=True)
        if self.own:
            self.ray.shutdown()


@checked("engine")
@dataclass(frozen=True)
class Dask(Cluster):
    """A Dask cluster, whose workers have one thread each: a process draws one trial at a time.

    Args:
        address: of the scheduler, tcp://HOST:PORT.
    """

    name: ClassVar[str] = "dask"
    address: Name

    def _opened(self) -> Connection:
        distributed = _package("distributed", self.name)
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # `failure` says it in one line
        start = f"dask worker {self.address} --nworkers 4 --nthreads 1"
        try:
            client = distributed.Client(self.address, timeout=PATIENCE, set_as_default=False)
        except Exception as error:
            raise _unreachable(self.name, self.address, error) from None
        threads = client.nthreads()
        if not threads or max(threads.values()) > 1:
            client.close()
            have = f"workers of {max(threads.values())} threads" if threads else "no workers"
            raise UserError(
                f"the scheduler at engine.address={self.address} has {have}: give it workers of "
                f"one thread, as trials of one process would disturb each other: {start}"
            )
        return _DaskConnection(client)


class _DaskConnection(Connection):
    def __init__(self, client: Any) -> None:
        super().__init__("dask")
        self.client = client
        self.executor = client.get_executor(pure=False)

    def send(self, sent: Sent) -> None:
        # As a task's result: where all workers that had it have died, it is made again.
        with warnings.catch_warnings(action="ignore"):  # that it is large
            self.sent = self.client.submit(copy, sent, pure=False)

    def submit(self, job: Job) -> "Future[Answer]":
        future: Future[Answer] = self.executor.submit(score_sent, self.sent, job)
        return future

    def close(self) -> None:
        with suppress(Exception):  # the scheduler has gone
            self.executor.shutdown(wait=False)  # what runs is not ended, but nobody waits for it
            self.client.close()


def _check_answers(engine: str, address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes, and then exit."""
    if address == "auto":
        return
    place = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        if place.port is None:
            raise ValueError("it has no port")
        socket.create_connection((place.hostname, place.port), PATIENCE).close()
    except (OSError, ValueError) as error:
        raise _unreachable(engine, address, error) from None


def _unreachable(engine: str, address: str, error: Exception) -> UserError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UserError(
        f"no cluster for engine={engine} at engine.address={address} ({lines[0][:200]}): start one "
        f"(`{START[engine]}`), give its address, or leave engine=local"
    )
