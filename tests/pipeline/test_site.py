"""The site is built as `python -m sphinx -W` builds it: no warning, nothing from the network."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nas
from nas.config.help import VERBS, groups

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
LOADED = re.compile(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=\"((?:https?:)?//[^\"]*)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", folder],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    return folder


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


def test_tutorial_ends_with_a_front_a_figure_and_a_file(site):
    """The build has run it; an error in a cell, or in its asserts, has failed the build."""
    page = (site / "docs" / "tutorial.html").read_text(encoding="utf-8")
    assert len(re.findall(r"<img[^>]*\.png", page)) == 2
    assert re.search(r"ONNX differs by at most \d\.\de-0\d", page)
    assert "test accuracy" in page


def test_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
