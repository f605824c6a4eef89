"""Quantities as people write them: "1.93 ms", "64.0 kB", "22,234"; budgets: "50k", "3ms", "60%".

Metrics, too. Their names say which direction is better, so that a file of figures says all: names
that end in one of `ERRORS` are minimised, all others maximised. `nas.tasks` names them so.
"""

import re
from collections.abc import Mapping
from math import floor, isfinite, log10
from typing import Any

from nas.errors import UserError

ERRORS = ("loss", "error", "mse", "mae")  # and so rmse

_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}
# Unit -> the powers of ten that are usual with it; anything else is a count.
_SCALED = {"s": range(-12, 1), "J": range(-12, 4), "B": range(0, 10)}
# Prefix of a unit -> factor. Ki and Mi are the binary ones; a bare K is taken for k.
_FACTORS = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30,
}  # fmt: skip
# Unit of a cost -> the words for it; a count may be written without any.
_UNIT_WORDS = {"B": ("B", "byte", "bytes"), "s": ("s",), "J": ("J",)}

_SPELLED = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*")


def amount(value: float, unit: str) -> str:
    """Seconds ("s"), joules ("J") and bytes ("B") to three digits; counts in full, without unit.

    Fractions in other units, such as the mean of a count, have three digits as well.
    """
    if not isfinite(value):
        return str(value)
    if unit not in _SCALED:
        return f"{value:,.0f}" if value % 1 == 0 or abs(value) >= 1000 else _short(value)
    if unit == "B" and abs(value) < 1000:
        return f"{value:.0f} B"
    value = float(f"{value:.2e}")  # first of all: 999.9 us is 1.00 ms
    usual = [power for power in _PREFIXES if power in _SCALED[unit]]
    power = max((p for p in usual if abs(value) >= 10.0**p), default=usual[0]) if value else 0
    return f"{_short(value / 10.0**power)} {_PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """A time for people, roughly: "42 s", "3 min", "1 h 20 min"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes, -1), 60)
    return f"{hours:,} h {rest} min" if rest and hours < 10 else f"{round(minutes / 60):,} h"


def _short(value: float) -> str:
    """Three significant digits, zeros kept."""
    decimals = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:.{max(decimals, 0)}f}"


def parse_budget(name: str, text: str | float, unit: str, largest: float) -> float:
    """The budget of cost `name`, in that cost's own unit.

    Args:
        text: a number, a number with a prefix (``50k``), with prefix and unit (``64kB``, ``3ms``),
            or a share of the largest network (``60%``).
        unit: of the cost: "B", "s", "J", or a word for a count such as "parameters".
        largest: the cost of the largest network of the space.

    Raises:
        UserError: not such an amount, of another unit, or not above 0.
    """
    found = _SPELLED.fullmatch(str(text))
    value = None
    if found is not None:
        value = _value(float(found[1]), found[2], unit, largest)
    if value is None:
        raise UserError(f"budget.{name}={text} is no amount: write {_examples(unit)}")
    if not 0 < value < float("inf"):
        raise UserError(f"budget.{name}={text} must be above 0, e.g. {_examples(unit)}")
    return value


def _value(number: float, suffix: str, unit: str, largest: float) -> float | None:
    if suffix == "%":
        return number / 100 * largest
    words = _UNIT_WORDS.get(unit, (unit, ""))
    for word in sorted({*words, ""}, key=len, reverse=True):
        prefix = suffix.removesuffix(word)
        if suffix.endswith(word) and prefix in _FACTORS:
            return number * _FACTORS[prefix]
    return None


def _examples(unit: str) -> str:
    examples = {"B": "64000, 64kB, 64KiB or 60%", "s": "0.003, 3ms, 3000us or 60%"}
    examples["J"] = "0.002, 2mJ or 60%"
    return examples.get(unit, "50000, 50k, 1.5M or 60%") + " (of the largest network)"


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error itself."""
    return metric.endswith(ERRORS)


def error_of(metric: str, value: float) -> float:
    """The metric as something to minimise: an error as it is, ``-value`` of a ``*_score``, which
    has no largest value, else ``1 - value``.
    """
    if lower_is_better(metric):
        return value
    return -value if metric.endswith("_score") else 1 - value


def metric_words(metric: str, value: float) -> str:
    """Accuracies in percent with two decimals, others with four digits."""
    return f"{value:.2%}" if metric.endswith("acc") else f"{value:.4g}"


def metric_name(metric: str) -> str:
    """`test_acc` -> `test accuracy`."""
    return metric.replace("_", " ") + ("uracy" if metric.endswith("acc") else "")


def judged_by(result: Mapping[str, Any]) -> str:
    """How good the network of a result.json is: "test accuracy 97.31%, validation 97.50%"."""
    test, val = primary_metrics(result)
    shown = result["metrics"]
    said = f"{metric_name(test)} {metric_words(test, shown[test])}"
    return f"{said}, validation {metric_words(val, shown[val])}" if val in shown else said


def primary_metrics(result: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the test and validation figure that a network is judged by.

    Args:
        result: as in result.json; that of an earlier version says nothing, and is of accuracy.
    """
    primary = (result.get("task") or {}).get("primary", "acc")
    return f"test_{primary}", f"val_{primary}"
