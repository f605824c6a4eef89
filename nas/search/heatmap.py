"""Heat maps of probabilities over the epochs, drawn with Pillow alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Values = NDArray[np.float64]

WIDTH = 350  # of a card in TensorBoard, which scales other widths without smoothing
MARGIN = 6
LINE = 20  # height of a line of text, and of a row of a block's map
GAP = 3  # between the decisions of the overview
COLUMN = 120  # most that the text left, or right, of the map may take
SCALE = (60, 12)  # size of the colour bar
INK, FAINT, PAPER = "#1f1f1f", "#767676", "#ffffff"
# viridis, which has equal steps of brightness, at 0, 1/8 ... 1
COLOURS = "440154 472d7b 3b528b 2c728e 21918c 28ae80 5ec962 addc30 fde725"


@dataclass(frozen=True)
class Block:
    """The course of one decision: `probabilities` is ``(epochs, K)``, one column per option."""

    name: str
    options: Sequence[str]
    probabilities: Values

    @property
    def best(self) -> int:
        return int(self.probabilities[-1].argmax())


@dataclass(frozen=True)
class _Strip:
    """One labelled strip of a map: `values` is ``(rows, epochs)``."""

    label: str
    values: Values
    result: str
    strong: bool = True


def draw_block(block: Block) -> Image.Image:
    """One row per option, one column per epoch; on the right the last epoch's probabilities."""
    strips = [
        _Strip(_fit(option), values[None], f"{values[-1]:.2f}", strong=k == block.best)
        for k, (option, values) in enumerate(zip(block.options, block.probabilities.T, strict=True))
    ]
    return _draw(block.name, strips, height=LINE, gap=1)


def draw_overview(blocks: Sequence[Block]) -> Image.Image:
    """One strip per decision, options from top to bottom in it; on the right the best one."""
    strips = [
        _Strip(
            _fit(block.name, tail=True),
            block.probabilities.T,
            _fit(f"{block.probabilities[-1, block.best]:.2f} {block.options[block.best]}"),
        )
        for block in blocks
    ]
    most = max(len(block.options) for block in blocks)
    return _draw("all decisions", strips, height=max(LINE, 4 * most), gap=GAP)


def colour(values: Values) -> NDArray[np.uint8]:
    """Probabilities of any shape -> RGB, with one more dimension."""
    anchors = np.array([list(bytes.fromhex(code)) for code in COLOURS.split()])
    at = np.linspace(0, 1, len(anchors))
    channels = [np.interp(values, at, anchors[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _draw(title: str, strips: Sequence[_Strip], height: int, gap: int) -> Image.Image:
    font = _font()
    left = 2 * MARGIN + _widest([strip.label for strip in strips])
    right = WIDTH - 2 * MARGIN - _widest([strip.result for strip in strips])
    top = MARGIN + LINE + 4
    bottom = top + len(strips) * (height + gap)
    image = Image.new("RGB", (WIDTH, bottom + LINE + MARGIN), PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), _fit(title, WIDTH - 120, tail=True), INK, font)
    _scale(image, pen)
    for index, strip in enumerate(strips):
        y = top + index * (height + gap)
        image.paste(_map(strip.values, right - left, height), (left, y))
        middle, ink = y + height // 2, INK if strip.strong else FAINT
        pen.text((left - MARGIN, middle), strip.label, ink, font, anchor="rm")
        pen.text((right + MARGIN, middle), strip.result, ink, font, anchor="lm")
    _axis(pen, left, right, bottom + 3, epochs=strips[0].values.shape[1])
    return image


def _map(values: Values, width: int, height: int) -> Image.Image:
    return Image.fromarray(colour(values)).resize((width, height), Image.Resampling.NEAREST)


def _axis(pen: ImageDraw.ImageDraw, left: int, right: int, y: int, epochs: int) -> None:
    pen.text((left, y), "0", FAINT, _font())
    pen.text(((left + right) // 2, y), "epoch", FAINT, _font(), anchor="ma")
    if epochs > 1:
        pen.text((right, y), str(epochs - 1), FAINT, _font(), anchor="ra")


def _scale(image: Image.Image, pen: ImageDraw.ImageDraw) -> None:
    """The colour bar, in the upper right corner."""
    width, height = SCALE
    right, middle = WIDTH - MARGIN - 12, MARGIN + LINE // 2 - 2
    image.paste(
        _map(np.linspace(0, 1, width)[None], width, height), (right - width, middle - height // 2)
    )
    pen.text((right - width - 5, middle), "0", FAINT, _font(), anchor="rm")
    pen.text((right + 5, middle), "1", FAINT, _font(), anchor="lm")


@cache
def _font() -> Font:
    return ImageFont.load_default(size=13)


def _widest(texts: Sequence[str]) -> int:
    return int(max(_font().getlength(text) for text in texts)) + 1


def _fit(text: str, width: int = COLUMN, tail: bool = False) -> str:
    """`text`, cut to `width` pixels; `tail` keeps its end, which tells module paths apart."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[1:] if tail else text[:-1]
    return f"...{text}" if tail else f"{text}..."
