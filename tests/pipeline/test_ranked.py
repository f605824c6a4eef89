"""Searches that score networks one by one, and one-shot searches, through the command line."""

import csv
import json
import shutil
from collections.abc import Callable
from math import isfinite
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.config.saved import saved_config
from nas.export import load_supernet
from nas.pareto import non_dominated
from nas.problem import SearchProblem
from nas.search.evaluate import WeightSharing
from nas.search.trials import TrialLog
from nas.verbs import components_of

Nas = Callable[..., int]

SMALL = ["space.width=0.25", "data.limit=280", "finetune.epochs=1", "threads=1", "onnx=false"]
QUIET = "trainer.enable_progress_bar=false"
ONE_SHOT = [
    "search.epochs=1",
    "search.ranking.trials=4",
    "search.ranking.evaluate.calibration=64",
    "search.ranking.evaluate.raw=true",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def search(*arguments: str) -> int:
    return run(["search", *SMALL, QUIET, "name=a", *arguments])


@pytest.fixture(scope="module")
def spos_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished one-shot search, which several tests look at."""
    folder = tmp_path_factory.mktemp("spos")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert search("search=spos", *ONE_SHOT) == 0
    return folder / "runs"


@pytest.fixture
def spos(spos_run: Path, _elsewhere: None) -> None:
    """A copy of that search in the folder of the test."""
    shutil.copytree(spos_run, "runs")


def trials() -> TrialLog:
    return TrialLog(RunDir(Path("runs/a")).trials)


def test_trained_one_by_one_the_best_is_taken_and_trains_as_it_was_scored() -> None:
    assert search("search=random_search", "search.trials=3", "weights=fresh") == 0
    result = RunDir(Path("runs/a")).read_result()
    assert result is not None
    known = trials().known
    assert len(known) == 3
    best = max(known.values(), key=lambda trial: trial.metrics["val_acc"])
    assert result["metrics"]["val_acc"] == best.metrics["val_acc"]
    chosen = known[result["arch_hash"]]
    assert chosen.metrics["val_acc"] == best.metrics["val_acc"]
    assert result["metrics"]["val_loss"] == chosen.metrics["val_loss"]  # the same training
    assert result["costs"]["params"] == chosen.costs["params"]
    assert "test_acc" not in chosen.metrics
    assert result["seconds"]["search_cpu"] > 0


@pytest.mark.parametrize("name", ["all_paths", "spos", "fairnas", "sandwich"])
def test_a_one_shot_search_ends_with_a_network_and_a_front(
    name: str, request: pytest.FixtureRequest
) -> None:
    if name == "spos":
        request.getfixturevalue("spos")
    else:
        assert search(f"search={name}", *ONE_SHOT) == 0
    result = RunDir(Path("runs/a")).read_result()
    assert result is not None
    known = trials().known
    assert len(known) == 4
    metric = "val_acc" if name == "fairnas" else "val_loss"
    best = min(known.values(), key=lambda one: (one.value(metric), one.costs["params"]))
    assert result["arch_hash"] == best.arch.hash
    assert {"raw_val_loss", "val_acc"} <= set(next(iter(known.values())).metrics)
    with Path("runs/a/trials.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    front = {row["hash"] for row in rows if row["front"] == "1"}
    least = min(known, key=lambda key: known[key].costs["params"])
    assert {result["arch_hash"], least} <= front
    nas.load("runs/a")


@pytest.mark.parametrize(
    ("kind", "words", "metric"),
    [
        ("bilevel", ["search.epochs=3", "search.warmup_epochs=1"], "log_probability"),
        ("random", [], "log_probability"),
        ("spos", [*ONE_SHOT, "search.ranking.metric=val_acc"], "val_acc"),
        ("random_search", ["search.trials=3"], "val_acc"),
    ],
)
def test_every_search_leaves_a_front_of_scored_networks(
    kind: str, words: list[str], metric: str
) -> None:
    assert search(f"search={kind}", *words) == 0
    folder = RunDir(Path("runs/a"))
    result, left = folder.read_result(), json.loads((folder.path / "search.json").read_text())
    assert result is not None
    assert left["metric"] == metric
    points = [(-one["score"], one["costs"][left["cost"]]) for one in left["front"]]
    assert points
    assert all(isfinite(score) for score, _ in points)
    assert non_dominated(points).all()
    assert left["selected"]["arch_hash"] == result["arch_hash"]
    assert left["selected"]["score"] == max(one["score"] for one in left["front"])
    assert left["selected"]["costs"]["params"] == result["costs"]["params"]


@pytest.mark.usefixtures("spos")
def test_networks_are_extracted_by_their_rank_inside_a_budget(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(trials().known)
    assert run(["extract", "runs/a", "--front", "2", QUIET]) == 0
    taken = {path.name for path in Path("runs/a/front").iterdir()}
    assert 1 <= len(taken) <= 2
    assert set(trials().known) == before  # nothing was scored again
    weights = json.loads(Path(f"runs/a/front/{min(taken)}/result.json").read_text())
    assert weights["trained"] is False

    assert run(["extract", "runs/a", "front=99", "out=deeper", QUIET]) == 0
    deeper = {path.name for path in Path("deeper").iterdir()}
    assert taken <= deeper
    assert len(deeper) > 2

    # Inside 15 % there are networks that the search has not come to; they are scored now.
    assert run(["extract", "runs/a", "budget.params=15%", "out=small", QUIET]) == 0
    (found,) = Path("small").iterdir()
    result = json.loads((found / "result.json").read_text())
    assert result["costs"]["params"] <= 0.15 * result["largest"]["params"]
    assert set(trials().known) > before

    capsys.readouterr()
    assert run(["extract", "runs/a", "budget.params=10"]) == 2
    assert "cannot be met: no network of this space has less than" in capsys.readouterr().err


def test_a_killed_search_goes_on_without_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.search import scoring

    command = ["search=predictor", "search.trials=4", "weights=fresh"]
    scored, calls = scoring.scored, []

    def killed(*arguments):
        if len(calls) == 2:
            raise RuntimeError("killed")
        calls.append(arguments)
        return scored(*arguments)

    monkeypatch.setattr(scoring, "scored", killed)
    assert search(*command) == 1
    first = list(trials().known)
    assert len(first) == 2

    calls.clear()
    monkeypatch.setattr(scoring, "scored", lambda *a: calls.append(a) or scored(*a))
    assert search(*command, "resume=true") == 0
    assert len(calls) == 2
    assert list(trials().known)[:2] == first


@pytest.mark.filterwarnings("ignore")
def test_side_by_side_and_in_rungs_is_what_one_process_finds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["search=random_search", "search.trials=4", "search.batch=4", "weights=fresh"]
    words += ["search.halving.epochs=[1,2]", "search.halving.eta=2"]
    assert search(*words, "trainer.enable_progress_bar=true") == 0
    out = capsys.readouterr().out
    assert out.count("after 1 epochs") == 4
    assert out.count("after 2 epochs") == 2
    assert "4 networks trained, 6 epochs instead of 8" in out
    assert not list(Path("runs/a/rungs").iterdir())
    one, result = trials(), RunDir(Path("runs/a")).read_result()
    assert len(RunDir(Path("runs/a")).trials.read_text().splitlines()) == 6
    assert result is not None
    assert one.known[result["arch_hash"]].epochs == 2

    assert search(*words, "search.workers=2", "out=two") == 0
    two = TrialLog(Path("two/a/trials.jsonl"))
    assert two.known.keys() == one.known.keys()
    for key, trial in two.known.items():
        assert trial.rungs == one.known[key].rungs
    assert RunDir(Path("two/a")).read_result()["arch"] == result["arch"]  # type: ignore[index]


@pytest.mark.usefixtures("spos")
def test_a_supernet_sent_to_another_process_gives_the_same_scores() -> None:
    run_dir = RunDir(Path("runs/a"))
    problem = SearchProblem(**components_of(saved_config(run_dir)))
    (arch, *_) = (trial.arch for trial in trials().known.values())
    fresh = WeightSharing()(problem)(arch)
    load_supernet(problem.supernet, run_dir.checkpoint)
    sent = ForkingPickler.loads(ForkingPickler.dumps(problem))
    scores = WeightSharing()(sent)(arch)
    assert scores == WeightSharing()(problem)(arch) != fresh
    # Nothing is shared: choosing an option writes to buffers.
    next(sent.supernet.parameters()).data.zero_()
    assert WeightSharing()(problem)(arch) == scores


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search=spos", "search.ranking.searcher=nsga3"], "nsga3"),
        (["search=spos", "search.epochs=0"], "search.epochs=0"),
        (["search=spos", "search.ranking.metric=test_acc"], "val_acc or val_loss"),
        (["search=spos", "search.ranking.evaluate.calibration=-1"], "calibration=-1"),
        (["search=random_search", "search.trials=0"], "search.trials=0"),
        (["search=random_search", "search.workers=0"], "search.workers=0"),
        (["search=spos", "search.ranking.workers=two"], "workers='two'"),
        (["search=random_search", "engine=ray"], "engine=ray needs the number"),
        (["search=bilevel", "engine=dask"], "engine=dask is for searches that score"),
        (["search=random_search", "engine=ray", "engine.cpus=-1"], "engine.cpus=-1"),
        (["search=random_search", "search.batch=0"], "search.batch=0"),
        (["search=random_search", "search.halving.epochs=[3,1]"], "[3, 1] must rise"),
        (["search=random_search", "search.halving.epochs=9"], "search.halving.epochs=9"),
        (["search=random_search", "search.halving.eta=1"], "search.halving.eta=1"),
        (["search=random_search", "budget.params=10"], "no network of this space has less than"),
    ],
)
def test_bad_input_ends_before_training(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs/a/trials.jsonl").exists()
