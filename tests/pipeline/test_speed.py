import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nas.pipeline
import nas.problem
import nas.search.callbacks
from nas.errors import UserError


def test_what_was_measured_is_kept(
    nas_command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    measured: list[tuple[int, ...]] = []

    def fastest(model: torch.nn.Module, x: torch.Tensor) -> tuple[str, dict[str, float]]:
        measured.append(tuple(x.shape))
        return "channels_last", {"none": 0.2, "channels_last": 0.1}

    monkeypatch.setattr(nas.search.callbacks, "fastest", fastest)
    monkeypatch.setattr(nas.export.loading, "slim", lambda _: None)
    arguments = ["speed=auto", "onnx=false", "finetune.epochs=1", "data.batch_size=32", "name=a"]
    assert nas_command("search", *arguments) == 0
    assert measured == [(32, 1, 8, 8)]
    assert "speed=channels_last" in capsys.readouterr().out
    saved = torch.load("runs/a/last.ckpt", weights_only=True)
    assert {"used": "channels_last"} in saved["callbacks"].values()

    for name in ("search.json", "arch.json", "result.json"):
        (Path("runs/a") / name).unlink()
    assert nas_command("search", *arguments, "resume=true") == 0
    assert len(measured) == 1


@pytest.mark.parametrize(
    ("given", "macs", "limit", "threads"),
    [
        ("threads=0", None, None, 1),  # eight by eight pixels and four channels
        ("threads=0", 1.0, None, 4),
        ("threads=0", 1.0, "3", 3),
        ("threads=0", 1.0, "3,2", 3),
        ("threads=0", 1.0, "8", 4),
        ("threads=2", None, None, 2),
        ("threads=6", 1.0, "1", 6),
    ],
)
def test_threads_are_those_that_layers_keep_busy(
    nas_command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    given: str,
    macs: float | None,
    limit: str | None,
    threads: int,
) -> None:
    found: list[int] = []

    def run(*_: object) -> None:
        found.append(torch.get_num_threads())
        raise UserError("enough")

    monkeypatch.setattr(nas.pipeline, "Run", run)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    if macs:
        monkeypatch.setattr(nas.problem, "MACS_PER_THREAD", macs)
    assert nas_command("search", given) == 2
    assert found == [threads]
