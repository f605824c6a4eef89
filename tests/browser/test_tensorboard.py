"""TensorBoard on a sweep, as its user sees it: HParams in the scatter plots, fronts as images."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.cli import run

SWEEP = [
    "seed=0,1", "space.width=0.1,0.25", "space=chain_tiny", "search=random", "finetune.epochs=1",
    "data.limit=200", "threads=1", "onnx=false", "trainer.enable_progress_bar=false", "name=sweep",
]  # fmt: skip
RUNS = 4
PLOTS = "tf-hparams-scatter-plot-matrix-plot"
# Chart libraries of TensorBoard itself say so.
THEIRS = re.compile("Three.js|paper-.* is deprecated|cannot process domain type")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Path:
    folder = tmp_path_factory.mktemp("board")
    assert run(["search", "-m", *SWEEP, f"out={folder}"]) == 0
    return folder / "sweep"


@pytest.fixture(scope="module")
def address(sweep: Path) -> Iterator[str]:
    words = ["--logdir", str(sweep), "--host", "127.0.0.1", "--port", "0", "--load_fast=false"]
    with subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as board:
        assert board.stdout is not None
        lines = iter(board.stdout.readline, "")
        found = next((m for line in lines if (m := re.search(r"http://\S+", line))), None)
        try:
            assert found is not None, "TensorBoard did not start"
            wait_until_read(found.group())
            yield found.group()
        finally:
            board.terminate()


def wait_until_read(address: str) -> None:
    """TensorBoard answers before it has read all runs, and shows what it has."""
    for _ in range(120):
        with urllib.request.urlopen(f"{address}data/runs") as answer:
            names = json.load(answer)
        if len(names) == RUNS + 1:  # and the entry with the fronts
            assert "1/seed=0,width=0.25" in names
            return
        time.sleep(0.25)
    raise AssertionError("TensorBoard does not see all runs")


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    opened, errors = context.new_page(), []
    opened.set_default_timeout(20_000)
    opened.on("console", lambda m: errors.append(m.text) if not THEIRS.search(m.text) else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    context.close()
    assert errors == []


def test_every_run_is_a_point_in_the_scatter_plots(page: Any, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}#hparams")
    page.get_by_text("Scatter plot matrix view").click()
    page.wait_for_selector(f"{PLOTS} circle")
    page.screenshot(path=tmp_path / "hparams.png")
    words = " ".join(page.locator(f"{PLOTS} text").all_text_contents())
    axes = [f"final/{name}" for name in ("test_acc", "val_acc", "params", "macs")]
    assert [name for name in axes if name not in words] == []
    circles = page.locator(f"{PLOTS} circle").evaluate_all(
        "found => found.map(c => [c.getAttribute('cx'), c.getAttribute('cy')])"
    )
    assert len(circles) % (RUNS * len(axes)) == 0  # each in every column of every row
    assert len(circles) >= RUNS * len(axes) ** 2
    assert all(None not in place and "NaN" not in place for place in circles)


def test_the_fronts_are_images(page: Any, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}#images")
    for cost in ("params", "macs"):
        card = page.locator("tf-image-loader").filter(has_text=f"front/{cost}")
        image = card.filter(has_text=re.compile(rf"step\s*{RUNS}")).locator("img").first
        image.wait_for()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    page.screenshot(path=tmp_path / "images.png")
