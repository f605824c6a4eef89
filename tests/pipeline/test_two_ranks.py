"""Every kind of search in two processes: they end alike, as one process does, and resumed as ever.

One pair of processes runs all kinds in a row; see `two_ranks`. The space has no BatchNorm, whose
statistics are of each rank's own images.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from nas.artifacts import RunDir
from nas.config.help import config_dir

from .two_ranks import KINDS, RESUMED, carried_out, made, without_pictures

# Sums of gradients are rounded in another order; over some steps that grows.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
BY_ONE = ("reinforce", "random", "evolution", "halving", "constrained", "compress")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have run all kinds."""
    where = tmp_path_factory.mktemp("ranks")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ranks = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    script, log = Path(__file__).with_name("two_ranks.py"), where / "log"
    pair = subprocess.Popen(
        [sys.executable, str(script), str(where)],
        env={**os.environ, **ranks, "NODE_RANK": "0"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = pair.wait(timeout=900)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pair.pid, signal.SIGKILL)  # a rank that is left waits for the other
    assert code == 0, log.read_text()[-3000:]
    return where


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    without_pictures(monkeypatch.setattr)


def test_every_kind_of_search_is_run():
    files = {file.stem for file in (config_dir() / "search").glob("*.yaml")}
    assert {words[0] for words in KINDS.values()} == files


def ends(folder: Path, kind: str) -> list[list[str]]:
    """What the unbroken run ended with, and the resumed one; both ranks say the same."""
    one, other = (json.loads((folder / f"{kind}.rank{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    return one


@pytest.mark.parametrize("kind", RESUMED)
def test_a_resumed_run_ends_as_an_unbroken_one(folder, kind):
    unbroken, resumed = ends(folder, kind)
    assert unbroken == resumed
    runs = [RunDir(folder / name / kind) for name in ("two", "resumed")]
    assert trials(runs[0]) == trials(runs[1])
    assert figures(runs[0]) == figures(runs[1])


@pytest.mark.parametrize("kind", KINDS)
def test_both_end_alike_and_as_one_process_with_batches_as_large(folder, kind, tmp_path):
    assert ends(folder, kind)
    carried_out(made(kind, tmp_path, ranks=1))
    same_end(RunDir(tmp_path), RunDir(folder / "two" / kind))


@pytest.mark.parametrize("kind", BY_ONE)
def test_one_process_goes_on_where_two_were(folder, kind, tmp_path):
    shutil.copytree(folder / "broken" / kind, tmp_path, dirs_exist_ok=True)
    carried_out(made(kind, tmp_path, ranks=1))
    same_end(RunDir(tmp_path), RunDir(folder / "two" / kind))


def same_end(one: RunDir, two: RunDir) -> None:
    assert one.arch.read_text() == two.arch.read_text()
    alone, both = trials(one), trials(two)
    assert list(alone) == list(both)
    assert_close(alone, both, **CLOSE)
    assert_close(figures(one), figures(two), **CLOSE)
    for name in ("checkpoint", "network"):
        files = getattr(one, name), getattr(two, name)
        if files[0].exists() or files[1].exists():
            states = [torch.load(file, weights_only=True) for file in files]
            alone, both = (tensors(state.get("state_dict", state)) for state in states)
            assert_close(alone, both, **CLOSE)


def tensors(state: dict) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def trials(run: RunDir) -> dict[str, dict[str, float]]:
    """In the order of the file: hash -> scores."""
    if not run.trials.exists():
        return {}
    rows = map(json.loads, run.trials.read_text().splitlines())
    return {f"{row['hash']} {len(row.get('rungs', ()))}": row["metrics"] for row in rows}


def figures(run: RunDir) -> dict[str, float]:
    result = run.read_result() or {}
    return {**result["metrics"], **result["costs"]}
