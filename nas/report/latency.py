"""Predicted and measured latencies on the report's page: the figure that a run has brought."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nas.reading import RECORD, read_bytes
from nas.report.front import Sweep
from nas.report.labels import plural

MOST = 12  # pictures on a page; the others lie in the folders of their runs
PICTURE = "latency.png"  # in the folder of a run that searched for latency


def latencies(sweeps: Sequence[Sweep]) -> str:
    """Each run's picture, those of one profile and network once; "" where no run has any."""
    found: dict[bytes, list[str]] = {}
    for run in (run for sweep in sweeps for run in sweep.runs):
        png = _picture_of(run.path / PICTURE)
        if png is not None:
            found.setdefault(png, []).append(run.name)
    if not found:
        return ""
    pictures = "".join(_picture(png, names) for png, names in list(found.items())[:MOST])
    shown = f", the first {MOST} of them here" if len(found) > MOST else ""
    title = f"<summary>{plural(len(found), 'picture')}{shown}</summary>"
    return f"<h2>Predicted and measured latency</h2>\n<details>{title}{pictures}</details>\n"


def _picture_of(path: Path) -> bytes | None:
    """The file's content; None where it is no picture.

    A page is handed on: what a link in somebody's folder points to must not come to stand in it.
    """
    try:
        png = None if path.is_symlink() else read_bytes(path, RECORD)
    except (OSError, ValueError):
        return None
    return png if png and png.startswith(b"\x89PNG\r\n") else None


def _picture(png: bytes, names: Sequence[str]) -> str:
    text = escape(", ".join(names))
    data = b64encode(png).decode()
    return (
        f'<figure><img width="540" alt="latencies, {text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
