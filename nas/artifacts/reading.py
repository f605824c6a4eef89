"""Files that somebody else may have made, read within bounds: their size, their depth, their form.

Functions raise OSError or ValueError, for the caller to say what the file should have been, but for
`decode`, which says it.
"""

import csv
import io
import json
import os
import stat
import zipfile
from functools import cache
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar, cast

from nas.errors import UserError

T = TypeVar("T")

MB = 1 << 20
CONFIG, RECORD, PROFILE, TABLE = MB // 2, 16 * MB, 64 * MB, 256 * MB  # bytes of a file of each kind
DEPTH = 64  # objects and lists inside one another


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no plain file: reading a pipe or a device may never end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no plain file")
    with Path(path).open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most / MB:g} MB, the most read of such a file")
    return content


def read_text(path: Path, most: int) -> str:
    """As `read_bytes`, of UTF-8 text; a byte order mark is left out."""
    return read_bytes(path, most).decode("utf-8-sig")


def read_json(path: Path, most: int = RECORD, finite: bool = True) -> Any:
    """The value in a JSON file; see `parse_json`."""
    return parse_json(read_text(path, most), finite)


def parse_json(text: str, finite: bool = True) -> Any:
    """The value of a JSON text that has one meaning and can be written again.

    Args:
        finite: refuse NaN and infinity, which Python writes and JSON has not.

    Raises:
        ValueError: no JSON, a key twice in an object, half a surrogate pair, or more than `DEPTH`
            objects and lists inside one another.
    """
    numbers: dict[str, Any] = {"parse_constant": _constant, "parse_float": _number}
    try:
        value = json.loads(text, object_pairs_hook=_object, **(numbers if finite else {}))
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} deep") from None
    _check_depth(value)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def decode(kind: type[T], value: Any, where: str) -> T:
    """A dataclass, or another typed object, from JSON values, every field checked.

    Args:
        where: the name of the file, for messages.

    Raises:
        UserError: names the first field that is missing or wrong, its value, and what it must be.
    """
    from pydantic import ValidationError

    try:
        # From text: there a list may become a tuple, and yet "1" is no number.
        found: T = _adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True)
        return found
    except ValidationError as error:
        first = error.errors()[0]
        keys = [f"[{part!r}]" if i else str(part) for i, part in enumerate(first["loc"])]
        given = "" if first["type"] == "missing" else f"={_short(first['input'])}"
        raise UserError(f"{where}: {''.join(keys)}{given}: {first['msg']}") from None


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEPTH + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {DEPTH} deep")


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a CSV file, each with its number; those without any cell are left out.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, no UTF-8, or no CSV.
    """
    reader = csv.reader(io.StringIO(read_text(path, TABLE), newline=""))
    try:
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None


def read_config(path: Path) -> str:
    """The text of a YAML file, safe to give to a YAML parser.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, no UTF-8, no YAML, too deep, or with aliases, by which a short text
            stands for a value that fills the memory.
    """
    import yaml

    text = read_text(path, CONFIG)
    loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"line {event.start_mark.line + 1} has an alias, *{event.anchor}")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ValueError(f"it is nested more than {DEPTH} deep")
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return text


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain values, and nothing is executed.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else, is damaged, or would unpack to more than its size.
    """
    import torch

    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # which advises to load it without this guard
        raise ValueError("it is damaged or holds more than tensors") from None
    except Exception as error:  # of a damaged file the parser may raise anything
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"it is damaged or holds more than tensors: {reason}") from None


def _check_archive(path: Path) -> None:
    """torch stores and never compresses; what is compressed may be small and fill the memory."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is no plain file")
    with Path(path).open("rb") as file:
        # torch looks at the first bytes, zipfile at the last ones.
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("it is no file of torch.save")
        try:
            members = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ValueError(f"it is damaged: {error}") from None
        packed = [member for member in members if member.compress_type != zipfile.ZIP_STORED]
        size = file.seek(0, os.SEEK_END)
    if packed or sum(member.file_size for member in members) > size:
        raise ValueError("it unpacks to more than its size, which no file of torch.save does")
