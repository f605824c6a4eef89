"""A table that prints 80 columns wide, and is a table in a notebook."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 80  # columns


@dataclass(frozen=True)
class Grid:
    """Lines of text above a table.

    Args:
        lines: above it.
        head: names of the columns.
        rows: their cells.
        left: columns set to the left, those of text.
        folded: columns whose cells may take several lines.
        shortened: column -> most letters of a cell, which ends in dots where it has more.
    """

    lines: Sequence[str]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ()
    folded: Collection[str] = ()
    shortened: Mapping[str, int] = field(default_factory=dict)

    def text(self) -> str:
        """For a terminal."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for name in self.head:
            table.add_column(
                name,
                justify="left" if name in self.left else "right",
                overflow="ellipsis" if name in self.shortened else "fold",
                max_width=self.shortened.get(name),
                no_wrap=name not in (*self.folded, *self.shortened),
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        out = StringIO()
        console = Console(file=out, width=WIDTH, color_system=None, force_jupyter=False)
        console.print(*map(Text, self.lines), table, sep="\n")
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def html(self) -> str:
        """For a notebook."""
        sides = ["left" if name in self.left else "right" for name in self.head]
        made = []
        for tag, row in (("th", self.head), *(("td", row) for row in self.rows)):
            cells = zip(sides, map(escape, row), strict=True)
            line = "".join(f'<{tag} style="text-align: {side}">{x}</{tag}>' for side, x in cells)
            made.append(f"<tr>{line}</tr>")
        return f"<p>{'<br>'.join(map(escape, self.lines))}</p><table>{''.join(made)}</table>"
