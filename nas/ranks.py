"""The processes of a distributed run: rank 0 sends values to all, and where one fails all end.

With one process nothing here does anything. What is sent is JSON, and goes through a store beside
the process group: a rank may wait for another as long as it takes, and hears at once when another
has failed.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from io import StringIO
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nas.errors import FailedRunError, InterruptedRunError, NotFiniteError, UserError

T = TypeVar("T")

FAILED = "failed"  # key of the store: the first error, with the rank it happened on
GRACE = 10.0  # seconds for a main thread that waits for a dead process, before all ends
_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (UserError, FailedRunError, InterruptedRunError, NotFiniteError)
}

_apart: ContextVar[bool] = ContextVar("apart", default=False)


def world() -> tuple[int, int]:
    """(rank of this process, number of ranks); (0, 1) outside distributed training."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def rank_and_ranks() -> tuple[int, int]:
    """As `world`, but inside `each_rank_alone` one: the ranks that share a training's batches."""
    return (0, 1) if _apart.get() else world()


@contextmanager
def each_rank_alone(data: Any = None) -> Iterator[None]:
    """Inside, every rank sees all data and trains, or evaluates, for itself.

    Args:
        data: whose `batch_size` is, inside, that of all ranks together: so a network is trained as
            in one process, and as they train one together.
    """
    _, ranks = rank_and_ranks()
    token = _apart.set(True)
    if data is not None:
        data.batch_size *= ranks
    try:
        yield
    finally:
        _apart.reset(token)
        if data is not None:
            data.batch_size //= ranks


@dataclass
class _Team:
    store: Any  # torch.distributed.Store
    calls: Iterator[int] = field(default_factory=count)  # as many on every rank
    # What this process has started: none where a scheduler has, or it is itself started.
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def awaited(self, key: str) -> Any:
        """What a rank has set; or the error that keeps it from doing so."""
        pause = 0.001
        while not self.store.check([key]):
            self.check()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return json.loads(self.store.get(key))

    def check(self) -> None:
        """Raises the error that another rank has told."""
        if self.store.check([FAILED]):
            raise _error(json.loads(self.store.get(FAILED)))


@cache
def _team() -> _Team:
    """Of the process group; the first call is made by all ranks."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    rank, _ = world()
    made = partial(dist.TCPStore, host, wait_for_workers=False)  # type: ignore[attr-defined]
    server = made(0, is_master=True) if rank == 0 else None
    port = [server.port if server else 0]
    dist.broadcast_object_list(port, src=0)
    return _Team(server or made(port[0]))


def broadcast(find: Callable[[], T]) -> T:
    """The JSON value that `find` gives on rank 0, on every rank; the others do not call it."""
    rank, ranks = world()
    if ranks == 1:
        return find()
    team = _team()
    key = f"broadcast/{next(team.calls)}"
    if rank == 0:
        team.store.set(key, json.dumps(find()))
    found: T = team.awaited(key)
    return found


def gathered(own: Iterable[tuple[int, T]], size: int) -> Iterator[T]:
    """JSON values 0 to ``size - 1`` in order, as they come.

    Args:
        own: (place, value) of those that this rank finds. All ranks together find each once.
    """
    team = _team()
    name = f"gathered/{next(team.calls)}"
    place = 0
    for index, value in own:
        team.store.set(f"{name}/{index}", json.dumps(value))
        team.check()
        while place < size and team.store.check([f"{name}/{place}"]):
            yield team.awaited(f"{name}/{place}")
            place += 1
    for rest in range(place, size):
        yield team.awaited(f"{name}/{rest}")


def averaged(values: Sequence[Tensor]) -> list[Tensor]:
    """The mean over the ranks that share a training's batches, of each tensor without gradient."""
    found = [value.detach().clone() for value in values]
    _, ranks = rank_and_ranks()
    if ranks > 1:
        for value in found:
            dist.all_reduce(value)
            value.div_(ranks)
    return found


def broadcast_module(module: nn.Module) -> None:
    """Give `module` the weights and statistics that it has on rank 0."""
    if rank_and_ranks()[1] == 1:
        return
    cuda = dist.get_backend() == "nccl"
    for value in (*module.parameters(), *module.buffers()):
        sent = value.detach().to("cuda" if cuda else "cpu").contiguous()
        dist.broadcast(sent, src=0)
        value.data.copy_(sent)


_inside: ContextVar[bool] = ContextVar("inside", default=False)


@contextmanager
def all_ranks(trainer: Any) -> Iterator[None]:
    """Starts the other processes of a distributed `trainer`; inside, all ranks run the same code.

    The first process alone speaks. Where one fails all end, and the first raises its error.

    Args:
        trainer: of Lightning; with one process, nothing happens.
    """
    if trainer.world_size == 1 or _inside.get():
        yield
        return
    _start(trainer)
    (rank, _), team = world(), _team()
    others = team.others
    token, ended = _inside.set(True), threading.Event()
    if rank == 0 and others:
        threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
    try:
        with redirect_stdout(StringIO() if rank else sys.stdout):
            yield
    except BaseException as error:
        ended.set()
        if rank:
            _tell(team, error, rank)
            raise SystemExit(1) from None
        other = _why(team, others, error)
        for process in others:
            process.kill()  # files are replaced whole: whatever it is doing, nothing is torn
        if other is not None:
            raise other from None
        raise
    finally:
        ended.set()
        _inside.reset(token)


def _start(trainer: Any) -> None:
    """The other processes, unless they are there, and the process group."""
    if dist.is_initialized():
        return
    threads = torch.get_num_threads()
    launcher = trainer.strategy.launcher
    launcher.launch(trainer.strategy.setup_environment)
    # Of a job, shared by its processes; Lightning reads the environment only.
    torch.set_num_threads(max(1, threads // trainer.num_devices))
    _team().others.extend(getattr(launcher, "procs", ()))
    if _team().others:
        # Else Lightning kills this process, without a word, as soon as one of them has failed.
        launcher.procs.clear()


def _watch(others: Sequence[subprocess.Popen[bytes]], ended: threading.Event) -> None:
    """Interrupts the main thread where another process has died: it may wait for it for ever."""
    while not ended.wait(0.2):
        if any(process.poll() for process in others):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if not ended.wait(GRACE):
                why = _epitaph(others) or "another process of this run has failed"
                print(f"nas: {why}", file=sys.stderr, flush=True)
                for process in others:
                    process.kill()
                os._exit(1)
            return


def _epitaph(others: Sequence[subprocess.Popen[bytes]]) -> str | None:
    """Which of the processes has died, and how; None where none has, or it was told to end."""
    for number, process in enumerate(others, start=2):
        code = process.poll() or 0
        if code in (-signal.SIGTERM, -signal.SIGINT) or not code:
            continue
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
        hint = "; was there too little memory for so many?" if code == -signal.SIGKILL else ""
        return f"process {number} of {len(others) + 1} {how}{hint}"
    return None


def _tell(team: _Team, error: BaseException, rank: int) -> None:
    """To the first process, unless it has ended before."""
    kind, message = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt | SystemExit):
        kind, message = "InterruptedRunError", "interrupted"
    elif kind not in _KINDS:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}, line {place.lineno}"
        message = f"process {rank + 1} failed: {kind} in {where}: {message}"
    try:
        team.store.compare_set(FAILED, "", json.dumps([kind, message]))
    except RuntimeError:  # the store has ended with the first process
        return


def _error(what: Sequence[str]) -> Exception:
    kind, message = what
    return _KINDS.get(kind, FailedRunError)(message)


def _why(
    team: _Team, others: Sequence[subprocess.Popen[bytes]], error: BaseException
) -> Exception | None:
    """The error of another process that `error` follows from; None where it is the first."""
    if isinstance(error, UserError | NotFiniteError | FailedRunError):
        return None
    end = time.monotonic() + 2.0  # it may have closed its connections and not yet ended
    while time.monotonic() < end:
        if team.store.check([FAILED]):
            return _error(json.loads(team.store.get(FAILED)))
        if (epitaph := _epitaph(others)) is not None:
            return FailedRunError(epitaph)
        if isinstance(error, KeyboardInterrupt | InterruptedRunError):
            return None
        time.sleep(0.05)
    return None
