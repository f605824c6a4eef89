"""Faults of the machine: kills between any two writes, a full disk, signals, two at once."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nas.artifacts.files
from nas.artifacts import RunDir
from nas.cli import run
from nas.latency.measure import _Group
from nas.search.darts import BilevelSearch
from nas.train import Training

Nas = Callable[..., int]
SHORT = ["onnx=false", "search.epochs=1", "search.warmup_epochs=0", "finetune.epochs=1", "name=a"]
RANDOM = ["search=random", "onnx=false", "finetune.epochs=1"]


class KilledError(BaseException):
    """Passes through whatever handles errors, as the death of the process would."""


@contextmanager
def killed_after(file: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """As soon as `file` is in its place; gives the names of all files written whole."""
    written: list[str] = []
    replace = os.replace

    def counted(source: Any, target: Any) -> None:
        replace(source, target)
        written.append(Path(target).name)
        if written[-1] == file:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(nas.artifacts.files.os, "replace", counted)
        yield written


@contextmanager
def full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A disk that takes so many files, and then none; gives a list as long as there were tries."""
    tries: list[int] = []
    sync = os.fsync

    def limited(descriptor: int) -> None:
        tries.append(descriptor)
        if len(tries) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(nas.artifacts.files.os, "fsync", limited)
        yield tries


def figures(folder: str) -> dict[str, Any]:
    """What result.json says, but for times and for where it was started."""
    result = json.loads((Path(folder) / "a" / "result.json").read_text())
    return {
        k: v for k, v in result.items() if k not in ("seconds", "command", "overrides", "search")
    }


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("nas: ")]
    return line


FILES = ("last.ckpt", "arch.json", "finetune.ckpt", "network.pt", "network.svg")


def test_every_figure_survives_a_kill_between_two_writes(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after("none", monkeypatch) as whole:
        assert nas_command("search", *SHORT, "out=whole") == 0
    expected = figures("whole")
    assert "supernet_val_acc" in expected["metrics"]
    assert set(FILES) <= set(whole)

    for file in FILES:
        with killed_after(file, monkeypatch), pytest.raises(KilledError):
            nas_command("search", *SHORT, f"out={file}")
        assert nas_command("search", *SHORT, f"out={file}") == 0
        assert figures(file) == expected, file


def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with full_after(1000, monkeypatch) as tries:
        assert nas_command("search", *SHORT, "out=whole") == 0
    last = len(tries) - 2
    # config.yaml, asked.json, last.ckpt, search.json, result.json; then slim.
    for writes in (0, 2, 3, last):
        with full_after(writes, monkeypatch):
            assert nas_command("search", *SHORT, f"out={writes}") == 1
        line = said(capsys)
        assert "disk is full" in line
        assert (f"resume={writes}/a" in line) == (writes > 2)
        assert not list(Path().rglob(".*.nas-*"))
        assert nas_command("search", *SHORT, f"out={writes}") == 0
        capsys.readouterr()
        assert figures(str(writes)) == figures("whole")


def test_no_verb_ends_in_a_traceback_on_a_full_disk(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas_command("search", *SHORT) == 0
    export = ["export", "runs/a", "format=state_dict,python", "latency=false"]
    verbs = (["report", "runs"], ["extract", "runs/a"], ["draw", "runs/a"], export)
    capsys.readouterr()
    for words in verbs:
        with full_after(0, monkeypatch):
            assert run(list(words)) == 1
        assert "disk is full" in said(capsys), words
    for writes in range(1, 5):
        with full_after(writes, monkeypatch):
            assert run(export) == 1
        assert "disk is full" in said(capsys)
        assert not list(Path("runs/a/export").iterdir())  # all of it, or nothing
    for words in verbs:
        assert run(list(words)) == 0


@pytest.mark.parametrize(
    ("number", "phase"),
    [
        (signal.SIGTERM, "data"),
        (signal.SIGUSR1, "search"),
        (signal.SIGTERM, "finetune"),
        (signal.SIGUSR1, "validate"),
    ],
)
def test_a_schedulers_signal_ends_a_run_as_ctrl_c_does(
    number: int, phase: str, nas_command: Nas, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from nas.data import DataModule

    owner, name = {
        "data": (DataModule, "setup"),
        "search": (BilevelSearch, "training_step"),
        "finetune": (Training, "training_step"),
        "validate": (Training, "validation_step"),
    }[phase]
    step = getattr(owner, name)

    def signalled(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # schedulers repeat themselves
        return step(*arguments, **options)

    threads = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, signalled)
        assert nas_command("search", *SHORT) == 130
    assert threading.active_count() == threads  # TensorBoard's
    assert "interrupted" in said(capsys)
    assert signal.getsignal(number) == signal.SIG_DFL
    assert nas_command("search", *SHORT) == 0
    assert RunDir(Path("runs/a")).finished


def test_a_signal_ends_a_whole_sweep(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Training, "training_step", signalled)
    assert nas_command("search", "-m", *RANDOM, "seed=0,1", "name=a") == 130
    assert "interrupted" in said(capsys)
    assert not Path("runs/a/1").exists()


def test_a_profile_goes_on_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["profile", "space.width=0.25", "networks=2", "calibrate=1", "seconds=0.1", "calls=4"]
    words.append("out=p.json")
    measured = _Group._round

    def signalled(*arguments: Any) -> None:
        measured(*arguments)
        os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patched:
        patched.setattr(_Group, "_round", signalled)
        assert run(words) == 130
    assert "the same command goes on" in said(capsys)
    before = Path("p.jsonl").read_text()
    assert run(words) == 0
    assert Path("p.jsonl").read_text().startswith(before)


def test_a_folder_is_one_process_and_one_run(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunDir(Path("runs/a"))
    folder.create()
    with folder.claimed():
        assert nas_command("search", *RANDOM, "name=a") == 2
        assert f"process {os.getpid()}" in said(capsys)
    assert [path.name for path in folder.path.iterdir()] == []  # nor a record of the failure

    assert nas_command("search", *RANDOM, "name=a") == 0
    written = folder.result.read_text()
    capsys.readouterr()
    assert nas_command("search", *RANDOM, "name=a", "seed=1") == 2
    assert "other settings" in said(capsys)
    assert folder.result.read_text() == written


@pytest.mark.slow
def test_two_extractions_at_once_give_the_networks_of_one(nas_command: Nas) -> None:
    assert nas_command("search", *SHORT) == 0
    command = [sys.executable, "-m", "nas.cli", "extract", "runs/a", "front=2", "fine_tune=true"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    texts = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    found = list(Path("runs/a/front").iterdir())
    assert found
    assert all(RunDir(path).finished and not (path / ".lock").exists() for path in found)
    assert sum(text.count("already there") for text in texts) == len(found)  # for the other one


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_trials_leave_no_files_and_threads_open(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    monkeypatch.chdir(tmp_path)
    kept = [word for word in small if not word.startswith("search")]
    words = ["search", *kept, "search=random_search", "search.evaluate.epochs=1", *RANDOM[1:]]
    assert run([*words, "search.trials=1", "name=warm"]) == 0
    seen: list[tuple[int, int]] = []
    step = Training.on_train_epoch_start

    def counted(self: Training) -> None:
        seen.append(held())
        step(self)

    monkeypatch.setattr(Training, "on_train_epoch_start", counted)
    assert run([*words, "search.trials=8", "name=many"]) == 0
    assert len(seen) == 9  # the trials, and the network chosen
    assert seen[0] == seen[7]
