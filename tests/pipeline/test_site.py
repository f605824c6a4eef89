"""The site is built as `python -m sphinx -W` builds it: no warning, nothing from the network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import nas
from nas.config.help import VERBS, groups

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
# What takes the time of the notebook -> what takes a second.
FEWER = {
    "for _ in range(20):": "for _ in range(1):",
    "batches(val, size=24)": "batches(val, size=224)",
    "epochs=10": "epochs=1",
    "for _ in range(4)]": "for _ in range(1)]",
    "assert tested > 0.95": "assert tested > 0.05",
}
LOADED = re.compile(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]*)\"")


def built(folder: Path, *options: str) -> Path:
    words = ["-q", "-W", "--keep-going", "-c", "docs", *options, ".", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Without the outputs of the notebook."""
    return built(tmp_path_factory.mktemp("site"), "-D", "nb_execution_mode=off")


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert {page.name: found for page in pages if (found := LOADED.findall(page.read_text()))} == {}


def test_generated_pages_say_what_the_code_says(site):
    keys, api, commands = (
        (site / "docs" / f"{name}.html").read_text(encoding="utf-8")
        for name in ("keys", "api", "commands")
    )
    assert [group for group in groups() if f'id="{group}"' not in keys] == []
    assert "stable_epochs=null" in keys
    assert "search.warmup_epochs=4" in keys
    # Two are packages that can be called; their functions stand in `nas.api`.
    packages = ("compress", "search")
    shown = {name: f"api.{name}" if name in packages else name for name in nas.__all__}
    assert [name for name, at in shown.items() if f'id="nas.{at}"' not in api] == []
    assert [verb for verb in VERBS if f'id="nas-{verb}"' not in commands] == []


@pytest.mark.slow
def test_tutorial_ends_with_a_front_a_figure_and_a_file(tmp_path):
    """The build has run it; an error in a cell, or in its asserts, has failed the build."""
    page = (built(tmp_path) / "docs" / "tutorial.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img[^>]*\.png", page)) == 2
    assert re.search(r"ONNX differs by at most \d\.\de-0\d", page)
    assert "test accuracy" in page


def cells() -> list[str]:
    """The code of the notebook."""
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


def test_cells_of_the_tutorial_run(tmp_path, monkeypatch, capsys):
    """With few steps: how good its networks become is seen where it is run as it stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    code = "\n".join(cells())
    for many, few in FEWER.items():
        assert code.count(many) == 1, many
        code = code.replace(many, few)
    exec(compile(code, str(NOTEBOOK), "exec"), {})
    assert len(plt.get_fignums()) == 2
    plt.close("all")
    assert Path("network.onnx").is_file()
    said = capsys.readouterr().out
    assert said.count("lambda") == 3
    assert "ONNX differs by at most" in said


def test_notebook_is_kept_without_outputs():
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in found if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
