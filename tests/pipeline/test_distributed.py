"""Two processes from one command: they agree, and one of them writes and speaks."""

import json
import subprocess
import sys

import pytest
import torch

from nas.artifacts.files import is_main, write_atomic
from nas.train import strategy_of

TINY = (
    "data=digits", "space=chain_tiny", "finetune.epochs=1", "onnx=false", "threads=1", "seed=0",
    "front=1", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.devices=2",
    "name=two",
)  # fmt: skip


def test_a_search_in_two_processes_ends_as_one(tmp_path):
    """As the command starts them, and with BatchNorm; `test_two_ranks` runs the other searches."""
    words = ["search=spos", "search.epochs=1", "search.ranking.trials=4", "data.limit=400"]
    command = [sys.executable, "-m", "nas.cli", "search", *TINY, *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.count("network found in space") == 1
    assert "find_unused_parameters" not in ended.stderr
    run = tmp_path / "runs" / "two"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    names = [line for line in (run / "trials.jsonl").read_text().splitlines() if line]
    assert len(names) == len(set(names)) == 4
    saved = torch.load(run / "last.ckpt", weights_only=True)
    # As many steps as half of the data has.
    assert 0 < saved["global_step"] < 400 / 64


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_process_writes(tmp_path, monkeypatch, name):
    assert is_main()
    monkeypatch.setenv(name, "1")
    assert not is_main()
    write_atomic(tmp_path / "a", "x")
    assert not (tmp_path / "a").exists()
    monkeypatch.setenv(name, "0")
    write_atomic(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"


def test_every_variable_that_tells_processes_apart_is_read(monkeypatch):
    # Lightning's, inside of one Slurm task; and torchrun's own number, whatever the task's.
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_main()
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("RANK", "0")
    assert is_main()


def test_unused_parameters_are_looked_for_where_there_are_several_devices():
    found = {"strategy": "ddp_find_unused_parameters_true"}
    assert strategy_of("ddp", 1) == strategy_of("auto", 2) == strategy_of("auto", [0, 1]) == found
    assert strategy_of("auto", 1) == strategy_of("fsdp", 2) == strategy_of("auto", "1") == {}
