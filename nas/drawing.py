"""An architecture as a drawing: block by block, in the terminal and as SVG."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Parts = Sequence[Mapping[str, Any]]  # as result.json has them, see `nas.anatomy.Part`

PIPE_WIDTH = 140  # columns where the output is no terminal that has a width
BAR = 12  # characters of a full bar in the terminal
ROW, WIDTH = 30, 640  # of the SVG, in pixels
BARS = (430, 200)  # where bars start, and how long a full one is
# Legible on white and on dark, see `nas.report.series`.
TONES = ("#3a8bd0", "#d9622b", "#259b78", "#b768a8", "#c2921d", "#6b7f93")


def console() -> Console:
    """Where tables are printed: the terminal at its width, a pipe or a log at a fixed one."""
    plain = Console(highlight=False)
    return plain if plain.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


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


def svg(parts: Parts, costs: Sequence[str], title: str = "") -> str:
    """The same as a picture: boxes in the order of the network, bars for the shares.

    Colours follow the page it stands in (``currentColor``); text is text.
    """
    head = 26
    height = head + ROW * len(parts) + 6
    rows = "".join(_row(parts, part, costs, head + ROW * i) for i, part in enumerate(parts))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title or "architecture")}" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="currentColor">{_legend(costs)}{rows}</svg>'
    )


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


def _legend(costs: Sequence[str]) -> str:
    marks, left = [], BARS[0]
    for name, tone in zip(costs, TONES, strict=False):
        marks.append(f'<rect x="{left}" y="8" width="9" height="9" fill="{tone}"/>')
        marks.append(f'<text x="{left + 13}" y="16">{escape(name)}</text>')
        left += 30 + 7 * len(name)
    return "".join(marks)


def _row(parts: Parts, part: Mapping[str, Any], costs: Sequence[str], top: int) -> str:
    option = part["option"]
    label = escape(_short(option or "fixed"))
    box = (
        f'<rect x="150" y="{top}" width="140" height="{ROW - 8}" rx="5" fill="none" '
        f'stroke="currentColor" stroke-opacity="{0.9 if option else 0.3}"/>'
    )
    middle = top + 15
    arrow = f'<path d="M220 {top - 8}v8" stroke="currentColor" stroke-opacity=".5"/>'
    words = (
        f'<text x="0" y="{middle}" opacity=".75">{escape(_short(part["name"]))}</text>'
        f'<text x="220" y="{middle}" text-anchor="middle">{label}</text>'
        f'<text x="302" y="{middle}" opacity=".75">{escape(output(part))}</text>'
    )
    return arrow + box + words + _bars(parts, part, costs, top)


def _bars(parts: Parts, part: Mapping[str, Any], costs: Sequence[str], top: int) -> str:
    drawn = []
    thick = (ROW - 10) / max(1, len(costs[: len(TONES)]))
    for i, (name, tone) in enumerate(zip(costs, TONES, strict=False)):
        value = share(parts, part, name)
        drawn.append(
            f'<rect x="{BARS[0]}" y="{top + i * thick:.1f}" width="{max(0.5, value * BARS[1]):.1f}"'
            f' height="{thick - 1:.1f}" fill="{tone}"><title>{escape(name)} {value:.1%}</title>'
            "</rect>"
        )
    return "".join(drawn)


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"...{text[-most + 3 :]}"
