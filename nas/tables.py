"""CSV that a spreadsheet shows as it is, and computes nothing of."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

_FORMULA = ("=", "+", "-", "@", "\t", "\n")  # what Excel and LibreOffice take for a formula
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The table as CSV; a text that a spreadsheet would run gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def cell(value: object) -> object:
    """A number as it is; a text so that it stays one, in its cell."""
    if not isinstance(value, str):
        return value
    # `csv` puts no quotes round a carriage return, at which readers begin a new row.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
