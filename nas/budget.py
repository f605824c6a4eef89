"""Budgets as people write them: ``50k``, ``5M``, ``64kB``, ``3ms``, ``60%``."""

import re

from nas.errors import UserError

# Prefix of a unit -> factor. Ki and Mi are the binary ones; a bare K is taken for k.
PREFIXES = {
    "": 1.0, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30,
}  # fmt: skip
# Unit of a cost -> the words for it; a count may be written without any.
WORDS = {"B": ("B", "byte", "bytes"), "s": ("s",), "J": ("J",)}

_SPELLED = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*")


def parse(name: str, text: str | float, unit: str, largest: float) -> float:
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
    words = WORDS.get(unit, (unit, ""))
    for word in sorted({*words, ""}, key=len, reverse=True):
        prefix = suffix.removesuffix(word)
        if suffix.endswith(word) and prefix in PREFIXES:
            return number * PREFIXES[prefix]
    return None


def _examples(unit: str) -> str:
    examples = {"B": "64000, 64kB, 64KiB or 60%", "s": "0.003, 3ms, 3000us or 60%"}
    examples["J"] = "0.002, 2mJ or 60%"
    return examples.get(unit, "50000, 50k, 1.5M or 60%") + " (of the largest network)"
