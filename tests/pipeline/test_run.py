"""The main job through the command line: what a run leaves, and that it can be read back."""

import csv
import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.data import digits
from nas.diagnostics import stop_collecting
from nas.estimate import _ranking
from nas.progress import Part

Nas = Callable[..., int]


def test_search_leaves_a_network_that_is_what_the_result_says(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_collecting()  # as the command does
    assert nas_command("search", "name=a", "relax=hard_gumbel") == 0
    assert gc.isenabled()
    said = capsys.readouterr().out
    assert "files: runs/a" in said
    assert "nas report runs" in said
    folder = RunDir(Path("runs/a"))
    result = folder.read_result()
    assert result is not None
    assert (result["status"], result["search"]) == ("finished", "bilevel")

    network = nas.load("runs/a")

    assert not network.training
    assert not any(nas.decisions(network))
    assert result["costs"]["params"] == sum(p.numel() for p in network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *result["input"]["shape"]))
    assert result["costs"]["macs"] == counter.get_total_flops() // 2
    assert result["least"]["params"] <= result["costs"]["params"] <= result["largest"]["params"]
    data = digits(seed=0, limit=400)
    right = [(network(x).argmax(-1) == y) for x, y in data.test_dataloader()]
    assert float(torch.cat(right).float().mean()) == pytest.approx(result["metrics"]["test_acc"])
    assert result["onnx_max_abs_diff"] <= 1e-4
    assert folder.onnx.exists()
    assert nas.Arch.load(folder.arch).choices == result["arch"]
    assert has_graph(folder)
    assert f"{result['costs']['params']:,}" in folder.drawing.read_text()
    parts = list(csv.DictReader((folder.path / "network.csv").open()))
    assert sum(float(part["params"]) for part in parts) == result["costs"]["params"]
    folder.drawing.unlink()
    assert run(["draw", "runs/a"]) == 0
    assert folder.drawing.exists()
    assert "blocks.s0b0" in capsys.readouterr().out
    assert not folder.finetune_checkpoint.exists()


def test_the_data_and_each_step_are_said_where_the_output_is_redirected(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search=spos", "search.epochs=2", "search.ranking.trials=3", "front=2", "onnx=false"]
    assert nas_command("search", "name=a", "trainer.enable_progress_bar=true", *words) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "data digits: 669 of 1,797 images of 1 x 8 x 8, 10 classes of 65 to 68"
    assert said[1] == "  300 to train, 100 to validate, 269 to test"
    steps = [line.partition(";")[0] for line in said if line.startswith(("training", "ranking"))]
    assert steps == [
        *(f"training supernet, epoch {number} of 2" for number in (1, 2)),
        *(f"ranking, network {number} of 3" for number in (1, 2, 3)),
        *(f"training network {n} of 2, epoch {number} of 2" for n in (1, 2) for number in (1, 2)),
    ]
    assert [line.split(" (")[0] for line in said if line.startswith("network ")][:2] == [
        "network 1 of 2",
        "network 2 of 2",
    ]
    assert not [line for line in said if "━" in line]


def test_export_writes_the_onnx_file_again(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas_command("search", "name=a", "onnx=false", "search=random") == 0
    assert not Path("runs/a/network.onnx").exists()
    assert run(["export", "runs/a", "latency=false"]) == 0
    assert Path("runs/a/export/network.onnx").exists()
    assert "max |difference|" in capsys.readouterr().out


def has_graph(folder: RunDir) -> bool:
    """Whether its event files hold the operations of a network."""
    return any(b"aten::" in events.read_bytes() for events in folder.path.rglob("events*"))


def test_sweep_goes_on_after_a_failing_job_and_reports(nas_command: Nas) -> None:
    code = nas_command("search", "-m", "name=s", "objective.strength=0.1,-1,3")
    assert code == 2
    assert Path("runs/s/0/network.pt").exists()
    job = RunDir(Path("runs/s/0"))  # few are kept
    assert not job.onnx.exists()
    assert not job.drawing.exists()
    assert not has_graph(job)
    assert run(["draw", "runs/s/0"]) == 0
    assert job.drawing.exists()
    results = {path.name: RunDir(path).read_result() for path in Path("runs/s").iterdir()}
    results = {name: result for name, result in results.items() if result}
    assert [results[k]["status"] for k in "012"] == ["finished", "failed", "finished"]
    assert "-1" in results["1"]["message"]

    assert run(["report", "runs/s"]) == 0
    assert {"report.csv", "front.png", "report.html"} <= {p.name for p in Path("runs/s").iterdir()}


def test_finetune_trains_a_given_architecture_from_a_searches_weights(nas_command: Nas) -> None:
    assert nas_command("search", "name=a", "onnx=false") == 0
    wanted = dict.fromkeys(json.loads(Path("runs/a/arch.json").read_text())["choices"], "sep_k3")
    nas.Arch("chain_tiny", wanted).save(Path("mine.json"))
    given = ["name=b", "arch=mine.json", "checkpoint=runs/a/last.ckpt", "onnx=false"]
    assert nas_command("finetune", *given) == 0
    result = RunDir(Path("runs/b")).read_result()
    assert result is not None
    assert result["arch"] == wanted
    assert result["costs"]["params"] == result["least"]["params"]


MINE = """
from torch import nn
from nas import ChoiceBlock, build_op

class Mine(nn.Module):
    def __init__(self, input_shape, num_outputs, channels=4):
        super().__init__()
        c = input_shape[0]
        self.name = "mine"
        self.first = ChoiceBlock([nn.Conv2d(c, channels, 3, padding=1), nn.Conv2d(c, channels, 1)])
        self.second = ChoiceBlock({n: build_op(n, channels, channels) for n in ("sep_k5", "zero")})
        self.last = nn.Linear(channels, num_outputs)

    def forward(self, x):
        x = self.second(self.first(x))
        return self.last(x.mean((2, 3)))
"""


def test_a_space_of_the_users_own_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nas_command: Nas
) -> None:
    Path("mine.py").write_text(MINE, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # a page of docs/ has one, too
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("confs/space").mkdir(parents=True)
    Path("confs/space/mine.yaml").write_text(
        "_target_: mine.Mine\n_partial_: true\nchannels: 6\nwidth: 1\n", encoding="utf-8"
    )
    arguments = [f"--config-dir={tmp_path / 'confs'}", "space=mine", "name=a"]
    assert nas_command("search", *arguments) == 2  # Mine takes no width: named before training

    Path("confs/space/mine.yaml").write_text(
        "_target_: mine.Mine\n_partial_: true\nchannels: 6\n", encoding="utf-8"
    )
    small = [
        "search=bilevel",
        "data.limit=400",
        "search.epochs=2",
        "search.warmup_epochs=1",
        "finetune.epochs=1",
    ]
    assert run(["search", *small, "threads=1", *arguments]) == 0
    from mine import Mine  # type: ignore[import-not-found]

    with pytest.raises(nas.UserError, match="not run from a file"):
        nas.load("runs/a")
    assert not any(nas.decisions(nas.load("runs/a", space=lambda s, n: Mine(s, n, channels=6))))


def test_own_images_and_a_space_in_yaml(tmp_path: Path, nas_command: Nas) -> None:
    for c in range(2):
        Path(f"photos/class{c}").mkdir(parents=True)
        for i in range(30):
            colour = (200 * c + i, 40, 255 - 8 * i)
            Image.new("RGB", (20 + i, 30), colour).save(f"photos/class{c}/{i}.png")
    Path("photos/class0/broken.png").write_bytes(b"no image")
    Path("confs/space").mkdir(parents=True)
    Path("confs/space/tiny.yaml").write_text(
        "_target_: nas.spaces.staged.StagedSpace\n_partial_: true\nname: tiny\nwidth: 1.0\n"
        "stages:\n  - {ops: [conv_k3, sep_k3, mb_k3_e2_se], channels: 8, stride: 2}\n"
        "  - {ops: [identity, sep_k3], channels: 8, repeat: 2}\n",
        encoding="utf-8",
    )
    code = nas_command(
        "search",
        f"--config-dir={tmp_path / 'confs'}",
        "space=tiny",
        "data=image_folder",
        "data.root=photos",
        "data.size=16",
        "data.batch_size=4",
        "name=a",
    )
    assert code == 0
    result = RunDir(Path("runs/a")).read_result()
    assert result is not None
    assert result["input"]["shape"] == [3, 16, 16]
    assert result["input"]["classes"] == ["class0", "class1"]
    nas.load("runs/a")


def test_describe_counts_the_space(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "space=chain_tiny", "trial=false"]) == 0
    said = capsys.readouterr().out
    assert "10 classes of 174 to 183" in said
    assert "243 networks" in said
    assert "blocks.s0b0" in said


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (
            ["search=spos", "search.epochs=2", "search.ranking.trials=3"],
            {
                "training of the supernet": r"2 epochs of 4 steps of \d+ ms",
                "ranking": r"3 networks of \d+ ms",
                "training of networks": r"1 x [\d.]+ s, and [\d.]+ s for tests and files",
            },
        ),
        (
            ["search=bilevel", "search.epochs=4", "search.warmup_epochs=1"],
            {"training of the supernet": r"4 epochs of \d steps of \d+ ms"},
        ),
    ],
)
def test_describe_says_how_long_a_search_takes(
    words: list[str],
    parts: dict[str, str],
    nas_command: Nas,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.estimate.ENOUGH", 0.0)
    assert nas_command("describe", "onnx=false", *words) == 0
    said = capsys.readouterr().out
    for name, about in parts.items():
        assert re.search(rf"^  {name} +\d+ (s|min) +{about}", said, re.MULTILINE), said
    assert re.search(r"^  about \d+ (s|min) in all, if", said, re.MULTILINE)
    assert not list(Path("runs").rglob("*"))


def test_short_trainings_are_expected_to_take_their_share_of_a_whole_one() -> None:
    search, problem = (
        SimpleNamespace(trains=True, workers=2),
        SimpleNamespace(work=lambda: Part(1, 60)),
    )
    found = _ranking(search, cast(Any, problem), Part(28, 15), training=40.0)
    assert (found.seconds, found.about) == (140.0, "28 networks, each trained for 10.0 s")
