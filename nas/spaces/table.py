"""The rows of a staged space as a user writes them, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from nas.errors import UserError

Row = TypeVar("Row", "Stage", "Stem", "Head")


@dataclass(frozen=True)
class Stage:
    """`repeat` blocks of one width; the first has the stride and the change of channels.

    Several `channels`, or several depths in place of `repeat`, are searched; `activation` is that
    of the ops of this stage, instead of the space's.

    `ops` as a mapping, label -> form, are one decision for all blocks of the stage, and so are
    `factors`, each label -> text that stands for ``{factor}`` in the forms, and `skip`: what is
    added beside the op where the shape stays, of "none" and names of ops without weights.
    """

    ops: Sequence[str] | Mapping[str, str]
    channels: int | Sequence[int]
    stride: int = 1
    repeat: int = 1
    depth: Sequence[int] | None = None
    activation: str | None = None
    factors: Mapping[str, Mapping[str, object]] | None = None
    skip: Sequence[str] | None = None

    @property
    def shared(self) -> bool:
        """Whether the blocks of the stage are all alike."""
        return isinstance(self.ops, Mapping)

    @property
    def blocks(self) -> int:
        """How many blocks the supernet has here."""
        return self.depth[-1] if self.depth else self.repeat


@dataclass(frozen=True)
class Stem:
    """A fixed convolution, BatchNorm and activation before the stages."""

    channels: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class Head:
    """A fixed 1x1 convolution to `features` channels after the stages; None: no such layer.

    `mix`: features of a second one, without BatchNorm, after the pooling, as in MobileNetV3.
    """

    features: int | None = None
    mix: int | None = None


def read_stages(stages: Sequence[Mapping[str, Any]]) -> list[Stage]:
    """The table, one `Stage` a row.

    Raises:
        UserError: no rows, or a key or a value that cannot be, naming the stage.
    """
    if isinstance(stages, str | Mapping) or not isinstance(stages, Sequence) or not stages:
        raise UserError(f"stages must be a list of at least one stage, got {stages!r}")
    return [read_row(Stage, row, f"stage {s}") for s, row in enumerate(stages)]


def read_row(kind: type[Row], row: Mapping[str, Any], where: str) -> Row:
    """A `kind` of the values in `row`.

    Raises:
        UserError: unknown or missing key, or a bad value; `where` begins the message.
    """
    allowed = {field.name: field for field in fields(kind)}
    if not isinstance(row, Mapping):
        raise UserError(f"{where} must be a mapping with keys of {list(allowed)}, got {row!r}")
    for key in row:
        if key not in allowed:
            close = get_close_matches(str(key), allowed, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise UserError(f"{where} has an unknown key {key!r}{hint}; allowed: {list(allowed)}")
    for key, field in allowed.items():
        if key not in row and field.default is MISSING:
            raise UserError(f"{where} lacks the key {key!r}, got only {list(row)}")
    for key, value in row.items():
        _check_value(key, value, row, allowed[key].default is None, where)
    return kind(**row)


def _check_value(
    key: str, value: object, row: Mapping[str, Any], optional: bool, where: str
) -> None:
    if key == "ops" and isinstance(value, Mapping):
        _check_labels(value, f"{where}: ops")
    elif key in ("factors", "skip"):
        _check_shared(key, value, row, where)
    elif key == "ops":
        _check_ops(value, where)
    elif key == "activation":
        pass  # the op it is given to knows which there are
    elif key == "depth" or (key == "channels" and isinstance(value, list | tuple)):
        _check_ascending(key, value, row, where)
    elif value is not None or not optional:
        check_positive(value, f"{where}: {key}", _MOST.get(key, 10**9))


# Blocks are built one by one, and a kernel of a thousand is no kernel.
_MOST = {"repeat": 1000, "kernel": 999, "stride": 1000}


def check_positive(value: object, what: str, most: int = 10**9) -> None:
    """Raises UserError unless `value` is a whole number from 1 to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{what} must be a whole number of at least 1, got {value!r}")
    if value > most:
        raise UserError(f"{what} must be at most {most}, got {value}")


def _check_ascending(key: str, value: object, row: Mapping[str, Any], where: str) -> None:
    if value is None and key == "depth":
        return
    whole = isinstance(value, Sequence) and all(type(n) is int and n > 0 for n in value)
    if not whole or not value or list(value) != sorted(set(value)):  # type: ignore[call-overload]
        raise UserError(
            f"{where}: {key} must be whole numbers of at least 1 in ascending order, "
            f"e.g. [2, 3, 4], got {value!r}"
        )
    if key == "depth" and "repeat" in row:
        raise UserError(f"{where}: give either repeat (fixed) or depth (searched), not both")


def _check_shared(key: str, value: object, row: Mapping[str, Any], where: str) -> None:
    if value is None:
        return
    if not isinstance(row.get("ops"), Mapping):
        raise UserError(f"{where}: {key} needs ops as a mapping, e.g. {{conv: conv_k3}}")
    if key == "skip":
        _check_ops(value, where, "skip", "[none, identity]")
        return
    if not isinstance(value, Mapping) or not value:
        raise UserError(
            f"{where}: factors must be a mapping, e.g. {{kernel: {{k3: 3, k5: 5}}}}, got {value!r}"
        )
    for name, labels in value.items():
        _check_labels(labels, f"{where}: factor {name}")
        if name in ("op", "skip", "channels", "depth"):
            raise UserError(f"{where}: a factor cannot be called {name!r}, which is another choice")
        if not any(f"{{{name}}}" in str(form) for form in row["ops"].values()):
            raise UserError(f"{where}: no form in ops has {{{name}}}, so this factor does nothing")


def _check_labels(labels: object, where: str) -> None:
    if not isinstance(labels, Mapping) or not labels:
        raise UserError(f"{where} must be a mapping of labels, e.g. {{k3: 3}}, got {labels!r}")
    texts = [str(text) for text in labels.values()]
    for label, text in labels.items():
        if not isinstance(label, str) or not label or "." in label:
            raise UserError(f"{where}: label {label!r} must be a word without a dot, e.g. k3")
        if texts.count(str(text)) > 1:
            raise UserError(f"{where}: {text!r} has more than one label")


def _check_ops(ops: object, where: str, key: str = "ops", example: str = "[conv_k3]") -> None:
    if isinstance(ops, str) or not isinstance(ops, Sequence) or not ops:
        raise UserError(f"{where}: {key} must be a list of names, e.g. {example}, got {ops!r}")
    double = [name for i, name in enumerate(ops) if name in ops[:i]]
    if double:
        raise UserError(f"{where}: op {double[0]!r} is listed more than once")
