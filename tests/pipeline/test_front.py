"""`nas search` with several networks: where they lie, what is made of them, how it goes on."""

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nas
import nas.verbs
from nas.arch import Arch
from nas.artifacts import RunDir
from nas.cli import run
from nas.config.compose import compose_config
from nas.front import _sizes, print_rows
from nas.front import _trained as trained
from nas.pipeline import Run
from nas.report.collect import collect
from nas.report.terminal import scores
from nas.search.space import SearchSpace
from nas.search.trial_search import TrialSearch
from nas.search.trials import Trial

WORDS = [
    "space.width=0.25", "data.limit=280", "finetune.epochs=1", "threads=1", "onnx=false",
    "trainer.enable_progress_bar=false", "search=fairnas", "search.epochs=1",
    "search.ranking.trials=6", "search.ranking.evaluate.calibration=64", "front=2",
]  # fmt: skip


def search(*words: str) -> int:
    return run(["search", *WORDS, "name=a", *words])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two networks."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert search() == 0
    return folder / "runs" / "a"


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_each_network_of_a_front_has_a_folder_and_the_run_has_the_best(whole: Path) -> None:
    own, networks = result_of(whole), sorted((whole / "front").iterdir())
    results = [result_of(network) for network in networks]
    assert sorted(own["front"]) == [network.name for network in networks]
    assert len(networks) == 2
    assert all(RunDir(network).complete and result["trained"]
               for network, result in zip(networks, results, strict=True))  # fmt: skip
    best = max(results, key=lambda result: result["metrics"]["val_acc"])
    assert own["arch_hash"] == best["arch_hash"]
    assert own["seconds"]["search"] > 0
    for name in ("network.pt", "arch.json", "network.csv"):
        same = whole / "front" / best["arch_hash"] / name
        assert (whole / name).read_bytes() == same.read_bytes()
        if name != "arch.json":  # one file with two names takes no more room
            assert (whole / name).samefile(same)
    assert sum(p.numel() for p in nas.load(whole).parameters()) == own["costs"]["params"]


def test_a_front_has_a_table_a_picture_and_a_page(whole: Path) -> None:
    with (whole / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == result_of(whole)["front"]  # the cheapest first
    for row in rows:
        result = result_of(whole / row["folder"])
        assert float(row["test_acc"]) == result["metrics"]["test_acc"]
        assert float(row["val_acc"]) == result["metrics"]["val_acc"]
        assert int(row["macs"]) == result["costs"]["macs"]
    assert (whole / "front.png").read_bytes().startswith(b"\x89PNG")
    page = (whole / "report.html").read_text()
    assert all(row["network"] in page for row in rows)
    best = result_of(whole)["arch_hash"]
    assert [row["network"] for row in rows if f">{row['network']} *<" in page] == [best]
    assert len(collect(whole.parent)) == 2  # the run itself is a copy of one


def test_a_front_that_was_broken_off_trains_no_network_twice(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finetune = Run._finetune
    trained: list[str] = []

    def counted(self: Run, *arguments: Any) -> Any:
        if len(trained) == most:
            raise KeyboardInterrupt
        trained.append(self.run.path.name)
        return finetune(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_finetune", counted)
        most = 1
        assert search() == 130
        most = 2
        assert search("resume=true") == 0
    assert trained == result_of(whole)["front"]
    for file in whole.rglob("network.pt"):
        assert file.read_bytes() == Path("runs/a", file.relative_to(whole)).read_bytes()
    # The networks' own folders have the settings of the run, and are no runs to go on with.
    assert search("resume=true") == 0
    assert search("resume=true", "front=3") == 2


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (["search=bilevel"], 8),
        (["search=fairnas"], 8),
        (["search=fairnas", "budget.params=50%"], 1),
        (["search=fairnas", "budget.params=50%", "front=3"], 3),
        (["search=short_trainings"], 8),
        (["search=short_trainings", "budget.params=50%"], 1),
        (["search=nsga2"], 1),
        (["search=random"], 1),
        (["+experiment=gdas"], 1),
    ],
)
def test_how_many_networks_are_trained(
    words: list[str], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nas.verbs, "FRONT", 8)
    config = compose_config(words)
    assert nas.verbs.front_size(config, sweep=False) == size
    if "front=3" not in words:
        assert nas.verbs.front_size(config, sweep=True) == 1


def test_a_front_of_no_network_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "front=0"]) == 2
    assert "front=0 must be at least 1" in capsys.readouterr().err


def test_extract_adds_to_a_front(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole.parent, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    words = ["extract", "runs/a", "fine_tune=true", "trainer.enable_progress_bar=false"]
    assert run([*words, "front=3"]) == 0
    assert "already there: runs/a/front/" in capsys.readouterr().out
    with Path("runs/a/front.csv").open(newline="") as file:
        found = {row["network"] for row in csv.DictReader(file)}
    assert found == {path.name for path in Path("runs/a/front").iterdir()}
    assert len(found) > 2
    assert run([*words, "front=3", "finetune.epochs=2"]) == 2
    assert "was trained with other values of finetune" in capsys.readouterr().err


def test_beyond_the_first_trainings_decide_however_a_front_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.search.trial_search.RANKED_FIRST", 1)
    told: list[int] = []
    further, finetune = TrialSearch.further, Run._finetune

    def seen(self: TrialSearch, problem: Any, trials: Any, trained: Any, cost: Any) -> Any:
        told.append(len(trained))
        return further(self, problem, trials, trained, cost)

    def broken_off(self: Run, *arguments: Any) -> Any:
        if len(list(Path("runs/a/front").glob("*/result.json"))) == 2:
            raise KeyboardInterrupt
        return finetune(self, *arguments)

    monkeypatch.setattr(TrialSearch, "further", seen)
    assert search("name=whole", "front=3") == 0
    whole = Path("runs/whole")
    assert told == [1, 2]
    networks = sorted(path.name for path in (whole / "front").iterdir())
    assert len(networks) == 3
    with monkeypatch.context() as patched:
        patched.setattr(Run, "_finetune", broken_off)
        assert search("front=3") == 130
    assert run(["search", "resume=runs/a"]) == 0
    assert told == [1, 2, 1, 2, 2]
    assert search("name=b") == 0
    words = ["fine_tune=true", "trainer.enable_progress_bar=false", "threads=1"]
    assert run(["extract", "runs/b", "front=3", *words]) == 0
    assert run(["extract", "runs/b", "front=3", *words]) == 0  # all are there
    for other in ("a", "b"):
        assert sorted(path.name for path in Path("runs", other, "front").iterdir()) == networks
        for file in (whole / "front").rglob("network.pt"):
            same = Path("runs", other, file.relative_to(whole))
            assert file.read_bytes() == same.read_bytes()
    assert result_of(whole)["front"] == result_of(Path("runs/a"))["front"]


def test_keys_of_searches_with_alphas_need_one_to_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("objective.strength=0.1", "objective=log", "stable_epochs=3", "guard=[skips]"):
        assert run(["search", word]) == 2
        assert f"{word} is for searches that move alphas" in capsys.readouterr().err


def test_the_ranking_tells_how_much_longer_a_larger_network_takes(tmp_path: Path) -> None:
    archs = [Arch("x", {"a": name}) for name in ("small", "large")]
    costs = dict(zip(archs, (10.0, 30.0), strict=True))
    cost = SimpleNamespace(of=lambda choices: costs[Arch("x", choices)])
    problem: Any = SimpleNamespace(costs={"macs": cost})
    assert _sizes(problem, RunDir(tmp_path), archs) == []  # no ranking
    ranked = [Trial(arch, {"val_acc": 0.5}, {"macs": macs}, seconds=0.1 + macs / 100)
              for arch, macs in costs.items()]  # fmt: skip
    RunDir(tmp_path).trials.write_text("".join(f"{trial.to_json()}\n" for trial in ranked))
    assert _sizes(problem, RunDir(tmp_path), archs) == pytest.approx([0.2 / 0.3, 0.4 / 0.3])


def test_a_network_that_was_only_extracted_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"val_acc": 0.5, "test_acc": 0.25, "params": 10.0, "macs": 20.0}
    untrained = {"network": "b", **row, "folder": "front/b", "trained": False}
    print_rows([{"network": "a", **row, "folder": "front/a"}, untrained], {}, "a")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "front/a *  " in line and "trained" not in line]
    assert [line for line in lines if "front/b (not trained)  " in line]
    result = {"metrics": {"test_acc": 0.25, "val_acc": 0.5}, "trained": False}
    assert scores(result) == "test accuracy 25.00%, validation 50.00% (not trained)"
    assert scores({**result, "trained": True}) == "test accuracy 25.00%, validation 50.00%"


def test_short_trainings_tell_of_networks_inside_any_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["search=short_trainings", "search.trials=5", "search.evaluate.epochs=1", "front=1"]
    assert run(["search", *WORDS[:6], *words, "name=a"]) == 0
    assert capsys.readouterr().out.endswith(
        "next:\n  deploy   nas export runs/a\n"
        "  more     nas extract runs/a front=8 fine_tune=true\n"
        "  smaller  nas extract runs/a budget.params=30% fine_tune=true\n"
    )
    found, before = Path("runs/a"), Path("runs/a/trials.jsonl").read_bytes()
    assert len(before.splitlines()) == 5
    chosen = json.loads((found / "search.json").read_text())["selected"]
    assert chosen["arch_hash"] == result_of(found)["arch_hash"]
    words = ["fine_tune=true", "trainer.enable_progress_bar=false", "threads=1"]
    assert run(["extract", "runs/a", "budget.params=30%", *words]) == 0
    assert (found / "trials.jsonl").read_bytes() == before  # no other network was trained briefly
    (network,) = (found / "front").iterdir()
    taken = result_of(network)
    assert taken["costs"]["params"] <= 0.3 * taken["largest"]["params"]


def test_a_front_goes_on_from_networks_of_its_own_space_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "front", tmp_path / "front")
    one, other = sorted((tmp_path / "front").iterdir())
    archs = [Arch.load(folder / "arch.json") for folder in (one, other)]
    names = archs[0].choices
    space = SearchSpace(archs[0].space, {n: (*{a.choices[n] for a in archs},) for n in names})
    assert list(trained(tmp_path / "front", space)) == archs
    Arch("elsewhere", archs[1].choices).save(other / "arch.json")
    assert list(trained(tmp_path / "front", space)) == archs[:1]
