"""A training is kept whatever becomes of its other files, and a network that cannot be trained is
refused before."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nas
from nas import pipeline
from nas.artifacts import RunDir
from nas.cli import run
from nas.diagnostics import Attempts, captured
from nas.discretization import discretize
from nas.errors import InterruptedRunError, UserError
from nas.problem import check_logits

Nas = Callable[..., int]

STEPS = {
    "measured_fields": OSError(28, "No space left on device"),
    "onnx": RuntimeError("Failed to export.\n\n" + 300 * "an error of an exporter\n"),
    "write_drawing": KeyError("blocks"),
    "log_graph": AssertionError(),
    "log_final": ValueError("a\nb"),
}


def broken(error: BaseException) -> Callable[..., None]:
    def step(*args: object, **kwargs: object) -> None:
        print("much of it")
        os.write(2, b"and more, from C++\n")
        raise error

    return step


@pytest.mark.parametrize("failing", [STEPS, {"summarize": MemoryError("no memory")}], ids=len)
def test_a_run_whose_every_further_step_fails_is_finished_and_can_be_loaded(
    failing: dict[str, Exception],
    nas_command: Nas,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, error in failing.items():
        monkeypatch.setattr(pipeline, name, broken(error))
    onnx = f"onnx={str('onnx' in failing).lower()}"
    assert nas_command("search", "search=random", "name=a", onnx) == 0
    captured = capfd.readouterr()
    said = captured.out + captured.err
    assert not any(text in said for text in ("Traceback", "much of it", "C++", "exporter\n"))

    result = RunDir(Path("runs/a")).read_result() or {}
    assert result["status"] == "finished"
    assert result.get("onnx_max_abs_diff") is None
    assert len(result["warnings"]) == len(failing)
    assert all("\n" not in line and len(line) < 300 for line in result["warnings"])
    assert all(f"{line}\n" in said for line in result["warnings"])
    assert not nas.load("runs/a").training
    assert run(["report", "runs"]) == 0
    if "onnx" in failing:
        reason = "RuntimeError: Failed to export. (all of it: runs/a/onnx_error.txt)"
        assert f"no ONNX file: {reason}" in result["warnings"]
        written = Path("runs/a/onnx_error.txt").read_text()
        for part in ("Traceback", "an error of an exporter", "much of it", "from C++"):
            assert part in written


class Killed(BaseException):
    """In place of a kill: nothing in the project catches it."""


def test_killed_while_it_is_exported_a_run_is_there_and_resume_makes_the_rest(
    nas_command: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "onnx", broken(Killed()))
    with pytest.raises(Killed):
        nas_command("search", "search=random", "name=a")
    before = RunDir(Path("runs/a")).read_result() or {}
    assert before["status"] == "finished"
    weights = nas.load("runs/a").state_dict()

    monkeypatch.setattr(pipeline, "onnx", lambda network, x, path: float(path.write_bytes(b"") + 1))
    assert nas_command("search", "search=random", "resume=runs/a") == 0

    after = RunDir(Path("runs/a")).read_result() or {}
    assert after["onnx_max_abs_diff"] == 1
    assert after["metrics"] == before["metrics"]
    assert Path("runs/a/network.svg").exists()
    for name, value in nas.load("runs/a").state_dict().items():
        assert torch.equal(value, weights[name])
    assert RunDir(Path("runs/a")).complete


def test_what_succeeds_is_said_and_leaves_no_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    attempts = Attempts(tmp_path)
    with attempts.attempt("step", "nothing"):
        raise RuntimeError("once")
    assert (tmp_path / "step_error.txt").exists()
    with attempts.attempt("step", "nothing"):
        print("a note")
    assert not (tmp_path / "step_error.txt").exists()
    assert attempts.warnings == [
        f"nothing: RuntimeError: once (all of it: {tmp_path / 'step_error.txt'})"
    ]
    assert "a note" in capfd.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InterruptedRunError("interrupted")])
def test_an_interruption_is_no_failure_of_a_step(tmp_path: Path, error: BaseException) -> None:
    attempts = Attempts(tmp_path)
    with pytest.raises(type(error)), attempts.attempt("step", "nothing"):
        raise error
    assert not attempts.warnings


def test_a_step_that_fails_on_a_full_disk_needs_no_disk_to_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.diagnostics.write_atomic", broken(OSError(28, "full")))
    attempts = Attempts(tmp_path)
    with attempts.attempt("step", "no file"):
        raise OSError(28, "No space left on device")
    assert attempts.warnings == ["no file: OSError: [Errno 28] No space left on device"]


def test_captured_takes_the_streams_and_gives_them_back(capfd: pytest.CaptureFixture[str]) -> None:
    with captured() as said:
        print("python")
        subprocess.run([sys.executable, "-c", "print('another process')"], check=True)
    assert sorted(said.getvalue().split()) == ["another", "process", "python"]
    print("after")
    assert capfd.readouterr().out == "after\n"


NETWORK = """
from collections import namedtuple
from torch import nn
import torch
from nas import ChoiceBlock
Out = namedtuple("Out", "logits")

class Net(nn.Module):
    def __init__(self, input_shape, num_outputs, outputs=None):
        super().__init__()
        self.outputs = outputs
        self.block = ChoiceBlock({"c3": nn.Conv2d(1, 8, 3, padding=1), "c1": nn.Conv2d(1, 8, 1)})
        self.head = nn.Linear(8, num_outputs + (outputs == "classes"))

    def forward(self, x):
        y = self.head(self.block(x).mean((2, 3)))
        return {
            "dict": lambda: {"logits": y},
            "named": lambda: Out(y),
            "tuple": lambda: (y, y),
            "list": lambda: [y],
            "nothing": lambda: None,
            "classes": lambda: y,
            "image": lambda: y[..., None, None],
            "batch": lambda: y.mean(0),
            "joined": lambda: y.flatten(),
            "labels": lambda: y.argmax(1),
            "counts": lambda: y.round().long(),
        }[self.outputs]()
"""


OUTPUTS = {
    "dict": "a dict for",
    "named": "a Out for",
    "tuple": "a tuple for",
    "list": "a list for",
    "nothing": "a NoneType for",
    "classes": "a tensor (2, 11) of torch.float32",
    "image": "a tensor (2, 10, 1, 1)",
    "batch": "a tensor (10,)",
    "joined": "a tensor (20,)",
    "labels": "a tensor (2,) of torch.int64",
    "counts": "a tensor (2, 10) of torch.int64",
}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_network_that_gives_no_logits_is_refused(outputs: str) -> None:
    known: dict[str, Any] = {}
    exec(NETWORK, known)
    with pytest.raises(UserError, match=re.escape(OUTPUTS[outputs])):
        check_logits(discretize(known["Net"]((1, 8, 8), 10, outputs)), torch.zeros(1, 1, 8, 8), 10)


@pytest.mark.parametrize("outputs", ["dict", "named"])
def test_it_is_refused_in_one_line_before_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outputs: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "giving", raising=False)
    Path("giving.py").write_text(NETWORK, encoding="utf-8")
    Path("c/space").mkdir(parents=True)
    Path("c/space/mine.yaml").write_text(
        f"_target_: giving.Net\n_partial_: true\noutputs: {outputs}\n", encoding="utf-8"
    )
    assert run(["search", "--config-dir", "c", "space=mine", "name=a", "threads=1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert OUTPUTS[outputs] in lines[0]
    assert "one tensor (2, 10) of floats" in lines[0]
    assert not Path("runs/a").exists()
