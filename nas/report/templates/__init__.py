"""How a report is written: its templates, and names, numbers and colours as a reader wants them.

The templates are those of report.html, network.svg and card.md.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from nas.quantities import amount, lower_is_better, metric_name, metric_words

FOLDER = Path(__file__).parent

# Distinct to colour-blind readers (after Okabe and Ito), legible on white and on dark.
COLOURS = ("#3a8bd0", "#d9622b", "#259b78", "#b768a8", "#c2921d", "#6b7f93")
GREYS = ("#8792a0", "#b9c0c9", "#5d6673")  # of what is no result: marks, baselines

COSTS = {
    "params": "parameters",
    "macs": "multiply-accumulates (MACs) per sample",
    "flops": "operations (FLOPs) per sample",
    "size": "stored size (bytes)",
    "peak_memory": "peak activation memory (bytes)",
    "roofline": "latency bound (s)",
    "energy": "energy per sample (J)",
    "latency": "predicted latency (s)",
    "latency_measured": "measured latency (s)",
}
UNITS = {"ms": "ms", "s": "s", "us": "µs", "bytes": "bytes", "kb": "kB", "mj": "mJ", "uj": "µJ"}


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
        "metric_name": metric_name,
        "metric_words": metric_words,
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


def cost_label(name: str) -> str:
    """`peak_bytes` -> `peak (bytes)`: the cost with its unit, for an axis."""
    stem, _, suffix = name.rpartition("_")
    unit = f"{stem.replace('_', ' ')} ({UNITS[suffix]})" if stem and suffix in UNITS else None
    return COSTS.get(name) or unit or name.replace("_", " ")


def metric_label(name: str) -> str:
    """`test_acc` -> `test accuracy (%)`, for an axis."""
    return metric_name(name) + (" (%)" if name.endswith("acc") else "")


def error_label(metric: str) -> str:
    """The name of the quantity that `error_of` returns."""
    return metric if lower_is_better(metric) else f"1 - {metric}"


def on_axis(metric: str, value: float) -> float:
    """The metric in units of the axis: accuracies in percent."""
    return 100 * value if metric.endswith("acc") else value


def metric_text(metric: str, value: float | None) -> str:
    """Accuracies in percent to two decimals, others to four digits, "-" where not measured."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if metric.endswith("acc") else f"{value:.4g}"


def cost_text(value: float | None) -> str:
    """Exact counts in full, measured costs to four digits, "-" where not measured."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
