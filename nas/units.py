"""Quantities as people write them: "1.93 ms", "64.0 kB", "22,234"."""

from math import floor, isfinite, log10

_PREFIXES = {-12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G"}
# Unit -> the powers of ten that are usual with it; anything else is a count.
_SCALED = {"s": range(-12, 1), "J": range(-12, 4), "B": range(0, 10)}


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


def _short(value: float) -> str:
    """Three significant digits, zeros kept."""
    decimals = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:.{max(decimals, 0)}f}"
