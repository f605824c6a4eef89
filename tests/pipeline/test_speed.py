import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

import nas.pipeline
import nas.problem
import nas.search.callbacks
from nas.cli import run
from nas.errors import UserError

from .conftest import SMALL


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

    def counted(*_: object) -> None:
        found.append(torch.get_num_threads())
        raise UserError("enough")

    monkeypatch.setattr(nas.pipeline, "Run", counted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if limit:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    if macs:
        monkeypatch.setattr(nas.problem, "MACS_PER_THREAD", macs)
    assert nas_command("search", given) == 2
    assert found == [threads]


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ("bilevel", ["search.epochs=2", "search.warmup_epochs=1", "speed=auto"]),
        ("proxyless", ["search.epochs=2", "search.warmup_epochs=1"]),
        ("spos", ["search.epochs=1", "search.ranking.trials=3"]),
        ("short_trainings", ["search.trials=2", "search.evaluate.epochs=1"]),
    ],
)
def test_half_precision_leaves_alphas_and_weights_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, search: str, words: list[str]
) -> None:
    found, tried = set[torch.dtype](), list[bool]()
    forward = torch.nn.Conv2d.forward

    def watched(layer: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        y = forward(layer, x)
        if layer.training and torch.is_grad_enabled():
            found.add(y.dtype)
        return y

    def fastest(*_: object) -> tuple[str, dict[str, float]]:
        tried.append(torch.is_autocast_enabled("cpu"))
        return "channels_last", {"none": 0.2, "channels_last": 0.1}

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", watched)
    monkeypatch.setattr(nas.search.callbacks, "fastest", fastest)
    half = ["trainer.precision=bf16-mixed", "onnx=false", "name=a"]
    assert run(["search", *SMALL, f"search={search}", *half, *words]) == 0
    assert found == {torch.bfloat16}
    assert tried == [True] * (search == "bilevel")
    saved = [torch.load("runs/a/network.pt", weights_only=True)]
    if (checkpoint := Path("runs/a/last.ckpt")).exists():
        saved.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    tensors = [one for one in tree_leaves(saved) if isinstance(one, torch.Tensor)]
    kinds = {one.dtype for one in tensors if one.is_floating_point()}
    assert kinds == {torch.float32}
