"""report.html in a browser: hover, click, filter, keyboard; dark, phone; a thousand runs."""

import json
import re
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
    page.wait_for_selector("#chart .point")
    return page, errors


def test_hover_click_and_filter(browser, page_file):
    page, errors = opened(browser, page_file, viewport={"width": 1100, "height": 900})
    points = page.locator("#chart .point")
    shown = points.count()
    assert shown == 12
    point_at(page, points.last)
    assert "test_acc" in page.locator("#chart .tip").text_content()

    assert page.locator("#detail").is_hidden()
    x, y = point_at(page, points.nth(1))
    page.mouse.click(x, y)
    page.wait_for_selector("#detail svg")
    assert page.locator("#chart .picked").count() == 1
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


def test_a_drag_zooms_and_a_double_click_goes_back(browser, page_file):
    page, errors = opened(browser, page_file)
    ticks = page.locator("#chart svg text").all_text_contents
    whole, (x, y) = ticks(), point_at(page, page.locator("#chart .point:not(.hollow)").first)
    page.mouse.down()
    page.mouse.move(x + 250, y - 60)
    assert page.locator("#chart .zoom").count() == 1
    page.mouse.up()
    assert ticks() != whole
    page.mouse.dblclick(x, y)
    assert ticks() == whole
    assert page.locator("#detail").is_hidden()  # a drag picks no run
    assert errors == []


def point_at(page: Any, point: Any) -> tuple[float, float]:
    """Move the pointer to a point of a chart; where it is."""
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    return x, y


TICKS = """() => {
  let seed = 1;
  const random = () => (seed = seed * 48271 % 2147483647) / 2147483647;
  const wrong = [];
  for (let i = 0; i < 3000; i++) {
    const log = i % 2 === 0, most = 2 + 10 * random();
    const low = log ? 10 ** (18 * random() - 9) : 200 * random() - 100;
    const high = log ? low * (1 + 10 ** (8 * random() - 2)) : low + 10 ** (6 * random() - 3);
    const found = ticks(low, high, log, most), slack = 1e-9 * Math.abs(high - low);
    const inside = found.every(v => low - slack <= v && v <= high + slack);
    const rising = found.every((v, i) => !i || found[i - 1] < v);
    const {at} = scale([low, high], log, whole[0]);
    const ends = 0 < at(low) && at(low) < at(high) && at(high) < 1;
    if (!inside || !rising || !ends || found.length > most + 1)
      wrong.push([low, high, log, most, found]);
  }
  return wrong;
}"""


def test_ticks_lie_inside_of_the_axis_and_are_not_too_many(browser, page_file):
    page, errors = opened(browser, page_file)
    assert page.evaluate(TICKS) == []
    assert [page.evaluate(f"short({value})") for value in ("1200", "2.5e6", "3e-3", "0")] == [
        "1.2k", "2.5M", "3m", "0",
    ]  # fmt: skip
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


BOXES = """[...document.querySelectorAll('.chart text')].map(t => {
  const {x, y, width, height} = t.getBoundingClientRect();
  return [t.textContent, x, y, x + width, y + height];
})"""
COLOURS = """selector => {
  const style = getComputedStyle(document.querySelector(selector));
  const ink = selector.includes('chart') ? style.stroke : style.color;
  return [ink, getComputedStyle(document.body).backgroundColor];
}"""


def contrast(page: Any, selector: str) -> float:
    """Of text, or of an outline, against the paper, as WCAG 2 defines it."""
    light = []
    for colour in page.evaluate(COLOURS, selector):
        shares = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser, page_file, scheme):
    phone = {"width": 390, "height": 800}
    page, errors = opened(browser, page_file, viewport=phone, color_scheme=scheme)
    page.locator("tr[data-places]").first.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = page.evaluate(BOXES)
    for i, (text, *a) in enumerate(boxes):
        assert 0 <= a[0] <= a[2] <= 390, text
        for other, *b in boxes[:i]:
            apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]
            assert apart, (text, other)
    assert contrast(page, "tr.dominated td") > 4.5
    assert contrast(page, "#chart .hollow") > 2.5
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
    # Three seconds are promised on a machine that does nothing else.
    assert time.monotonic() - start < 15
    assert page.locator("tr[data-places]").count() == 1000
    assert errors == []
