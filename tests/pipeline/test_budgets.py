"""A budget on the command line: a network inside it, or a clear no before training."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

import nas
from nas.artifacts import RunDir, find_runs
from nas.cli import run
from nas.data import digits
from nas.recalibrate import recalibrate

from .conftest import SEARCHED, SMALL

Nas = Callable[..., int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search, and a random network without a checkpoint, which several tests extract from."""
    folder = tmp_path_factory.mktemp("made")
    words = [*SMALL, "onnx=false"]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert run(["search", *words, *SEARCHED, "name=searched"]) == 0
        assert run(["search", *words, "search=random", "name=random"]) == 0
    return folder / "runs"


def copied(run_dir: Path) -> None:
    """To ``runs/a`` in the working folder."""
    shutil.copytree(run_dir, "runs/a")


def result_of(folder: str | Path) -> dict:
    result = RunDir(Path(folder)).read_result()
    assert result is not None
    return result


def test_the_network_is_inside_every_budget_and_counted_exactly(
    nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        nas_command("search", "budget.params=30%", "budget.macs=20k", "onnx=false", "name=a") == 0
    )
    result = result_of("runs/a")
    assert result["budgets"] == {"params": 0.3 * result["largest"]["params"], "macs": 20_000}
    assert result["costs"]["macs"] <= 20_000
    network = nas.load("runs/a")
    assert sum(p.numel() for p in network.parameters()) == result["costs"]["params"]
    assert result["costs"]["params"] <= result["budgets"]["params"]
    assert "% of the budget 20,000" in capsys.readouterr().out


def test_a_random_network_is_inside_too(nas_command: Nas) -> None:
    for seed in range(3):
        assert (
            nas_command(
                "search",
                "search=random",
                "budget.params=20%",
                "onnx=false",
                f"seed={seed}",
                f"name={seed}",
            )
            == 0
        )
    found = [result_of(f"runs/{seed}") for seed in range(3)]
    assert all(r["costs"]["params"] <= r["budgets"]["params"] for r in found)
    assert len({r["arch_hash"] for r in found}) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["budget.params=100"], "no network of this space has less than"),
        (["budget.params=-1"], "above 0"),
        (["budget.params=12q"], "50k"),
        (["budget.parms=12k"], "Did you mean 'params'"),
        (["budget.params=7%", "budget.macs=100"], "budget.macs=100 cannot be met"),
    ],
)
def test_a_senseless_budget_ends_before_training(
    words: list[str], said: str, nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas_command("search", "name=a", *words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("nas: error: ")
    assert said in line
    assert not Path("runs/a/last.ckpt").exists()


@pytest.mark.usefixtures("nas_command")
def test_other_networks_come_out_of_one_search(made: Path) -> None:
    copied(made / "searched")
    whole = result_of("runs/a")
    bound = whole["least"]["params"] * 1.2
    assert run(["extract", "runs/a", f"budget.params={bound}"]) == 0
    (inside,) = find_runs(Path("runs/a/front"))
    result = result_of(inside.path)
    assert result["costs"]["params"] <= bound
    assert not result["trained"]
    network = nas.load(inside.path)
    assert sum(p.numel() for p in network.parameters()) == result["costs"]["params"]

    written = inside.result.read_text()
    assert run(["extract", "runs/a", f"budget.params={bound}"]) == 0
    assert inside.result.read_text() == written
    assert run(["extract", "runs/a", f"budget.params={bound}", "fine_tune=true"]) == 0
    assert result_of(inside.path)["trained"]

    assert run(["extract", "runs/a", "--front", "4", "out=front", "onnx=false"]) == 0
    sizes = [result_of(r.path)["costs"]["params"] for r in find_runs(Path("front"))]
    assert len(set(sizes)) == len(sizes) > 1
    assert min(sizes) == whole["least"]["params"]


@pytest.mark.usefixtures("nas_command")
def test_an_inherited_network_gets_statistics_of_its_own(made: Path) -> None:
    copied(made / "searched")
    assert run(["extract", "runs/a"]) == 0
    (inside,) = find_runs(Path("runs/a/front"))
    network = nas.load(inside.path)
    again = copy.deepcopy(network)
    recalibrate(again, (x for x, _ in digits(limit=400).calibration_loader()))
    assert_close(again.state_dict(), network.state_dict())


@pytest.mark.usefixtures("nas_command")
def test_a_supernet_is_kept_until_it_is_not_asked_for(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(made / "searched")
    saved = torch.load("runs/a/last.ckpt", weights_only=True)
    assert saved.keys() == {"epoch", "global_step", "state_dict"}  # no optimizer's state
    again = ["search", *SMALL, *SEARCHED, "onnx=false", "keep=network", "resume=true"]
    assert run(again) == 0
    assert "already finished: runs/a" in capsys.readouterr().out
    assert not Path("runs/a/last.ckpt").exists()
    assert run(["extract", "runs/a"]) == 2
    assert "keep=network" in capsys.readouterr().err.strip().splitlines()[-1]
    finetune = ["finetune", "arch=runs/a/arch.json", "checkpoint=runs/a/last.ckpt", *SMALL]
    assert run(finetune) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "keep=supernet" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "is not there"),
        (["runs/a", "budget.params=1"], "no network of this space has less than"),
        (["runs/a", "budget.parms=1k"], "Did you mean 'params'"),
        (["runs/a", "front=0.5"], "front"),
        (["runs/a", "seach.epochs=1"], "unknown key"),
        (["runs/a"], "last.ckpt"),
    ],
)
@pytest.mark.usefixtures("nas_command")
def test_what_cannot_be_extracted(
    words: list[str], said: str, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(made / "random")
    if len(words) > 1:
        Path("runs/a/last.ckpt").touch()
    capsys.readouterr()
    assert run(["extract", *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


@pytest.mark.usefixtures("nas_command")
def test_foreign_code_runs_only_when_trusted(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(made / "random")
    config = Path("runs/a/config.yaml")
    config.write_text(config.read_text().replace("nas.spaces.", "elsewhere.spaces.", 1))
    assert run(["extract", "runs/a"]) == 2
    assert "elsewhere.spaces" in capsys.readouterr().err
    assert json.loads(Path("runs/a/result.json").read_text())["status"] == "finished"
