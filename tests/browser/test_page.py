"""report.html in a browser: hover, click, filter, keyboard; dark, phone; a thousand runs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nas.report import report

PARTS = [
    {"name": f"blocks.{i}", "option": "conv_k3", "channels": 8 * 2**i, "size": [8, 8],
     "costs": {"params": 10.0 * 4**i, "macs": 100.0}}
    for i in range(4)
]  # fmt: skip


def write(folder: Path, index: int) -> None:
    params = 1000 + 37 * index
    record = {
        "schema": 1,
        "status": "finished",
        "seed": index % 3,
        "space": "chain",
        "overrides": {"objective.strength": index, "seed": index % 3},
        "arch": {part["name"]: "conv_k5" if index % 2 else "conv_k3" for part in PARTS},
        "arch_hash": f"hash{index % 50}",
        "parts": [{**part, "option": "conv_k5" if index % 2 else "conv_k3"} for part in PARTS],
        "metrics": {"test_acc": 0.5 + 0.4 * index / (index + 20) - 0.01 * (index % 3)},
        "costs": {"params": params, "macs": 10 * params},
        "budgets": {"params": 1200},
    }
    run = folder / str(index)
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "sweep"
    for index in range(12):
        write(folder, index)
    return report(folder).html


def opened(browser: Any, file: Path, **options: Any) -> tuple[Any, list[str]]:
    page = browser.new_context(**options).new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda r: errors.append(r.url) if r.url.startswith("http") else None)
    page.goto(file.as_uri())
    page.wait_for_selector("#chart .points path")
    return page, errors


def test_hover_click_and_filter(browser, page_file):
    page, errors = opened(browser, page_file, viewport={"width": 1100, "height": 900})
    points = page.locator("#chart .points path")
    shown = points.count()
    points.last.hover(force=True)
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "test_acc" in page.locator(".hoverlayer").text_content()

    assert page.locator("#detail").is_hidden()
    box = points.nth(1).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#detail svg")
    assert "nas export" in page.locator("#detail pre").inner_text()
    assert page.locator("tr.picked").count() == 1

    page.fill("#filter", "conv_k5")
    rows = page.locator("tr[data-places]:visible")
    assert rows.count() == 6
    assert points.count() < shown
    page.fill("#filter", "conv_k5 seed=0")
    assert rows.count() == 2
    page.fill("#filter", "")
    assert (rows.count(), points.count()) == (12, shown)
    assert errors == []


def test_everything_can_be_reached_by_keyboard(browser, page_file):
    page, errors = opened(browser, page_file)
    page.locator("tr[data-places]").nth(2).focus()
    page.keyboard.press("Enter")
    title = page.locator("#detail h2").inner_text()
    assert title == page.locator("tr.picked td").first.inner_text()
    page.locator("#cost").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator('section[data-cost="macs"]').is_visible()
    page.locator("th button").nth(1).focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort]").count() == 1
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser, page_file, scheme):
    phone = {"width": 390, "height": 800}
    page, errors = opened(browser, page_file, viewport=phone, color_scheme=scheme)
    page.locator("tr[data-places]").first.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 25, 31)")
    assert errors == []


@pytest.mark.slow
def test_a_thousand_runs_open(browser, tmp_path):
    for index in range(1000):
        write(tmp_path / "many", index)
    file = report(tmp_path / "many").html
    start = time.monotonic()
    page, errors = opened(browser, file)
    # Three seconds are promised on a machine that does nothing else; it takes 2 s of one core, of
    # which the library of the chart needs most, and other tests may run at the same time.
    assert time.monotonic() - start < 15
    assert page.locator("tr[data-places]").count() == 1000
    assert errors == []
