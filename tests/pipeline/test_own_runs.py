"""Whole runs on data of a user's own: killed and resumed, from Python, of each kind of task."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import nas
from nas.cli import run
from nas.search.callbacks import LastCheckpoint
from nas.supernet.choice import ChoiceBlock

QUICK = ["threads=1", "trainer.enable_progress_bar=false", "logger=[]", "name=a"]
SEARCH = (
    "search=bilevel search.epochs=2 search.warmup_epochs=0 finetune.epochs=2 onnx=false front=1"
)


class Pairs(Dataset):
    """Two inputs each, drawn anew at each reading."""

    def __len__(self) -> int:
        return 90

    def __getitem__(self, place: int) -> tuple[tuple[Tensor, Any], int]:
        image = place % 3 + torch.randn(1, 6, 6)
        return (image, np.random.rand(2).astype(np.float32)), place % 3


def pairs(workers: int = 0) -> DataLoader[Any]:
    """Read by so many other processes, of which each epoch starts its own."""
    return DataLoader(Pairs(), batch_size=10, num_workers=workers)


class Both(torch.nn.Module):
    """A supernet of an image and a row."""

    name = "both"

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__()
        (channels, *_), (columns,) = input_shape
        self.body = ChoiceBlock(
            {str(k): torch.nn.Conv2d(channels, 4, k, padding=k // 2) for k in (1, 3)}
        )
        self.head = torch.nn.Linear(4 + columns, num_outputs)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(torch.cat([self.body(image).relu().mean((2, 3)), row], 1))


def words(*more: str, workers: int = 0) -> list[str]:
    """Of a search by the command."""
    Path("own/space").mkdir(parents=True, exist_ok=True)
    Path("own/space/both.yaml").write_text(f"_target_: {__name__}.Both\n_partial_: true\n")
    source = f"data.source={{_target_: {__name__}.pairs, workers: {workers}}}"
    return ["search", "--config-dir", "own", "space=both", "data=own", source, *QUICK, *more]


# Ends the process the hard way once the third checkpoint is on the disk.
KILLED = """
import os, signal, sys
from nas.cli import run
from nas.search.callbacks import LastCheckpoint
LastCheckpoint.seconds = 0.0
saves, save = [], LastCheckpoint.on_train_epoch_end

def dying(*given):
    save(*given)
    saves.append(1)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

LastCheckpoint.on_train_epoch_end = dying
sys.exit(run(sys.argv[1:]))
"""


def test_a_killed_run_on_a_dataset_that_draws_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = SEARCH.split()
    assert run(words(*settings, "out=whole")) == 0  # in one process: it changes nothing
    root = Path(__file__).parents[2]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words(*settings, "out=broken", workers=1)],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not Path("broken/a/result.json").exists()
    assert run(words(*settings, "out=broken", "resume=true", workers=1)) == 0
    same_end(Path("whole/a"), Path("broken/a"))


class Crash(BaseException):
    """Ends a run as no error that is caught does."""


def test_a_broken_search_from_python_goes_on_bit_for_bit(tmp_path, monkeypatch):
    settings: dict[str, Any] = {
        "search": "bilevel", "search__epochs": 2, "search__warmup_epochs": 0, "front": 1,
        "finetune__epochs": 2, "onnx": False, "threads": 1, "logger": [], "name": "a",
        "trainer__enable_progress_bar": False,
    }  # fmt: skip
    nas.search(Both, pairs(), out=tmp_path / "whole", **settings)
    save, left = LastCheckpoint.on_train_epoch_end, [3]

    def crashing(*given: Any) -> None:
        save(*given)
        left[0] -= 1
        if not left[0]:
            raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(LastCheckpoint, "on_train_epoch_end", crashing)
        with pytest.raises(Crash):
            nas.search(Both, pairs(), out=tmp_path / "broken", **settings)
    nas.search(Both, pairs(), out=tmp_path / "broken", **settings)
    same_end(tmp_path / "whole/a", tmp_path / "broken/a")


def same_end(one: Path, other: Path) -> None:
    results = [json.loads((path / "result.json").read_text()) for path in (one, other)]
    assert results[0]["arch"] == results[1]["arch"]
    assert results[0]["metrics"] == results[1]["metrics"]
    states = [torch.load(path / "network.pt", weights_only=True) for path in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_inputs_by_position_are_searched_and_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["search=random", "finetune.epochs=4", "data.batch_size=10", "onnx=false"]
    assert run(words(*quick)) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["input"]["shape"] == [[1, 6, 6], [2]]
    assert result["metrics"]["test_acc"] > 0.5
    assert not result["warnings"]
    assert exported_to_onnx() < 1e-4


def exported_to_onnx() -> float:
    """By how much the file differs."""
    assert run(["export", "runs/a", "format=onnx", "trust=true", "latency=false"]) == 0
    found = json.loads(Path("runs/a/export/export.json").read_text())
    return found["formats"]["onnx"]["max_abs_diff"]


class Shapes(Dataset):
    """Rows of numbers, of which one in four is anomalous, or whose next two are to be told."""

    def __init__(self, anomalous: bool) -> None:
        draw = np.random.default_rng(0)
        waves = np.sin(np.arange(20) / 3 + draw.uniform(0, 6, (200, 1)))
        odd = np.arange(200) % 4 == 0
        if anomalous:
            waves += draw.normal(size=waves.shape) * np.where(odd, 0.5, 0.05)[:, None]
        self.x, self.next = waves[:, None, :18].astype(np.float32), waves[:, 18:]
        self.y = odd.astype(np.int64) if anomalous else self.next

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return self.x[place], self.y[place]


@pytest.mark.parametrize(
    ("task", "space", "metric", "good"),
    [("anomaly", "autoencoder", "auroc", 0.7), ("forecasting", "tcn", "skill", 0.2)],
)
def test_other_tasks_on_a_dataset(tmp_path, monkeypatch, task, space, metric, good):
    monkeypatch.chdir(tmp_path)
    anomalous = str(task == "anomaly").lower()
    source = f"data.source={{_target_: {__name__}.Shapes, anomalous: {anomalous}}}"
    settings = [f"task={task}", f"space={space}", "data.batch_size=16", "finetune.epochs=12"]
    settings += ["search=random", "space.width=0.25", "finetune.optimizer.lr=0.02", "onnx=false"]
    assert run(["search", "data=own", source, *settings, *QUICK]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["metrics"][f"test_{metric}"] > good
    assert exported_to_onnx() < 1e-4
