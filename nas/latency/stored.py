"""Reading fitted models back from JSON: plain values only, each checked."""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from nas.errors import UserError


class Stored:
    """A JSON object whose fields are asked for by name and type.

    Args:
        raw: what was read.
        what: the object's name in messages.

    Raises:
        UserError: here and in every method: missing, or not of the type asked for.
    """

    def __init__(self, raw: object, what: str) -> None:
        self.what = what
        if not isinstance(raw, Mapping):
            raise UserError(f"{what} must be an object, not {type(raw).__name__}")
        self._raw: Mapping[Any, Any] = raw

    def optional(self, key: str) -> "Stored | None":
        """An object that may be absent or null."""
        value = self._raw.get(key)
        return None if value is None else Stored(value, f"{self.what}: {key}")

    def number(self, key: str) -> float:
        return self._number(self._get(key), key)

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def flag(self, key: str) -> bool:
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, value, "a list of texts")
        return tuple(value)

    def numbers(self, key: str, count: int | None = None) -> tuple[float, ...]:
        value = self._get(key)
        if not isinstance(value, list) or count not in (None, len(value)):
            wanted = "a list of numbers" if count is None else f"a list of {count} numbers"
            raise self._wrong(key, value, wanted)
        return tuple(self._number(item, key) for item in value)

    def table(self, key: str) -> dict[str, float]:
        value = self._get(key)
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, "an object of numbers")
        return {str(name): self._number(item, f"{key}.{name}") for name, item in value.items()}

    def child(self, key: str) -> "Stored":
        return Stored(self._get(key), f"{self.what}.{key}")

    def __iter__(self) -> Iterator[str]:
        return map(str, self._raw)

    def _get(self, key: str) -> Any:
        if key not in self._raw:
            raise UserError(f"{self.what} lacks {key!r}; it has {sorted(map(str, self._raw))}")
        return self._raw[key]

    def _number(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self._wrong(key, value, "a finite number")
        return float(value)

    def _wrong(self, key: str, value: object, wanted: str) -> UserError:
        shown = repr(value)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        return UserError(f"{self.what}: {key}={shown} must be {wanted}")
