"""A run that was killed, interrupted or went wrong, and how it goes on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from nas.artifacts import RunDir
from nas.cli import run
from nas.config.compose import compose_config
from nas.search.callbacks import LastCheckpoint
from nas.search.darts import BilevelSearch

Nas = Callable[..., int]

# Ends the process the hard way once the n-th checkpoint, over both stages, is on disk.
KILLED = """
import os, signal, sys
from nas.cli import run
from nas.search.callbacks import LastCheckpoint

wanted, words = int(sys.argv[1]), sys.argv[2:]
LastCheckpoint.seconds = 0.0
saves, save = [], LastCheckpoint.on_train_epoch_end

def save_and_die(self, *args):
    save(self, *args)
    saves.append(1)
    if len(saves) == wanted:
        os.kill(os.getpid(), signal.SIGKILL)

LastCheckpoint.on_train_epoch_end = save_and_die
sys.exit(run(words))
"""


class Crash(BaseException):
    """Ends a run as no error that is caught does."""


def crash(saves: int, command: list[str]) -> None:
    """Run `command` until the n-th checkpoint is on disk, in this process: that is much faster."""
    save, left = LastCheckpoint.on_train_epoch_end, [saves]

    def save_and_crash(self: LastCheckpoint, *arguments: Any) -> None:
        save(self, *arguments)
        left[0] -= 1
        if not left[0]:
            raise Crash

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LastCheckpoint, "on_train_epoch_end", save_and_crash)
        with pytest.raises(Crash):
            run(command)


def kill(saves: int, command: list[str]) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(saves), *command], check=False)
    assert killed.returncode == -9


@pytest.mark.parametrize(
    ("end", "saves", "relax", "speed"),
    [
        (kill, 1, "gumbel", "kernels"),
        (crash, 2, "hard_gumbel", "none"),
        (crash, 4, "softmax", "channels_last finetune.teacher=largest"),
    ],
    ids=["kernels", "none", "channels_last"],
)
def test_killed_run_ends_as_an_unbroken_one(
    end: Callable[[int, list[str]], None],
    saves: int,
    relax: str,
    speed: str,
    nas_command: Nas,
    small: list[str],
) -> None:
    words = f"relax={relax} speed={speed} onnx=false search.epochs=3"
    arguments = words.split()
    assert nas_command("search", *arguments, "out=whole", "name=a") == 0
    end(saves, ["search", *small, *arguments, "out=broken", "name=a"])
    assert not Path("broken/a/result.json").exists()

    assert nas_command("search", *arguments, "out=broken", "resume=true") == 0

    assert [path.name for path in Path("broken").iterdir()] == ["a"]
    states = [torch.load(f"{out}/a/network.pt", weights_only=True) for out in ("whole", "broken")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    whole, resumed = (RunDir(Path(out) / "a").read_result() for out in ("whole", "broken"))
    assert whole is not None
    assert resumed is not None
    assert whole["arch"] == resumed["arch"]
    assert whole["metrics"] == resumed["metrics"]


def test_a_finished_run_is_not_repeated(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas_command("search", "search=random", "onnx=false", "name=a") == 0
    written = Path("runs/a/result.json").read_text()
    assert nas_command("search", "search=random", "onnx=false", "resume=true") == 0
    assert "already finished: runs/a" in capsys.readouterr().out
    assert Path("runs/a/result.json").read_text() == written
    assert nas_command("search", "search=random", "onnx=false", "seed=1", "name=b") == 0


def test_interrupt_says_how_to_go_on_and_the_folder_does(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = BilevelSearch.training_step

    def interrupted(self: BilevelSearch, batch: object, batch_idx: int) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        step(self, batch, batch_idx)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(BilevelSearch, "training_step", interrupted)
        assert nas_command("search", "onnx=false", "name=a") == 130
    said = capsys.readouterr().err.strip().splitlines()
    assert "interrupted" in said[-1]
    assert "last.ckpt" in said[-1]
    assert "nas search resume=runs/a" in said[-1]

    folder = Path("runs/a")
    asked = json.loads((folder / "asked.json").read_text())
    assert run(["search", f"resume={folder}"]) == 0
    result = RunDir(folder).read_result()
    assert result is not None
    # The words of the first command, not those of the one that went on.
    assert {key: result[key] for key in asked} == asked
    assert result["overrides"]["data.limit"] == 400
    assert result["search"] == "bilevel"
    assert result["command"].startswith("nas search ")
    assert result["command"].endswith("onnx=false name=a")


def test_words_that_are_damaged_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a/config.yaml").write_text(OmegaConf.to_yaml(compose_config(["name=a"]), resolve=True))
    for text, said in (("{", "cannot read a/asked.json"), ("{}", "a/asked.json: seed: ")):
        Path("a/asked.json").write_text(text)
        assert run(["search", "resume=a"]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path("a").iterdir()) == ["asked.json", "config.yaml"]


def test_nan_loss_ends_with_one_line(nas_command: Nas, capsys: pytest.CaptureFixture[str]) -> None:
    code = nas_command("search", "search.weight_optimizer.lr=1e30", "search.clip=0", "onnx=false")
    assert code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if line.startswith("nas: ")]) == 1
    assert "nan" in said[-1] or "inf" in said[-1]
    assert "learning rate" in said[-1]


def test_a_saved_config_may_not_name_foreign_code(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("evil").mkdir()
    Path("evil/config.yaml").write_text("space: {_target_: os.system, command: touch hacked}\n")
    assert run(["search", "resume=evil"]) == 2
    assert "os.system" in capsys.readouterr().err
    assert not Path("hacked").exists()
