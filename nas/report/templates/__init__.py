"""The templates of report.html, network.svg and card.md, and the function that fills them in."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nas.quantities import amount

FOLDER = Path(__file__).parent


def render(name: str, **values: Any) -> str:
    """The template `name` of this folder with these values; HTML and SVG escape every text."""
    return _environment().get_template(name).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=select_autoescape(("html", "svg")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "script_json": _script_json,
        "amount": amount,
        "number": "{:.6g}".format,
        "cell": _cell,
    }
    environment.globals["verbatim"] = _verbatim
    return environment


def _script_json(value: Any) -> Markup:
    """JSON inside of a `<script>`: no text in it can end the element or begin a comment."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))  # "<" stands in JSON's strings alone


def _verbatim(name: str) -> Markup:
    """A file of this folder as it is: style and script are no templates."""
    return Markup((FOLDER / name).read_text(encoding="utf-8"))


def _cell(text: object) -> str:
    """A text that stays inside of a table's cell, or a list's item, of Markdown."""
    return str(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")
