"""Two processes of one run: what one finds is told to all, and where one fails all end."""

import os
import signal
import subprocess
import sys
import time

import pytest

# Two processes by a stand-in for Lightning's Trainer, which takes long to import. For the same
# reason the other one is forked, where Lightning starts it with the same command.
SCRIPT = """
import os, signal, subprocess, sys, time
from types import SimpleNamespace as Made
import torch
import torch.distributed as dist
from nas import cli
from nas.errors import FailedRunError, UserError
from nas.ranks import (
    all_ranks,
    averaged,
    broadcast,
    broadcast_module,
    each_rank_alone,
    gathered,
    rank_and_ranks,
    world,
)

class Forked(subprocess.Popen):
    def _execute_child(self, *_):
        self.pid = os.fork()
        self._child_created = self.pid > 0

os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[2])
other = Forked([])
if not other.pid:
    os.environ["LOCAL_RANK"] = "1"

def launch(function):
    if "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = "0"
        launcher.procs.append(other)
    function()

def connect():
    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)

launcher = Made(launch=launch, procs=[])
strategy = Made(launcher=launcher, setup_environment=connect)

def waiting():
    return list(gathered([], 1))

def fails(error):
    raise error

def agrees(rank):
    assert world() == rank_and_ranks() == (rank, 2)
    data = Made(batch_size=8)
    with each_rank_alone(data):
        assert rank_and_ranks() == (0, 1) and world() == (rank, 2) and data.batch_size == 16
        assert averaged([torch.ones(2) * rank])[0].tolist() == [rank, rank]
    assert data.batch_size == 8
    assert broadcast(lambda: [rank, 0.1, None]) == [0, 0.1, None]
    own = [(i, {"by": rank, "place": i}) for i in range(rank, 5, 2)]
    assert list(gathered(own, 5)) == [{"by": i % 2, "place": i} for i in range(5)]
    assert averaged([torch.tensor([1.0, 3.0]) + 2 * rank])[0].tolist() == [2.0, 4.0]
    net = torch.nn.BatchNorm1d(3)
    net.running_mean += rank
    net.weight.data += rank
    broadcast_module(net)
    assert net.running_mean.tolist() == [0.0] * 3 and net.weight.tolist() == [1.0] * 3
    print("agreed", rank)

CASES = {
    "agrees": agrees,
    "other_is_wrong": lambda rank: fails(UserError("bad value")) if rank else waiting(),
    "other_has_a_fault": lambda rank: 1 / 0 if rank else waiting(),
    "other_fails_in_a_sum": lambda rank: (
        fails(FailedRunError("no loss")) if rank else dist.all_reduce(torch.ones(1))
    ),
    "other_is_killed": lambda rank: (
        os.kill(os.getpid(), signal.SIGKILL) if rank else time.sleep(60)
    ),
    "first_is_wrong": lambda rank: waiting() if rank else fails(UserError("bad value")),
    "interrupted": lambda rank: (print("ready", flush=True), time.sleep(60)),
}

def job(*_):
    with all_ranks(Made(world_size=2, num_devices=2, strategy=strategy)):
        CASES[sys.argv[1]](world()[0])
    return 0

# A shell that runs the tests in the background lets its children ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
cli._verb = job
sys.exit(cli.run(["job"]))
"""


@pytest.fixture
def started(tmp_path, unused_port):
    """Case -> the first process of two."""
    script = tmp_path / "two.py"
    script.write_text(SCRIPT)
    made: list[subprocess.Popen[str]] = []

    def start(case: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(script), case, str(unused_port)]
        pipe = subprocess.PIPE
        made.append(subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()


@pytest.fixture
def unused_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_ranks_agree(started):
    out, err = started("agrees").communicate(timeout=120)
    assert out == "agreed 0\n", err  # the other one is silent


@pytest.mark.parametrize(
    ("case", "code", "line"),
    [
        ("other_is_wrong", 2, "nas: error: bad value"),
        ("other_has_a_fault", 1, "nas: process 2 failed: ZeroDivisionError in two.py, line "),
        ("other_fails_in_a_sum", 1, "nas: no loss"),
        ("other_is_killed", 1, "nas: process 2 of 2 was killed by SIGKILL"),
        ("first_is_wrong", 2, "nas: error: bad value"),
    ],
)
def test_an_error_of_one_ends_both_with_one_line(started, case, code, line):
    process = started(case)
    # Until both have ended: the other one holds the pipes, too.
    _, err = process.communicate(timeout=120)
    said = [text for text in err.splitlines() if "[W" not in text]
    assert len(said) == 1, err
    assert said[0].startswith(line)
    assert process.returncode == code


def test_ctrl_c_ends_both_with_one_line(started):
    process = started("interrupted")
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert [text for text in err.splitlines() if text] == ["nas: interrupted"]
    assert process.returncode == 130
