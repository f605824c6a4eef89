"""`nas extract` for several devices in one call."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from nas.arch import Arch
from nas.artifacts import RunDir, find_runs
from nas.cli import run
from nas.latency.models import fit_units
from nas.latency.profile import Profile

Nas = Callable[..., int]
BRIEF = [
    "space.width=0.25",
    "input=[1,8,8]",
    "networks=2",
    "calibrate=1",
    "seconds=0.05",
    "calls=2",
]
ONE_SHOT = [
    *("space.width=0.25", "data.limit=400", "finetune.epochs=1", "threads=1", "onnx=false"),
    *("trainer.enable_progress_bar=false", "search=spos", "search.epochs=1"),
    *("search.ranking.trials=12", "search.ranking.evaluate.calibration=64", "name=one"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two searches, and profiles of two devices: what is quick on one is slow on the other."""
    folder = tmp_path_factory.mktemp("devices")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("nas.latency.profile.fit_units", partial(fit_units, kinds=("linear",)))
        assert run(["profile", *BRIEF, "seconds=0.05", "calls=2", "out=here.json"]) == 0
        small = [
            *ONE_SHOT[:6],
            "search=bilevel",
            "search.epochs=1",
            "search.warmup_epochs=0",
            "name=a",
        ]
        assert run(["search", *small]) == 0
        assert run(["search", *ONE_SHOT]) == 0
    raw = json.loads((folder / "here.json").read_text())
    keys = sorted(raw["units"])
    for name, order in (("left", keys), ("right", keys[::-1])):
        for place, key in enumerate(order):
            raw["units"][key]["seconds"] = (place + 1) * 1e-3
        raw["correction"] |= {"scale": 1.0, "per_unit": 0.0, "offset": 0.0}
        raw |= {"device": f"{name} board/2", "machine": ""}
        (folder / f"{name}.json").write_text(json.dumps(raw))
        Profile.load(folder / f"{name}.json")
    return folder


@pytest.fixture(autouse=True)
def _inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def extract(*words: str) -> int:
    return run(["extract", *words])


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_device_has_a_network_inside_its_budget(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["runs/a", "profile=[left.json,right.json]", "budget.latency=50%"]
    assert extract(*words) == 0
    out = capsys.readouterr().out
    found = {}
    for name in ("left_board_2", "right_board_2"):
        (one,) = find_runs(Path("runs/a/front") / name)
        found[name] = one.read_result()
        assert found[name]["costs"]["latency"] <= found[name]["budgets"]["latency"]
        assert found[name]["latency"]["device"] == name.replace("_", " ", 1).replace("_", "/")
        assert not found[name]["trained"]
        assert name in out.rpartition("test accuracy")[2]
        assert "not trained" in next(
            line
            for line in out.splitlines()
            if f"front/{name}" in line and line.startswith(found[name]["latency"]["device"])
        )
    assert found["left_board_2"]["arch"] != found["right_board_2"]["arch"]
    table = rows("runs/a/front/devices.csv")
    assert [row["device"] for row in table] == ["left board/2", "right board/2"]
    for row, result in zip(table, found.values(), strict=True):
        assert row["network"] == result["arch_hash"]
        assert float(row["latency"]) == pytest.approx(result["costs"]["latency"])
        assert float(row["test_acc"]) == result["metrics"]["test_acc"]
        assert row["trained"] == "False"
        assert RunDir(Path(row["folder"])).finished

    assert extract(*words) == 0
    assert capsys.readouterr().out.count("already there") == 2


def test_a_budget_for_each_device_and_each_network_is_trained() -> None:
    words = ["profile=left.json,right.json", "budget.latency=[60%,90%]", "fine_tune=true"]
    assert extract("runs/a", *words, "out=own") == 0
    shares = []
    for name in ("left_board_2", "right_board_2"):
        (one,) = find_runs(Path("own") / name)
        result = one.read_result()
        assert result is not None
        assert result["trained"]
        shares.append(result["budgets"]["latency"] / result["largest"]["latency"])
    assert shares == pytest.approx([0.6, 0.9])


def test_a_ranked_front_is_over_each_devices_own_latency() -> None:
    """The run has recorded neither; what it has scored is not scored again."""
    before = RunDir(Path("runs/one")).trials.read_text()
    words = ["profile=[left.json,right.json]", "front=3", "cost=latency", "out=fronts"]
    assert extract("runs/one", *words) == 0
    assert RunDir(Path("runs/one")).trials.read_text() == before
    table = rows("fronts/devices.csv")
    for device in ("left board/2", "right board/2"):
        own = [row for row in table if row["device"] == device]
        times = [float(row["latency"]) for row in own]
        assert times == sorted(times)
        archs = [Arch.load(Path(row["folder"]) / "arch.json") for row in own]
        assert times == [seconds(dict(arch.choices), device) for arch in archs]


def seconds(choices: dict[str, str], device: str) -> float:
    from nas.config.saved import change, saved_config
    from nas.problem import SearchProblem
    from nas.verbs import components_of

    if device not in PROBLEMS:
        config = saved_config(RunDir(Path("runs/one")))
        change(config, ["budget.latency=1s", f"profile={device.split()[0]}.json"])
        PROBLEMS[device] = SearchProblem(**components_of(config))
    problem = PROBLEMS[device]
    return problem.costs["latency"].of(Arch(problem.space, choices).choices)


PROBLEMS: dict = {}


def test_another_profile_than_the_searchs_own_is_the_one_that_counts() -> None:
    """A saved configuration names the profile twice: at the top, and in the cost."""
    words = [*ONE_SHOT[:6], "search=random", "profile=left.json", "cost=[latency]", "name=own"]
    assert run(["search", *words]) == 0
    (Path("runs/own") / "last.ckpt").write_bytes(Path("runs/a/last.ckpt").read_bytes())
    assert extract("runs/own", "profile=right.json", "fine_tune=true", "out=other") == 0
    (one,) = find_runs(Path("other"))
    result = one.read_result()
    assert result is not None
    assert result["latency"]["device"] == "right board/2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile=[left.json,left.json]"], "left.json"),
        (["profile=[left.json,none.json]"], "none.json"),
        (["profile=[left.json,right.json]", "budget.latency=[3ms]"], "budget.latency=[3ms]"),
        (["profile=[left.json,right.json]", "budget.latency=[90%,1us]"], "right board/2: budget"),
        (["profile=left.json", "budget.latency=[3ms,4ms]"], "profile=[A.json,B.json]"),
        (["profile=[]"], "profile=[]"),
    ],
)
def test_bad_input_ends_before_any_network_is_taken(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("runs/a", *words, "out=bad") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not Path("bad").exists()
