"""Scoring in several processes: the same scores, every one recorded once, no death unnoticed."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context, set_forkserver_preload
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from nas.arch import Arch
from nas.config.compose import compose_config
from nas.config.help import groups
from nas.data import digits
from nas.errors import FailedRunError, InterruptedRunError, UserError
from nas.search.clusters import Dask, Ray
from nas.search.scoring import in_turn
from nas.search.trials import TrialLog
from nas.search.workers import Workers

# Written to a file: a process that is spawned imports it by name, and nothing heavy with it.
SCORING = """
import glob, os, signal, time
import torch
from nas.arch import Arch
from nas.errors import NotFiniteError, UserError

class Listed:
    def __init__(self): self.left = [Arch("s", {"a": i}) for i in range(6)]; self.told = []
    def ask(self, count): asked, self.left = self.left[:count], self.left[count:]; return asked
    def tell(self, trials): self.told += [t.arch.choices["a"] for t in trials]

def searched(outcomes, log, each):
    from nas.search.scoring import recorded
    from nas.search.searchers import search
    from nas.search.space import SearchSpace
    searcher = Listed()
    evaluate = recorded(outcomes, SearchSpace("s", {"a": tuple(range(6))}), log, each)
    found = search(searcher, evaluate, log, None, 2)
    return [t.arch.choices["a"] for t in found], searcher.told

def scoring(faults):
    def score(arch):
        fault = faults.get(arch.choices["a"])
        if fault in ("SIGKILL", "SIGTERM"):
            time.sleep(0.3)
            os.kill(os.getpid(), getattr(signal, fault))
        if fault == "once" and not os.path.exists("killed"):
            open("killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "mends":
            raise UserError("mend it")
        if fault == "odd":
            raise KeyError("odd")
        if fault == "nan":
            raise NotFiniteError("the loss became nan")
        if fault == "meets":  # goes on when two processes score
            open(f"met{os.getpid()}", "w").close()
            while len(glob.glob("met*")) < 2:
                time.sleep(0.05)
        if fault == "sleeps":
            open(f"pid{os.getpid()}", "w").close()
            time.sleep(60)
        time.sleep(0.05)
        value = float(arch.choices["a"])
        return {"val_loss": value, "pid": os.getpid(), "threads": torch.get_num_threads()}
    return score
"""

# A search over 6 architectures by two workers, in a process of its own that ends the hard way at
# the third line it writes, while another trial is being scored.
SEARCH = """
import os, signal
import scored_elsewhere
from nas.search.workers import Workers
from nas.search.trials import TrialLog
from pathlib import Path

def each(trial):
    if len(log) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    log = TrialLog(Path("trials.jsonl"))
    with Workers(scored_elsewhere.scoring, {3: "sleeps"}, 2) as workers:
        scored_elsewhere.searched(workers, log, each)
"""


@pytest.fixture(autouse=True)
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes come from one that has imported torch; the search that is killed spawns them.

    The imports take some seconds of each spawned process. What they then do is the same.
    """
    set_forkserver_preload(["nas.search.clusters", "distributed"])
    forking = get_context("forkserver")
    monkeypatch.setattr("nas.search.workers.get_context", lambda method: forking)


@pytest.fixture
def scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "scored_elsewhere.py").write_text(SCORING)
    (tmp_path / "search.py").write_text(SEARCH)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("scored_elsewhere").scoring
    del sys.modules["scored_elsewhere"]  # the next test has a file of its own


def jobs(count: int) -> list[tuple[Arch]]:
    return [(Arch("s", {"a": i}),) for i in range(count)]


def test_scores_are_those_of_one_process_and_the_threads_are_shared(scoring):
    torch.set_num_threads(4)
    try:
        with Workers(scoring, {0: "meets", 1: "meets", 3: "nan"}, 2) as workers:
            found = {o.arch: o for o in workers(jobs(6))}
            for process in workers.pool.processes:
                os.kill(process.pid, signal.SIGINT)  # Ctrl-C reaches all; the parent decides
            again = {o.arch: o for o in workers(jobs(2))}
            assert not list(workers([]))
    finally:
        torch.set_num_threads(1)
    alone = {o.arch: o for o in in_turn(scoring({3: "nan"}), jobs(6))}
    assert found.keys() == alone.keys()
    for arch, outcome in found.items():
        assert outcome.metrics.get("val_loss") == alone[arch].metrics.get("val_loss")
        assert outcome.message == alone[arch].message
        assert outcome.seconds >= 0.05 or outcome.message
    ran = [o.metrics for o in found.values() if o.metrics]
    pids = {metrics["pid"] for metrics in ran}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert {metrics["threads"] for metrics in ran} == {2}
    assert {o.metrics["pid"] for o in again.values()} <= pids  # none is started anew
    assert not alive(pids)


@pytest.mark.parametrize(
    ("name", "error"), [("SIGKILL", FailedRunError), ("SIGTERM", InterruptedRunError)]
)
def test_an_error_in_a_worker_is_the_searchs_and_its_death_names_its_trial(scoring, name, error):
    found, wanted = [], jobs(4)
    with Workers(scoring, {1: name, 2: "mends", 3: "odd"}, 1) as workers:
        with pytest.raises(UserError, match=r"^mend it$"):
            list(workers(wanted[2:3]))
        with pytest.raises(FailedRunError, match=f"trial {wanted[3][0].hash}.*KeyError: 'odd'"):
            list(workers(wanted[3:]))
        arriving = (found.append(outcome.arch.choices["a"]) for outcome in workers(wanted))
        with pytest.raises(error, match=f"{name}.*{wanted[1][0].hash}"):
            list(arriving)
    assert found == [0]  # what was finished before is handed over
    assert not alive({process.pid for process in workers.pool.processes})


def test_what_cannot_be_sent_to_a_process_is_named():
    with (
        Workers(lambda problem: None, None, 2) as workers,
        pytest.raises(UserError, match="workers=1"),
    ):
        list(workers(jobs(1)))
    assert workers.pool is None


@pytest.fixture
def dask(tmp_path: Path):
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    forking = {"distributed.worker.multiprocessing-method": "forkserver"}
    with (
        importlib.import_module("dask").config.set(forking),
        distributed.LocalCluster(**options, local_directory=tmp_path / "dask") as cluster,
    ):
        yield Dask(cluster.scheduler_address)


@pytest.mark.filterwarnings("ignore")
def test_dask_workers_of_several_threads_are_refused():
    distributed = pytest.importorskip("distributed", reason="the extra dask is not installed")
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False}
    with (
        distributed.LocalCluster(**options, protocol="tcp", dashboard_address=None) as cluster,
        pytest.raises(UserError, match=r"has workers of 2 threads: .*--nthreads 1"),
    ):
        Dask(cluster.scheduler_address).check(2)


@pytest.fixture
def ray(tmp_path: Path):
    package = pytest.importorskip("ray", reason="the extra ray is not installed")
    handler = signal.getsignal(signal.SIGTERM)
    package.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield Ray()
    package.shutdown()
    signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_cluster_gives_what_one_process_does_though_a_worker_is_killed(scoring, name, request):
    engine = request.getfixturevalue(name)
    engine.check(2)
    with Workers(scoring, {1: "once", 3: "nan", 4: "mends", 5: "odd"}, 2, engine) as workers:
        found = {o.arch: o for o in workers(jobs(4))}
        with pytest.raises(UserError, match=r"^mend it$"):
            list(workers(jobs(6)[4:5]))
        with pytest.raises(FailedRunError, match="KeyError: 'odd'"):
            list(workers(jobs(6)[5:]))
    assert Path("killed").exists()
    alone = {o.arch: o for o in in_turn(scoring({3: "nan"}), jobs(4))}
    assert found.keys() == alone.keys()
    for arch, outcome in found.items():
        assert outcome.metrics.get("val_loss") == alone[arch].metrics.get("val_loss")
        assert outcome.message == alone[arch].message
        assert outcome.metrics.get("pid") != os.getpid()


@pytest.mark.parametrize(
    ("engine", "count", "said"),
    [
        (Dask("tcp://127.0.0.1:9"), 1, r"search\.workers=N"),
        (Dask("tcp://127.0.0.1:9"), 2, "no cluster for engine=dask at .*:9 .*dask scheduler"),
        (Dask("head"), 2, "engine.address=head .*no port"),
        (Ray("ray://127.0.0.1:9"), 2, "no cluster for engine=ray at .*ray start"),
        (Ray(), 2, r"engine=ray needs .*dnas\[ray\]"),
    ],
)
def test_a_cluster_that_is_not_there_is_refused_in_one_line(monkeypatch, engine, count, said):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=said) as refused:
        engine.check(count)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("workers", [0, -1])
def test_less_than_one_worker_is_refused(workers):
    from nas.search.trial_search import TrialSearch

    with pytest.raises(UserError, match=f"workers={workers} must be at least 1"):
        TrialSearch(torch.nn.Identity(), "random", lambda _: None, workers=workers)


def test_a_search_killed_with_its_workers_goes_on_without_repeating(scoring):
    assert subprocess.run([sys.executable, "search.py"], check=False).returncode == -9
    before = Path("trials.jsonl").read_text()
    assert len(before.splitlines()) == 3
    (sleeping,) = [int(path.name[3:]) for path in Path.cwd().glob("pid*")]
    deadline = time.monotonic() + 5
    while alive({sleeping}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive({sleeping})  # workers end with the process that started them
    log, outcomes = TrialLog(Path("trials.jsonl")), partial(in_turn, scoring({}))
    searched = sys.modules["scored_elsewhere"].searched
    assert searched(outcomes, log, lambda _: None) == (list(range(6)), list(range(6)))
    after = Path("trials.jsonl").read_text()
    assert set(before.splitlines()) <= set(after.splitlines())
    # In the order of one worker, whoever finished first.
    assert [json.loads(line)["choices"]["a"] for line in after.splitlines()] == list(range(6))
    assert len(TrialLog(Path("trials.jsonl"))) == 6


def alive(pids) -> set[int]:
    found = set()
    for pid in map(int, pids):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.add(pid)
    return found


def test_data_travel_without_their_images():
    data = digits(limit=200)
    data.setup()
    data.normalise_as([0.25], [0.5])
    sent = bytes(ForkingPickler.dumps(data))
    assert len(sent) < 2000
    again = ForkingPickler.loads(sent)
    assert again.mean == [0.25]
    for one, other in zip(data.weight_loader(), again.weight_loader(), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("group", ["relax", "space", "search", "data", "finetune", "trainer"])
def test_whatever_a_search_is_made_of_can_be_sent(group):
    left_out = {"data": "image_folder"}  # needs a folder
    for option in set(groups()[group]) - {left_out.get(group)}:
        part = instantiate(compose_config([f"{group}={option}"])[group], _convert_="all")
        assert ForkingPickler.dumps(part), option
