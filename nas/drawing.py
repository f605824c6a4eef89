"""An architecture as a drawing: block by block, in the terminal, as SVG and as CSV."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nas import tables

Parts = Sequence[Mapping[str, Any]]  # as result.json has them, see `nas.anatomy.Part`

PIPE_WIDTH = 140  # columns where the output is no terminal that has a width
BAR = 12  # characters of a full bar in the terminal
ROW, FULL, GAP = 30, 200, 14  # of the SVG, in pixels: a row, a full bar, between columns
LETTER = 7.2  # pixels that a letter of 12 takes at most in the mean, in any sans-serif
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Legible on white and on dark, see `nas.report.series`.
TONES = ("#3a8bd0", "#d9622b", "#259b78", "#b768a8", "#c2921d", "#6b7f93")


def console() -> Console:
    """Where tables are printed: the terminal at its width, a pipe or a log at a fixed one."""
    # No markup: a name out of a file may have brackets in it.
    plain = Console(highlight=False, markup=False)
    return plain if plain.is_terminal else Console(highlight=False, markup=False, width=PIPE_WIDTH)


def table(parts: Parts, costs: Sequence[str]) -> Table:
    """The network for a terminal: a row for each part, and bars for its share of each cost."""
    drawn = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("block", "operation", "output"):
        drawn.add_column(name)
    for name in costs:
        drawn.add_column(name, min_width=BAR + 5)
    for part in parts:
        bars = [_bar(share(parts, part, name)) for name in costs]
        drawn.add_row(*map(Text, (part["name"], part["option"] or "(fixed)", output(part))), *bars)
    return drawn


def costs_of(parts: Parts) -> list[str]:
    """The costs that the parts have shares of."""
    return list(dict.fromkeys(name for part in parts for name in part["costs"]))


def svg(parts: Parts, costs: Sequence[str], title: str = "", alone: bool = False) -> str:
    """The same as a picture: boxes in the order of the network, bars for the shares.

    Colours follow the page it stands in (``currentColor``); text is text.

    Args:
        alone: for a file: with its title, its size and colours for light and dark.
    """
    columns = _Columns(parts)
    head = 50 if alone else 26
    height = head + ROW * len(parts) + 6
    rows = "".join(_row(parts, p, costs, columns, head + ROW * i) for i, p in enumerate(parts))
    width = max(columns.width, round(LETTER * len(title)) if alone else 0)
    left = -GAP if alone else 0
    width -= 2 * left
    page = _page(width, height, title) if alone else ""
    size = f' width="{width}" height="{height}" style="max-width: 100%"' if alone else ""
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg"{size} viewBox="{left} 0 {width} {height}" '
        f'role="img" aria-label="{escape(title or "architecture")}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">{page}'
        f"{_legend(costs, columns.bars, head - 26)}{rows}</svg>"
    )
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawn)


def csv_text(parts: Parts) -> str:
    """The same as a table: each part with its amount and share of every cost that adds up."""
    costs = costs_of(parts)
    shares = [f"{name}_share" for name in costs]
    header = ["block", "operation", "channels", "size", "layers", *costs, *shares]
    rows: list[list[Any]] = []
    for part in parts:
        size = "x".join(str(n) for n in part["size"])
        own = [part["name"], part["option"], part["channels"], size, part.get("layers")]
        amounts = [part["costs"].get(name, 0) for name in costs]
        rows.append([*own, *amounts, *(round(share(parts, part, name), 6) for name in costs)])
    return tables.csv_text(header, rows)


def share(parts: Parts, part: Mapping[str, Any], cost: str) -> float:
    """The part's share of the network's cost, in 0..1."""
    total = sum(other["costs"].get(cost, 0.0) for other in parts)
    return float(part["costs"].get(cost, 0.0) / total) if total else 0.0


def output(part: Mapping[str, Any]) -> str:
    """`16 x 14 x 14`: channels and size of what the part gives; "" where it has no layer."""
    if part["channels"] is None:
        return ""
    size = [] if part["size"] == [1] else part["size"]  # a linear layer of a single row
    return " x ".join(str(n) for n in (part["channels"], *size))


def _bar(value: float) -> Text:
    full = round(value * BAR)
    return Text.assemble(("█" * full, "blue"), ("·" * (BAR - full), "dim"), f" {value:4.0%}")


class _Columns:
    """Where the columns of the SVG begin, for the longest text of each."""

    def __init__(self, parts: Parts) -> None:
        def longest(texts: Sequence[str]) -> int:
            return round(LETTER * max((len(text) for text in texts), default=0))

        self.box = longest([_short(part["name"]) for part in parts]) + GAP
        self.box_width = longest([_label(part) for part in parts]) + GAP
        self.output = self.box + self.box_width + GAP
        self.bars = self.output + longest([output(part) for part in parts]) + GAP
        self.width = self.bars + FULL + 40  # the figure behind a full bar


def _page(width: int, height: int, title: str) -> str:
    return (
        "<style>svg { color-scheme: light dark; color: #1c2733 } .paper { fill: #fff } "
        "@media (prefers-color-scheme: dark) { svg { color: #e4e9ef } .paper { fill: #14191f } }"
        f'</style><rect class="paper" x="{-GAP}" width="{width}" height="{height}"/>'
        f'<text x="0" y="16" font-weight="600">{escape(title)}</text>'
    )


def _legend(costs: Sequence[str], left: int, top: int) -> str:
    marks = []
    for name, tone in zip(costs, TONES, strict=False):
        marks.append(f'<rect x="{left}" y="{top + 8}" width="9" height="9" fill="{tone}"/>')
        marks.append(f'<text x="{left + 13}" y="{top + 16}">{escape(name)}</text>')
        left += 24 + round(LETTER * len(name))
    return "".join(marks)


def _row(
    parts: Parts, part: Mapping[str, Any], costs: Sequence[str], columns: _Columns, top: int
) -> str:
    middle, centre = top + 15, columns.box + columns.box_width / 2
    box = (
        f'<rect x="{columns.box}" y="{top}" width="{columns.box_width}" height="{ROW - 8}" rx="5" '
        f'fill="none" stroke="currentColor" stroke-opacity="{0.9 if part["option"] else 0.3}"/>'
    )
    arrow = f'<path d="M{centre} {top - 8}v8" stroke="currentColor" stroke-opacity=".5"/>'
    words = (
        f'<text x="0" y="{middle}" opacity=".75">{escape(_short(part["name"]))}</text>'
        f'<text x="{centre}" y="{middle}" text-anchor="middle">{escape(_label(part))}</text>'
        f'<text x="{columns.output}" y="{middle}" opacity=".75">{escape(output(part))}</text>'
    )
    return arrow + box + words + _bars(parts, part, costs, columns.bars, top)


def _bars(parts: Parts, part: Mapping[str, Any], costs: Sequence[str], left: int, top: int) -> str:
    drawn = []
    thick = (ROW - 8) / max(1, len(costs[: len(TONES)]))
    for i, (name, tone) in enumerate(zip(costs, TONES, strict=False)):
        value, y = share(parts, part, name), top + i * thick
        long = max(0.5, value * FULL)
        drawn.append(
            f'<rect x="{left}" y="{y:.1f}" width="{long:.1f}"'
            f' height="{thick - 1:.1f}" fill="{tone}"><title>{escape(name)} {value:.1%}</title>'
            "</rect>"
        )
        if thick >= 10:  # else only who points at a bar is told
            drawn.append(
                f'<text x="{left + long + 4:.1f}" y="{y + thick / 2 + 3:.1f}" font-size="10" '
                f'opacity=".75">{value:.0%}</text>'
            )
    return "".join(drawn)


def _label(part: Mapping[str, Any]) -> str:
    return _short(part["option"] or "fixed", 36)


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"...{text[-most + 3 :]}"
