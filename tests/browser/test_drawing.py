"""network.svg on its own: legible in light and dark, no text over another or cut off."""

from pathlib import Path
from typing import Any

import pytest

from nas.report.summary import BlockSummary, svg

OPTIONS = ["conv_k3", "mb_k5_e6_se", "out_channels 16, kernel 5, expand 6", "identity", ""]
PARTS = [
    BlockSummary(f"blocks.s{i}.blocks.b{i}", option, 8 * 2**i, (112, 112),
                 costs={"params": 10.0 * 4**i, "macs": 1000.0 / (i + 1)})
    for i, option in enumerate(OPTIONS)
]  # fmt: skip
BOXES = """[...document.querySelectorAll('text')].filter(t => t.textContent).map(t => {
  const {x, y, width, height} = t.getBoundingClientRect();
  return [t.textContent, x, y, x + width, y + height];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_file_opens_and_can_be_read(browser: Any, tmp_path: Path, scheme: str) -> None:
    file = tmp_path / "network.svg"
    title = "mobilenet_tiny for cifar10: test accuracy 91.23%, params 123,456, macs 12,345,678"
    file.write_text(svg(PARTS, ["params", "macs"], title, alone=True))
    view = {"width": 900, "height": 400}
    page = browser.new_context(viewport=view, color_scheme=scheme).new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.goto(file.as_uri())
    page.screenshot(path=tmp_path / f"{scheme}.png")
    boxes = page.evaluate(BOXES)
    assert {"mb_k5_e6_se", "fixed", "16 x 112 x 112", title} <= {text for text, *_ in boxes}
    width = float(page.evaluate("document.documentElement.getBoundingClientRect().width"))
    for text, left, _, right, _ in boxes:
        assert 0 <= left < right <= width, text
    for i, (text, *a) in enumerate(boxes):
        for other, *b in boxes[:i]:
            apart = a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] - 1 or b[1] >= a[3] - 1
            assert apart, (text, other)
    ink = page.evaluate("getComputedStyle(document.querySelector('text')).fill")
    paper = page.evaluate("getComputedStyle(document.querySelector('.paper')).fill")
    dark, light = sorted((ink, paper), key=lambda colour: int(colour.split(",")[1]))
    assert (ink, paper) == ((dark, light) if scheme == "light" else (light, dark))
    assert errors == []
