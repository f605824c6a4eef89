"""What a configured value may be: said once, in annotations, and checked by pydantic.

The constructors that configurations name are annotated with the aliases below. `nas.config` checks
a configuration against them before anything is built, and `checked` the calls of Python users.
"""

import builtins
import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import cache, wraps
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
)
from typing import get_type_hints as type_hints

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from nas.errors import UserError

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
# Above the largest of these, counters overflow and loops do not end in a lifetime.
Count = Annotated[int, Field(ge=1, le=10**9)]
Whole = Annotated[int, Field(ge=0, le=10**9)]
Layers = Annotated[int, Field(ge=1, le=1000)]  # modules that are built one by one
Processes = Annotated[int, Field(ge=1, le=256)]
Threads = Annotated[int, Field(ge=1, le=1024)]  # the OpenMP library crashes on millions
# Epochs are added to it, and a generator takes 64 bits with a sign.
Seed = Annotated[int, Field(ge=0, lt=2**62)]

Name = Annotated[str, Field(min_length=1)]  # of a file, a folder, a column

T = TypeVar("T", bound=Callable[..., Any])

# Strict: true is no 1, "3" is no 3; but 3 is a float. NaN and infinity are no numbers to configure.
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def violation(value: object, hint: Any) -> str | None:
    """Why a configured value does not suit an annotation, "must be at least 1"; None: it does.

    The value is as from YAML: a list may stand for a tuple, text for a path, and a mapping with
    ``_target_`` for whatever its target makes.
    """
    if _is_target(value):
        return None
    try:
        _adapter(_configured(hint)).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        return _reason(error, hint)
    return None


def checked(key: str = "") -> Callable[[T], T]:
    """Decorator: a call with an argument outside the range in its annotation is a `UserError`.

    Of a class, the constructor. Arguments whose annotations have no range are left alone.

    Args:
        key: of the group in the configuration, which messages begin with.
    """

    def decorate(target: T) -> T:
        function: Any = target.__init__ if inspect.isclass(target) else target
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            hints = _ranges(function)
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in hints:
                    try:
                        _adapter(hints[name]).validate_python(_plain(value))
                    except ValidationError as error:
                        where = f"{key}.{name}".lstrip(".")
                        reason = _reason(error, hints[name])
                        raise UserError(f"{where}={short_repr(value)} {reason}") from None
            return function(*args, **kwargs)

        if not inspect.isclass(target):
            return cast(T, call)
        target.__init__ = call  # type: ignore[method-assign]
        return target

    return decorate


def _plain(value: object) -> object:
    """Hydra's own lists and mappings as Python's."""
    if isinstance(value, Mapping):
        return dict(value)
    return (
        list(value) if isinstance(value, Sequence) and not isinstance(value, str | tuple) else value
    )


def short_repr(value: object) -> str:
    """A value for a message: short, whatever it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_STRICT)


@cache
def _ranges(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in hints_of(function).items() if _has_range(hint)}


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; a name that is imported for type checkers alone is `Any`."""
    known = getattr(inspect.unwrap(function), "__globals__", {})
    names = _Names({**vars(builtins), **known})
    return type_hints(function, localns=names, include_extras=True)


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return Any


def _has_range(hint: Any) -> bool:
    if get_origin(hint) in (Annotated, Literal):
        return True
    return any(map(_has_range, get_args(hint)))


def _is_target(value: object) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _need_target(value: object) -> object:
    if not _is_target(value):
        raise ValueError("no target")
    return value


_Made = Annotated[Any, AfterValidator(_need_target)]
_SIMPLE = (int, float, str, bool, type(None), None, Any, Path)
_CONTAINERS = (Sequence, Mapping, tuple, list, dict)


@cache
def _configured(hint: Any) -> Any:
    """The annotation of what stands in a configuration for an argument annotated with `hint`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _SIMPLE or origin is Literal:
        return hint
    if origin is Annotated:
        return Annotated[_configured(arguments[0]), *arguments[1:]]
    if origin in (Union, types.UnionType):
        return Union[tuple(_configured(option) for option in arguments)]  # noqa: UP007
    if origin in (c if inspect.isclass(c) else get_origin(c) for c in _CONTAINERS):
        inner = tuple(a if a is ... else _configured(a) for a in arguments)
        return origin[inner if len(inner) > 1 else inner[0]]
    if inspect.isclass(hint) and issubclass(hint, (Enum, *_CONTAINERS)):
        return hint
    return _Made


def _reason(error: ValidationError, hint: Any) -> str:
    found = {str(one["type"]): one for one in error.errors(include_url=False)}
    null = ", or null" if type(None) in get_args(hint) else ""
    broken = [kind for kind in _BOUNDS if kind in found]
    if "string_too_short" in found:
        return "is empty: give a value, or leave it out"
    if not broken and "finite_number" not in found:
        return f"must be {described(hint)}"
    bounds = [
        f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
        for kind, (words, key) in _BOUNDS.items()
        for bound in _bounds(hint, key)
        if kind in broken or abs(bound) < 10**9  # larger ones only keep counters from overflowing
    ]
    if broken:
        return f"must be {' and '.join(bounds)}{null}"
    return f"must be {' and '.join(bounds)}, and finite{null}" if bounds else "must be finite"


def _bounds(hint: Any, key: str) -> list[Any]:
    """The bounds of one kind, ge, gt, le or lt, that an annotation has."""
    if get_origin(hint) is Annotated:
        listed = [one for field in get_args(hint)[1:] for one in getattr(field, "metadata", ())]
        return [getattr(one, key) for one in listed if hasattr(one, key)]
    return list(dict.fromkeys(b for part in get_args(hint) for b in _bounds(part, key)))


_WORDS = {
    int: ("a whole number (int)", "whole numbers (int)"),
    float: ("a number (float)", "numbers (float)"),
    str: ("text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
    Path: ("a path", "paths"),
}


def described(hint: Any, several: bool = False) -> str:
    """An annotation in words: "a whole number (int) or null"."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint][several]
    if origin is Annotated:
        return described(arguments[0], several)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(described(option, several) for option in arguments))
    kind = origin if inspect.isclass(origin) else hint
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "mappings" if several else "a mapping"
    if inspect.isclass(kind) and issubclass(kind, Sequence):
        count = f"{len(arguments)} " if kind is tuple and ... not in arguments else ""
        return f"a list of {count}{described(arguments[0], True)}" if arguments else "a list"
    return "a mapping with the key _target_"


AMOUNT = Positive | str | None  # a number, or text such as 50k
# The keys of config.yaml that are no group.
RUN: Mapping[str, Any] = {
    "seed": Seed,
    "weights": Literal["inherited", "fresh"],
    "profile": Name | None,
    "onnx": bool | None,
    "keep": Literal["supernet", "network"],
    "out": str,
    "name": str,
    "resume": bool | str,
    "trust": bool,
    "trial": bool,
    "threads": Annotated[int, Field(ge=0, le=1024)],
    "stable_epochs": Count | None,
    "callbacks": Sequence[Any] | None,
    "front": Annotated[int, Field(ge=1, le=1000)] | None,
    "speed": Literal["auto", "none", "kernels", "channels_last", "compile"],
    "arch": Name | None,
    "checkpoint": Name | None,
    "budget": Mapping[str, AMOUNT],
}


def run_violation(key: str, value: object) -> str | None:
    """As `violation`, of a key of the run, ``seed`` or ``budget.macs``; None for other keys."""
    hint = AMOUNT if key.startswith("budget.") else RUN.get(key)
    if hint is str and type(value) in (int, float):
        return None  # the name of a folder may be a number
    return None if hint is None else violation(value, hint)
