"""`nas profile` and a search with what it wrote, through the command line."""

import csv
import json
import random
import re
import shutil
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch

from nas.artifacts import RunDir
from nas.cli import run
from nas.latency import exchange
from nas.latency.models import fit_units
from nas.latency.profile import Profile
from nas.latency.runtimes import HERTZ

SPACE = ["space.width=0.25"]
# Each file takes the exporter about a second.
FEW_UNITS = [*SPACE, "space.stages=[{ops:[conv_k3,sep_k3],channels:16}]"]
BRIEF = [*SPACE, "input=[1,8,8]", "networks=6", "calibrate=3", "seconds=0.1", "calls=4"]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile of the default space, measured in a hurry."""
    folder = tmp_path_factory.mktemp("profiled")
    assert run(["profile", *BRIEF, f"out={folder}/here.json", f"hydra.run.dir={folder}/made"]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files to measure elsewhere, and a CSV with a time for each."""
    folder = tmp_path_factory.mktemp("exported")
    words = ["networks=2", "calibrate=1", f"export_to={folder}", f"hydra.run.dir={folder}/made"]
    assert run(["profile", *FEW_UNITS, *words]) == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = ["name,milliseconds"]
    for index, name in enumerate(manifest["units"]):
        lines.append(f"{name},{0.1 + index / 100}")
    for index, name in enumerate(manifest["networks"]):
        lines.append(f"{name},{2 + index / 10}")
    (folder / "times.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(autouse=True)
def _without_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one kind that takes seconds to fit is in the first profile alone."""
    kinds = ("linear",)
    monkeypatch.setattr("nas.latency.profile.fit_units", partial(fit_units, kinds=kinds))


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the export to spoil."""
    for name in ("manifest.json", "times.csv"):
        shutil.copy(exported / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_profile_holds_its_measurements_and_their_check(profiled: Path) -> None:
    profile = Profile.load(profiled / "here.json")
    assert len(profile.units) == 16
    assert [n.role for n in profile.networks] == ["calibration"] * 3 + ["validation"] * 3
    assert profile.validation.networks is not None
    assert profile.validation.networks.count == 3
    assert set(profile.validation.units) == {"linear", "mlp", "power"}
    assert "reasons" in profile.measurement_quality
    assert (profiled / "here.png").read_bytes()[:4] == b"\x89PNG"
    assert list((profiled / "here.tensorboard").iterdir())
    assert len((profiled / "here.jsonl").read_text().splitlines()) > 20


def test_the_same_command_measures_nothing_twice(
    profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = (profiled / "here.jsonl").read_text()
    monkeypatch.setattr("nas.latency.runtimes._on_device", None)  # would fail
    assert run(["profile", *BRIEF, f"out={profiled}/here.json"]) == 0
    assert (profiled / "here.jsonl").read_text() == before
    assert not list(tmp_path.iterdir()) or not list((tmp_path / "runs").iterdir())


def test_a_search_for_latency_ends_with_predicted_and_measured(
    profiled: Path, nas_command, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"profile={profiled}/here.json", "budget.latency=90%", "name=a", "onnx=false"]
    assert nas_command("search", *words) == 0
    result = RunDir(Path("runs/a")).read_result()
    assert result is not None
    predicted, measured = result["costs"]["latency"], result["costs"]["latency_measured"]
    assert result["latency"]["predicted"] == pytest.approx(predicted)
    assert result["latency"]["measured"] == measured > 0
    assert predicted <= result["budgets"]["latency"]
    assert "latency_measured" in capsys.readouterr().out
    assert run(["report", "runs", "cost=latency"]) == 0
    assert "latency_measured" in capsys.readouterr().out
    page = Path("runs/report.html").read_text()
    assert "data:image/png;base64," in page


def test_an_elastic_space_is_profiled_and_searched_within_a_budget(nas_command) -> None:
    stage = "{ops:[elastic_k3_e4],channels:[8,16],stride:2,depth:[1,2]}"
    space = ["space=ofa_mobilenet_small", f"space.stages=[{stage}]"]
    assert run(["profile", *space, *BRIEF, "out=elastic.json"]) == 0
    words = ["profile=elastic.json", "budget.latency=80%", "name=a", "onnx=false"]
    assert nas_command("search", *words, *space) == 0
    result = RunDir(Path("runs/a")).read_result()
    assert result is not None
    assert 0 < result["costs"]["latency"] <= result["budgets"]["latency"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost=[latency]"], ["profile=FILE"]),
        (["cost=[latency]", "profile=none.json"], ["none.json", "nas profile"]),
        (["cost=[latency]", "profile=P", "space=mobilenet_tiny"], ["'chain_tiny'", "fallback"]),
        (["cost=[latency]", "profile=P", "device=gap9"], ["'GAP9'", "expect_device"]),
        (["profile=P", "budget.latency=1ns"], ["budget.latency", "cannot be met"]),
    ],
)
def test_a_search_with_a_profile_that_does_not_fit_fails_at_the_start(
    words: list[str],
    said: list[str],
    profiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [word.replace("=P", f"={profiled}/here.json") for word in [*SPACE, *words]]
    line = complaint(capsys, "search", *given)
    assert all(text in line for text in said), line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runtime=tvm"], ["runtime='tvm'", "onnxruntime"]),
        (["accelerator=tpu"], ["accelerator='tpu'", "cuda"]),
        (["batch=0"], ["batch=0"]),
        (["input=[3,-8,8]"], ["input=[3, -8, 8]"]),
        (["input=3"], ["measure.input=3"]),
        (["dtype=int8"], ["dtype='int8'", "float32"]),
        (["networks=3", "calibrate=4"], ["calibrate=4"]),
        (["seconds=0"], ["seconds=0"]),
        (["batch=many"], ["measure.batch", "'many'"]),
        (["bacth=2"], ["bacth"]),
        (["import_csv=none.csv"], ["none.csv"]),
        (["import_csv=a.csv", "export_to=b"], ["give one"]),
    ],
)
def test_keys_of_profile_that_cannot_be(
    words: list[str],
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, "profile", *words)
    assert all(text in line for text in said), line


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("onnxruntime", "onnxruntime", "onnx"), ("executorch", "executorch.runtime", "executorch")],
)
def test_a_runtime_that_is_not_installed_names_its_extra(
    name: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    line = complaint(capsys, "profile", f"runtime={name}")
    assert f"dnas[{extra}]" in line


def test_measurements_of_another_runtime_are_not_mixed(
    profiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(profiled / "here.jsonl", tmp_path)
    line = complaint(capsys, "profile", *BRIEF, "batch=2", "out=here.json")
    assert "here.jsonl" in line
    assert "batch=1" in line


def test_an_interrupted_profile_goes_on_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["profile", *BRIEF, "networks=2", "calibrate=1", "out=p.json"]
    with monkeypatch.context() as patch:
        patch.setattr("nas.latency.job.discretize", interrupted)  # after all units
        assert run(words) == 130
    assert "goes on" in capsys.readouterr().err
    before = Path("p.jsonl").read_text()
    assert len(before.splitlines()) > 16
    assert run(words) == 0
    assert Path("p.jsonl").read_text().startswith(before)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_is_measured_elsewhere_comes_back_as_a_profile(folder: Path) -> None:
    assert run(["profile", "import_csv=times.csv", "device=my board", "out=p.json"]) == 0
    profile = Profile.load(Path("p.json"))
    assert profile.device == "my board"
    assert profile.about.machine == ""  # nothing here is that device
    assert sorted(u.seconds for u in profile.units.values())[0] == pytest.approx(1e-4)
    assert [n.seconds for n in profile.networks] == pytest.approx([2e-3, 2.1e-3])
    assert run(["describe", "trial=false", *FEW_UNITS, "cost=[latency]", "profile=p.json"]) == 0


def test_an_exported_file_is_the_unit(exported: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    manifest = json.loads((exported / "manifest.json").read_text())
    assert {path.stem for path in exported.glob("*.onnx")} == {
        *manifest["units"],
        *manifest["networks"],
    }
    names = (exported / "names.csv").read_text().split()
    assert names == ["name", *manifest["units"], *manifest["networks"]]
    for name in names[1:]:
        about = {**manifest["units"], **manifest["networks"]}[name]
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        feed = {
            node.name: torch.randn(shape).numpy()
            for node, shape in zip(session.get_inputs(), about["inputs"], strict=True)
        }
        (out,) = session.run(None, feed)
        if "key" in about:
            size = about["key"].partition(" |")[0].rpartition("@")[2]
            assert size in ("1", "x".join(map(str, out.shape[2:])))
        else:
            assert out.shape == (1, 10)


SPOILED = {
    "missing figure": (lambda rows: rows[2].__setitem__(1, ""), "line 3: latency '' is missing"),
    "negative": (lambda rows: rows[3].__setitem__(1, "-2"), "line 4: latency -2 must be above 0"),
    "zero": (lambda rows: rows[3].__setitem__(1, "0"), "line 4: latency 0 must be above 0"),
    "nan": (lambda rows: rows[3].__setitem__(1, "nan"), "line 4: latency nan must be above 0"),
    "text": (lambda rows: rows[4].__setitem__(1, "fast"), "line 5: latency 'fast' is no number"),
    "double": (lambda rows: rows.append(list(rows[1])), r"line 7: the same as line 2"),
    "unknown": (lambda rows: rows[1].__setitem__(0, "unit_x"), "line 2: 'unit_x' is not in the"),
    "no line": (lambda rows: rows.pop(1), "no line for unit_"),
    "no column": (lambda rows: rows[0].__setitem__(1, "time"), "line 1: .*milliseconds"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_faulty_line_is_named_by_its_number(fault: str, folder: Path, capsys) -> None:
    spoil, said = SPOILED[fault]
    rows = list(csv.reader((folder / "times.csv").open()))
    spoil(rows)
    with (folder / "times.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    line = complaint(capsys, "profile", "import_csv=times.csv", "device=board")
    assert re.search(said, line), line


def test_an_import_needs_its_manifest_and_a_device(folder: Path, capsys) -> None:
    assert "device=NAME" in complaint(capsys, "profile", "import_csv=times.csv")
    (folder / "manifest.json").unlink()
    line = complaint(capsys, "profile", "import_csv=times.csv", "device=board")
    assert "manifest.json" in line
    assert exchange.SCHEMA == 1


def test_a_table_of_whole_networks_is_a_profile_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"blocks.s{s}b0" for s in range(5)]
    times = {"conv_k3": 2.0, "conv_k5": 3.5, "sep_k3": 1.0}
    rows = []
    for taken in random.Random(0).sample(list(product(times, repeat=5)), 60):
        rows.append([*taken, sum(times[t] * (p + 1) for p, t in enumerate(taken)) + 4])
    with open("rows.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*names, "ms"], *rows])
    words = ["profile", *SPACE, "import_csv=rows.csv", "column=ms", "device=board", "out=p.json"]
    assert run(words) == 0
    assert run(["describe", "trial=false", *SPACE, "cost=[latency]", "profile=p.json"]) == 0
    out = capsys.readouterr().out
    assert "19.0 ms" in out  # 4 + 1 * (1 + 2 + 3 + 4 + 5), the quickest
    Path("old.json").write_text(json.dumps({**json.loads(Path("p.json").read_text()), "schema": 1}))
    said = complaint(capsys, "describe", *SPACE, "cost=[latency]", "profile=old.json")
    assert "old.json has schema 1" in said
    assert "nas profile import_csv=FILE" in said
    Path("rows.csv").write_text(Path("rows.csv").read_text().replace("conv_k5", "conv_k9", 1))
    assert "line " in complaint(capsys, *words)


@pytest.mark.skipif(
    not all(map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm"))),
    reason="no compiler or emulator of Cortex-M here: apt install gcc-arm-none-eabi "
    "libnewlib-arm-none-eabi qemu-system-arm",
)
def test_instructions_in_qemu_are_a_latency(tmp_path, capsys):
    space = [*SPACE, "space.stages=[{ops:[conv_k3,sep_k3],channels:8}]", "input=[1,8,8]"]
    words = ["runtime=qemu_cortex_m4", "networks=2", "calibrate=0", f"hydra.run.dir={tmp_path}/m"]
    assert run(["profile", *space, *words, f"out={tmp_path}/m4.json"]) == 0
    assert "instructions are counted" in capsys.readouterr().out
    profile = Profile.load(tmp_path / "m4.json")
    assert "QEMU" in profile.about.machine
    assert "qemu-system-arm" in profile.about.versions
    assert all(3 < n.seconds * HERTZ / n.macs < 100 for n in profile.networks)
    (log,) = tmp_path.glob("*.jsonl")
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n")
    assert run(["profile", *space, *words, f"out={tmp_path}/m4.json"]) == 0
    assert log.read_text().splitlines() == lines  # counted again, to the instruction


def test_a_board_counts_one_sample_of_whole_numbers(tmp_path, capsys):
    words = ["runtime=qemu_cortex_m4", "batch=2", f"hydra.run.dir={tmp_path}"]
    assert run(["profile", *FEW_UNITS, *words, f"out={tmp_path}/m4.json"]) == 2
    assert "one sample in int8, not b2 float32 t1" in capsys.readouterr().err
