from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nas.search.callbacks


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
