"""Elastic spaces through the command line: a gradient search inside a budget, and Once-for-All."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nas
from nas.arch import Arch
from nas.artifacts import RunDir
from nas.cli import run

Nas = Callable[..., int]

STAGES = [
    "{ops: [elastic_k5_e4], channels: [8, 16], depth: [1, 2]}",
    "{ops: [elastic_k3_e4, identity], channels: [8, 16], repeat: 2}",
]
TINY = [
    "space=ofa_mobilenet_small",
    f"space.stages=[{', '.join(STAGES)}]",
    "space.head.features=32",
    "space.stem.channels=8",
    "space.divisor=4",
    "finetune.epochs=1",
    "onnx=false",
    "name=a",
]


def check(folder: Path) -> dict[str, object]:
    """The network of a run is the one its result describes, in weights and in parameters."""
    result = RunDir(folder).read_result()
    assert result is not None
    network = nas.load(folder)
    assert result["costs"]["params"] == sum(p.numel() for p in network.parameters())
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    return result


def test_a_gradient_search_inside_a_budget(nas_command: Nas) -> None:
    assert nas_command("search", *TINY, "budget.macs=50%", "budget.peak_memory=90%") == 0
    result = check(Path("runs/a"))
    arch = Arch.load(Path("runs/a/arch.json"))
    assert arch.choices["blocks.s0.depth"] in (1, 2)
    assert result["costs"]["macs"] <= result["budgets"]["macs"]


def test_once_for_all_and_a_phase_it_does_not_know(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = "{kernel: all, depth: 2, expand: 2, channels: all, ops: all}"
    phases = f"[{{epochs: 1}}, {{epochs: 1, open: {opened}, subnets: 2}}]"
    words = ["search=once_for_all", f"search.phases={phases}"]
    words += ["search.ranking.trials=3", "data.limit=300", "space.width=0.5", "threads=1"]
    assert run(["search", *TINY, *words, "trainer.enable_progress_bar=false"]) == 0
    check(Path("runs/a"))
    trials = (Path("runs/a") / "trials.jsonl").read_text().splitlines()
    assert len(trials) >= 3
    code = run(
        ["search", *TINY, *words[:1], "search.phases=[{epochs: 1, open: {depht: 2}}]", "name=b"]
    )
    assert code == 2
    assert "did you mean 'depth'" in capsys.readouterr().err
