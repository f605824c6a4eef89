"""Checks of the options a user gives for data; each error is one sentence for them."""

from collections.abc import Collection, Iterable
from math import isfinite
from pathlib import Path
from typing import Any

from nas.errors import UserError


def whole_number(option: str, value: object, least: int, why: str = "") -> int:
    """`value` as an int of at least `least`; UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        because = f" ({why})" if why else ""
        raise UserError(
            f"data.{option}={value!r} is not possible: give a whole number of at least "
            f"{least}{because}."
        )
    return value


def fraction(option: str, value: object) -> float:
    """`value` as a float strictly between 0 and 1; UserError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise UserError(
            f"data.{option}={value!r} is not possible: give a number between 0 and 1, both "
            f"excluded, such as 0.25."
        )
    return float(value)


def levels(option: str, value: Any) -> tuple[float, float]:
    """`value` as two different finite numbers; UserError otherwise."""
    numbers = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []
    if len(numbers) == 2 and all(_is_finite(number) for number in numbers):
        black, white = map(float, numbers)
        if black != white:
            return black, white
    raise UserError(
        f"data.{option}={value!r} is not possible: give the two values that mean black and "
        f"white, such as [0,4095]."
    )


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def one_of(option: str, value: object, allowed: Collection[object]) -> None:
    """UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        names = ", ".join(str(name) for name in allowed)
        raise UserError(f"data.{option}={value!r} is not known: choose one of {names}.")


def folder(root: str | Path | None, hint: str) -> Path:
    """`root` as an existing folder; UserError with `hint` on what it should hold otherwise."""
    if not root:
        raise UserError(f"data.root is not set: pass data.root=FOLDER, {hint}.")
    path = Path(str(root)).expanduser()  # `data.root=2024` arrives as a number
    if not path.is_dir():
        raise UserError(
            f"data.root={root} is not a folder (looked at {path.absolute()}): "
            f"pass data.root=FOLDER, {hint}."
        )
    return path
