"""`Arch`: one architecture as a value, a mapping from decision name to the option taken."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nas.artifacts.files import write_atomic
from nas.artifacts.reading import RECORD, decode, parse_json, read_text
from nas.errors import UserError

Option = str | int | tuple[int, ...]

SCHEMA = 1


@dataclass(frozen=True)
class _Record:
    """The content of an arch.json."""

    schema: int
    space: str
    choices: dict[str, Option]


@dataclass(frozen=True)
class Arch:
    """A frozen mapping *decision name -> option* with the name of the space it belongs to.

    Hashable, equal by value, and canonical in JSON: the same architecture always gives the same
    text, whatever order its decisions were written in.

    Example:
        >>> import nas
        >>> arch = nas.Arch("mine", {"first": "wide", "second": "skip"})
        >>> arch == nas.Arch.from_json(arch.to_json())
        True
        >>> arch.choices["second"]
        'skip'
    """

    space: str
    choices: Mapping[str, Option]

    def __post_init__(self) -> None:
        ordered = {name: self.choices[name] for name in sorted(self.choices)}
        object.__setattr__(self, "choices", MappingProxyType(ordered))

    def __hash__(self) -> int:
        return hash((self.space, tuple(self.choices.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.space, dict(self.choices))

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this architecture in file names, caches and tables."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """The content of an arch.json."""
        return json.dumps(
            {"schema": SCHEMA, "space": self.space, "choices": dict(self.choices)}, indent=1
        )

    @classmethod
    def from_json(cls, text: str, source: str = "this text") -> "Arch":
        """Parse and validate.

        Raises:
            UserError: not JSON, another schema version, or a field of the wrong type.
        """
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise UserError(f"{source} is not JSON ({error}); expected an arch.json") from None
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found is not None and found != SCHEMA:
            raise UserError(
                f"{source} has schema {found!r}; this version of nas reads schema {SCHEMA}"
            )
        record = decode(_Record, raw, source)
        return cls(record.space, record.choices)

    def save(self, path: Path) -> None:
        """Write an arch.json, whole or not at all."""
        write_atomic(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: Path) -> "Arch":
        """Read `path` and validate it; a missing or invalid file is a `UserError`."""
        try:
            text = read_text(Path(path), RECORD)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the architecture file {path}: {error}") from None
        return cls.from_json(text, str(path))
