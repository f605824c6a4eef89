"""Every search and recipe on sampled paths, from the command line, for two steps; and resumed."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from nas.artifacts import RunDir
from nas.cli import run

Nas = Callable[..., int]

TWO_STEPS = [
    "search.epochs=2",
    "search.warmup_epochs=1",
    "+trainer.limit_train_batches=2",
    "+trainer.limit_val_batches=1",
    "finetune.epochs=1",
    "onnx=false",
    "threads=1",
    "trainer.enable_progress_bar=false",
    "name=a",
]
REWARD = (
    "{_target_: nas.search.reinforce.CostAwareAccuracy, exponent_feasible: -0.1, "
    "exponent_infeasible: -0.1}"
)
SEARCHES = {
    "proxyless": ["search=proxyless"],
    "proxyless, budget": [
        "search=proxyless",
        "objective=augmented_lagrangian",
        "budget.params=60%",
    ],
    "proxyless_full": ["search=proxyless_full", "objective=mul_log", "budget.params=60%"],
    "reinforce": ["search=reinforce", "objective=log"],
    "reinforce, reward": ["search=reinforce", f"search.reward={REWARD}", "cost=[params,macs]"],
    "reinforce, frozen": ["search=reinforce", "search.freeze_weights=true"],
    "gdas": ["relax=gdas"],
}


def finished(path: str) -> dict:
    result = RunDir(Path(path)).read_result()
    assert result is not None
    assert result["status"] == "finished"
    return result


@pytest.mark.parametrize("words", SEARCHES.values(), ids=list(SEARCHES))
def test_a_search_on_sampled_paths_runs(words: list[str], nas_command: Nas) -> None:
    assert nas_command("search", *TWO_STEPS, *words) == 0
    assert finished("runs/a")["arch"]


@pytest.mark.parametrize("recipe", ["proxyless_g", "proxyless_r", "gdas"])
def test_a_recipe_runs(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for c in range(2):
        Path(f"photos/class{c}").mkdir(parents=True)
        for i in range(20):
            Image.new("RGB", (16, 16), (200 * c + i, 40, 255 - 8 * i)).save(
                f"photos/class{c}/{i}.png"
            )
    small = ["data=image_folder", "data.root=photos", "data.size=16", "data.batch_size=4"]
    small += ["data.val_fraction=0.3", "space.width=0.1"]
    if recipe != "gdas":  # whose space is small; that of the others has 21 blocks
        stage = "{ops:[mb_k3_e3,mb_k5_e6,identity],channels:32,stride:2,repeat:2}"
        small += ["search.alpha_every=1", f"space.stages=[{stage}]"]
    assert run(["search", f"+experiment={recipe}", *small, *TWO_STEPS]) == 0
    assert finished("runs/a")["arch"]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("search.alpha_every=0", "at least 1"),
        ("search.alpha_every=1000", "alphas would never move"),
        ("search.samples=1", "at least 2"),
        ("search.reward=5", "search.reward"),
        ("search.exact=true", "unknown key 'search.exact'"),
    ],
)
def test_senseless_options_are_named(
    word: str, said: str, nas_command: Nas, capsys: pytest.CaptureFixture[str]
) -> None:
    assert nas_command("search", "search=reinforce", word) == 2
    assert said in capsys.readouterr().err
