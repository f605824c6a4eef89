"""`nas export` through the command line: files, card, what they compute, and bad input."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.data import digits
from nas.export import check, formats, job
from nas.integer.compiled import FILES
from nas.quantities import amount

ROOT = Path(__file__).parents[2]
FORMATS = "state_dict,python,onnx,int8_onnx"
# Two blocks: exporters take their time for every layer.
STAGES = "{ops:[conv_k3,conv_k5],channels:16},{ops:[conv_k3,conv_k5],channels:32,stride:2}"
SPACE = [f"space.stages=[{STAGES}]"]
QUIET = ["threads=1", "onnx=false", "trainer.enable_progress_bar=false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a random small network, trained well enough for its accuracy to mean something."""
    folder = tmp_path_factory.mktemp("trained")
    words = ["search=random", *SPACE, "finetune.epochs=8", *QUIET]
    assert run(["search", *words, f"out={folder}", "name=a"]) == 0
    assert run(["export", str(folder / "a"), "--format", FORMATS]) == 0
    return folder / "a"


@pytest.fixture
def finished(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the working folder: ``a``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "a", ignore=shutil.ignore_patterns("tensorboard", "export"))
    return Path("a")


@pytest.fixture
def exported(trained: Path, finished: Path) -> Path:
    """The same with its exports in FORMATS."""
    shutil.copytree(trained / "export", "a/export")
    return finished


def complaint(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(["export", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_several_formats_with_a_card_and_latencies(exported: Path) -> None:
    out = exported / "export"
    assert {p.name for p in out.iterdir()} == {
        "network.pt",
        "network.py",
        "network.onnx",
        "network_int8.onnx",
        "export.json",
        "card.json",
        "card.md",
    }
    rows = json.loads((out / "export.json").read_text())["formats"]
    result = RunDir(exported).read_result()
    assert result is not None
    for name, row in rows.items():
        assert row["samples"] == 269  # the test part of digits
        assert row["eager_score"] == pytest.approx(result["metrics"]["test_acc"])
        assert sum(row["files"].values()) == sum((out / f).stat().st_size for f in row["files"])
        assert ("latency" in row) == (name != "state_dict")
    eager = json.loads((out / "export.json").read_text())["eager_latency"]
    found = rows["onnx"]["latency"]
    assert found["ratio_to_eager"] == pytest.approx(found["seconds"] / eager["seconds"])
    assert found["calls"] >= 20
    assert rows["python"]["max_abs_diff"] == rows["state_dict"]["max_abs_diff"] == 0
    assert rows["onnx"]["max_abs_diff"] <= 1e-4
    assert rows["onnx"]["argmax_agreement"] == 1
    assert rows["int8_onnx"]["max_abs_diff"] > 1e-4  # it is int8 indeed
    assert rows["int8_onnx"]["eager_score"] - rows["int8_onnx"]["score"] <= 0.02
    assert (
        rows["int8_onnx"]["files"]["network_int8.onnx"]
        < 0.6 * rows["onnx"]["files"]["network.onnx"]
    )

    card, page = json.loads((out / "card.json").read_text()), (out / "card.md").read_text()
    assert card["input"]["mean"] == result["input"]["mean"]
    assert card["formats"] == rows
    for words in (
        f"Test accuracy {result['metrics']['test_acc']:.2%}",
        f"| params | {result['costs']['params']:,} |",
        "classes: 0, 1, 2, 3",
        "nas search search=random",
        "| eager | PyTorch |",
        f"onnxruntime {card['exported_with']['onnxruntime']}",
    ):
        assert words in page


def test_nothing_is_overwritten_unless_asked(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = exported / "export" / "network.py"
    file.write_text("mine")
    line = complaint(capsys, "a", "format=python")
    assert "a/export/network.py is there already" in line
    assert "overwrite=true" in line
    assert file.read_text() == "mine"
    assert run(["export", "a", "format=python", "latency=false", "overwrite=true"]) == 0
    assert "class Network" in file.read_text()
    card = json.loads((exported / "export" / "card.json").read_text())
    assert set(card["formats"]) == set(FORMATS.split(","))  # the others are still there
    assert "same class 100.00%" in capsys.readouterr().out


def test_classify_reads_the_files_and_their_card(exported: Path) -> None:
    data = digits()
    data.setup()
    pixels = data.arrays.samples[data.parts["test"][:12]]
    Path("photos/below").mkdir(parents=True)
    for i, image in enumerate(pixels[:, 0].numpy()):
        Image.fromarray(image).save(f"photos/{'below/' * (i > 5)}{i:02}.png")
    known = (RunDir(exported).read_result() or {})["input"]
    with torch.no_grad():
        x = (pixels / 255 - known["mean"][0]) / known["std"][0]
        probabilities, classes = nas.load(exported)(x).softmax(-1).max(-1)
    expected = {
        f"{i:02}.png": (str(int(c)), float(p))
        for i, (p, c) in enumerate(zip(probabilities, classes, strict=True))
    }

    for name in ("network.onnx", "network.py"):
        done = classified(exported / "export" / name, "photos")
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        found = {Path(path).name: (label, float(share)) for path, label, share in rows}
        assert {name: label for name, (label, _) in found.items()} == {
            name: label for name, (label, _) in expected.items()
        }
        for image, (_, share) in expected.items():
            assert found[image][1] == pytest.approx(share, abs=6e-4)

    Path("photos/broken.png").write_bytes(b"no image")
    done = classified(exported / "export" / "network.onnx", "photos")
    assert done.returncode == 1
    assert "photos/broken.png" in done.stderr
    assert len(done.stdout.splitlines()) == 12


def test_images_of_32_bits_from_the_search_to_the_example_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for label, level in (("dark", 9_000), ("light", 60_000)):
        Path(f"photos/{label}").mkdir(parents=True)
        for i in range(30):
            values = level + draw.integers(0, 5_000, (8, 8))
            Image.fromarray(values.astype(np.int32)).save(f"photos/{label}/{i}.tif")
    data = ["data=image_folder", "data.root=photos", "data.size=8", "data.batch_size=8"]
    words = ["search=random", *SPACE, "finetune.epochs=6", *QUIET, "name=a", *data]
    assert run(["search", *words]) == 0
    result = RunDir(Path("runs/a")).read_result() or {}
    assert result["input"]["value_range"] == [0, 65535]
    assert result["metrics"]["test_acc"] == 1

    # What was light in training is light in images that are all dark, too.
    for path in Path("photos/light").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 300).save(path)
    for path in Path("photos/dark").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 300).save(path)
    assert run(["export", "runs/a", "format=python", "latency=false"]) == 0
    row = json.loads(Path("runs/a/export/export.json").read_text())["formats"]["python"]
    assert row["eager_score"] == 0.5
    assert "0 is 0 and 65535 is 1" in Path("runs/a/export/card.md").read_text()
    done = classified(Path("runs/a/export/network.py"), "photos")
    assert [line.split("\t")[1] for line in done.stdout.splitlines()] == ["dark"] * 60


def classified(network: Path, images: str) -> "subprocess.CompletedProcess[str]":
    script = str(ROOT / "scripts" / "classify.py")
    # Isolated: the example must not lean on the package.
    arguments = [sys.executable, "-I", script, str(network), images]
    return subprocess.run(arguments, capture_output=True, text=True)


@pytest.mark.slow
def test_int8_in_executorch_after_training_for_it(finished: Path) -> None:
    words = ["format=int8_pte", "qat=true", "qat_epochs=1", "latency=false", "calibration=128"]
    assert run(["export", "a", *words]) == 0
    content = json.loads((finished / "export" / "export.json").read_text())
    row = content["formats"]["int8_pte"]
    assert row["eager_score"] - row["score"] <= 0.02
    assert row["max_abs_diff"] > 1e-3
    assert row["qat"]["float_score_after"] > 0.8
    floats = (finished / "network.pt").stat().st_size
    assert row["files"]["network_int8.pte"] < 0.6 * floats


def test_an_architecture_alone_is_exported_untrained_and_says_so(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(finished / "arch.json", "arch.json")
    words = ["arch.json", *SPACE, "format=python", "latency=false"]
    assert run(["export", *words, "out=bare"]) == 0
    assert "UNTRAINED" in capsys.readouterr().out
    assert "**Not trained**" in Path("bare/card.md").read_text()

    weights = f"weights={finished / 'network.pt'}"
    assert run(["export", *words, "out=whole", weights]) == 0
    assert "UNTRAINED" not in capsys.readouterr().out
    whole = torch.load("whole/network.pt", weights_only=True)
    assert torch.equal(whole["classifier.weight"], nas.load("a").classifier.weight)
    # Beside the run that found it, an arch.json means that run.
    assert run(["export", "a/arch.json", "format=python", "latency=false"]) == 0
    assert json.loads(Path("a/export/card.json").read_text())["trained"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=tflite"], ["'tflite'", "state_dict, python, onnx, pt2, pte, int8_onnx"]),
        (["calibration=0", "format=int8_onnx"], ["calibration=0", "at least 1"]),
        (["calibration=8", "format=int8_onnx"], ["calibration=8", "at least 16"]),
        (["calibration=many"], ["calibration=many", "whole number"]),
        (["max_drop=2"], ["max_drop=2", "at least 0 and at most 1"]),
        (["qat_lr=fast"], ["qat_lr=fast", "a number (float)"]),
        (["qat_lr=0"], ["qat_lr=0", "above 0"]),
        (["latency=perhaps"], ["latency=perhaps", "true or false"]),
        (["formt=onnx"], ["'formt'", "format"]),
        (["onnx"], ["'onnx'", "key=value"]),
        (["space.width=2"], ["'space.width'", "data.KEY"]),
        (["data.nosuch=3"], ["data.nosuch", "batch_size"]),
        (["weights=x.pt"], ["weights=FILE", "arch.json"]),
        (["data=fashion_mnist", "data.download=false", "data.root=none"], ["data.root"]),
    ],
    ids=" ".join,
)
def test_bad_words(
    finished: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: list[str]
) -> None:
    line = complaint(capsys, "a", *words)
    for part in said:
        assert part in line
    assert not (finished / "export").exists()


def test_a_run_that_did_not_finish(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "result.json").unlink()
    line = complaint(capsys, "a")
    assert "no finished run" in line
    assert "resume=a" in line


def test_a_space_of_ones_own_whose_module_is_gone(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished / "config.yaml"
    text = config.read_text().replace("nas.spaces.staged.StagedSpace", "nowhere.Net")
    config.write_text(text)
    assert run(["export", "a", "trust=true"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "'nowhere.Net' cannot be imported" in said.strip().splitlines()[-1]
    assert "on PYTHONPATH" in said


def test_data_of_other_classes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in "01":
        Path(f"photos/{label}").mkdir(parents=True)
        for i in range(40):
            Image.new("L", (8, 8), 6 * i).save(f"photos/{label}/{i}.png")
    other = ["data=image_folder", "data.root=photos", "data.size=8", "data.channels=1"]
    other.append("data.batch_size=8")
    line = complaint(capsys, "a", *other)
    assert "classes" in line
    assert "(0, 1)" in line
    shutil.copy(finished / "arch.json", "arch.json")
    weights = [*SPACE, "weights=a/network.pt"]
    line = complaint(capsys, "arch.json", *weights, *other)
    assert "a/network.pt" in line
    assert "classifier" in line


@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("onnxruntime", "onnx", "dnas[onnx]"),
        ("executorch", "pte", "dnas[executorch]"),
        ("torchao", "int8_pte", "dnas[executorch]"),
    ],
)
def test_a_missing_extra_is_named(
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    name: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    line = complaint(capsys, "a", f"format=python,{name}")
    assert package in line
    assert extra in line
    assert not (finished / "export").exists()


def test_a_file_that_computes_something_else_is_not_kept(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = formats.state_bytes

    def wrong(network: torch.nn.Module) -> bytes:
        other = copy.deepcopy(network)
        with torch.no_grad():
            other.classifier.bias[0] += 1e-3
        return real(other)

    monkeypatch.setattr(formats, "state_bytes", wrong)
    line = complaint(capsys, "a", "format=pt2,python", "latency=false")
    assert "the python file computes something else" in line
    assert "max difference 0.001" in line
    kept = {path.name for path in (finished / "export").iterdir()}
    assert "network.pt2" in kept
    assert not {"network.py", "network.pt"} & kept
    content = json.loads((finished / "export" / "export.json").read_text())
    assert list(content["formats"]) == ["pt2"]
    assert content["refused"]


@pytest.mark.skipif(
    not all(map(shutil.which, ("gcc", "arm-none-eabi-gcc", "qemu-system-arm"))),
    reason="needs gcc, gcc-arm-none-eabi, libnewlib-arm-none-eabi and qemu-system-arm",
)
def test_c_files_are_run_here_and_on_a_board_before_they_are_kept(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_ON_BOARD", 3)
    words = ["format=c", "board=cortex_m4", "latency=false"]
    assert run(["export", "a", *words]) == 0
    row = json.loads(Path("a/export/export.json").read_text())["formats"]["c"]
    board = row["boards"]["cortex_m4"]
    assert (board["samples"], board["equal"]) == (3, 3)
    assert {path.name for path in Path("a/export").iterdir()} >= set(row["files"]) == set(FILES)
    assert row["samples"] == 269
    assert row["eager_score"] - row["score"] <= 0.05
    said, page = capsys.readouterr().out, Path("a/export/card.md").read_text()
    assert f"cortex_m4: flash {board['flash']:,} B" in said
    assert f"| cortex_m4 | {amount(board['flash'], 'B')} | {amount(board['ram'], 'B')} |" in page

    real = job.on_board
    monkeypatch.setattr(job, "on_board", lambda *given: replace(real(*given), equal=2))
    shutil.rmtree("a/export")
    line = complaint(capsys, "a", *words)
    assert "on cortex_m4 1 of 3 samples have other outputs than on this machine" in line
    assert not Path("a/export/network.c").exists()


def test_a_missing_compiler_is_named_with_how_to_install_it(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bin").mkdir()
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    assert "apt install gcc" in complaint(capsys, "a", "format=c")
    Path("bin/cc").touch(0o755)
    line = complaint(capsys, "a", "format=c", "board=cortex_m4")
    assert "apt install --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi" in line
    assert not (finished / "export").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["board=cortex_m4"], "is for format=c or pte_cortex_m"),
        (["format=pte_cortex_m", "board=cortex_m4,cortex_m7"], "is for one processor"),
        (["format=pte_cortex_m", "board=cortex_m3"], "is not one of cortex_m4, cortex_m7"),
    ],
)
def test_boards_that_no_format_takes_are_refused(
    words: list[str],
    said: str,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.export.cortex_m.find_spec", lambda name: name)  # here or not
    assert said in complaint(capsys, "a", *words)


def test_int8_that_loses_too_much_says_what_to_do() -> None:
    found = check.Parity(100, 1.0, 0.9, "test_acc", 0.8, 0.9)
    said = check.complaint("int8_pte", found, None, 0.05)
    assert "10.0 points" in said
    assert "qat=true" in said
    assert not check.complaint("int8_pte", found, None, 0.11)
