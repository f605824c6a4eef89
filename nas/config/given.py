"""What is given from Python: settings as overrides of the command line, and objects as they are.

A configuration is text. Where an object was given it says of what kind that is, and the object
itself is found by its key, as long as the call lasts that it was given to.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from nas.config.compose import parse_overrides, value_of
from nas.errors import UserError

TARGET = "nas.config.given.given"

_objects: ContextVar[Mapping[str, Any]] = ContextVar("objects", default={})  # noqa: B039


@dataclass
class Given:
    """The keywords of a call, sorted.

    A keyword is a key of the command line with ``__`` for each dot; a mapping sets the keys below
    its own, or describes an object, if it has ``_target_``.

    Attributes:
        words: ``key=value`` overrides.
        nodes: key -> mapping with ``_target_``, or one with keys that no override can hold.
        objects: key -> object.
    """

    words: list[str] = field(default_factory=list)
    nodes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, value: Any) -> None:
        """One keyword.

        Raises:
            UserError: a list that holds an object.
        """
        key = key.replace("__", ".")
        if isinstance(value, Mapping) and "_target_" in value:
            self.nodes[key] = value
        elif isinstance(value, Mapping) and not (
            "." in key and _is_settings(value) and not _has_dots(value)
        ):
            for name, child in value.items():
                self.add(f"{key}.{name}", child)
        elif isinstance(value, Mapping) and not _is_written(value):
            self.nodes[key] = _basic(value)
        elif is_plain(value):
            self.words.append(f"{key}={_text(value)}")
        else:
            self.objects[key] = value

    @property
    def asked(self) -> list[str]:
        """All of it as ``key=value``, for result.json; an object as its kind."""
        kinds = {key: kind_of(one) for key, one in self.objects.items()}
        made = {
            key: yaml.safe_dump(_basic(node), default_flow_style=True, sort_keys=False).strip()
            for key, node in self.nodes.items()
        }
        return [*self.words, *(f"{key}={text}" for key, text in {**made, **kinds}.items())]

    @property
    def described(self) -> dict[str, Mapping[str, Any]]:
        """Key -> what stands in the configuration for each node and each object."""
        stands = {
            key: {"_target_": TARGET, "key": key, "kind": kind_of(one), "sizes": _alike(key, one)}
            for key, one in self.objects.items()
        }
        return {**self.nodes, **stands}

    def complete(self, config: DictConfig) -> None:
        """Set in a composed configuration what no override can."""
        for key, node in self.described.items():
            # A mapping of settings keeps what else is there, as an override does.
            adds = "_target_" not in node
            OmegaConf.update(config, key, dict(node), merge=adds, force_add=True)


def given(key: str, kind: str, sizes: str = "") -> Any:
    """The object that was given for `key`; a configuration names this function in its place.

    Args:
        key: of the configuration.
        kind: of the object, for messages.
        sizes: a hash of its tensors' names and shapes, and of a network's values, so that a run
            goes on with one alike.

    Raises:
        UserError: none is given now.
    """
    if key not in _objects.get():
        name = {"data.source": "data", "space.model": "model"}.get(key, key)
        raise UserError(
            f"{name} was given from Python ({kind}), and a run's folder does not hold it: give it "
            f"again, nas.open_run(FOLDER, {name.replace('.', '__')}=...)"
        )
    return _objects.get()[key]


@contextmanager
def giving(objects: Mapping[str, Any]) -> Iterator[None]:
    """Inside, `given` finds these, key -> object."""
    token = _objects.set(objects)
    try:
        yield
    finally:
        _objects.reset(token)


def kind_of(value: Any) -> str:
    """The class of an object, or the name of a class or function."""
    if isinstance(value, partial):
        return kind_of(value.func)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}".removeprefix("builtins.")


def _alike(key: str, value: Any) -> str:
    """A hash of the names and shapes of what tensors or arrays there are; "": none.

    Of a network that is made smaller also of its values: another training is another network.
    """
    if callable(getattr(value, "state_dict", None)):
        from torch.nn.parameter import is_lazy

        found: Any = {name: one for name, one in value.state_dict().items() if not is_lazy(one)}
    else:
        found = value if isinstance(value, Mapping | list | tuple) else [value]
    items = found.items() if isinstance(found, Mapping) else enumerate(found)
    tensors = [(name, one) for name, one in items if hasattr(one, "shape")]
    digest = hashlib.sha256(repr([(name, tuple(one.shape)) for name, one in tensors]).encode())
    if key == "space.model":
        import torch

        for _, one in tensors:
            if not one.is_meta:  # refused later
                flat = one.detach().cpu().flatten()
                digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:16] if tensors else ""


def is_plain(value: Any) -> bool:
    """Whether it can be written on a command line."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(map(is_plain, (*value, *value.values())))
    return value is None or isinstance(value, bool | Real | str | Path)


def _is_settings(value: Mapping[str, Any]) -> bool:
    """Whether all below can be set at once, which a key needs that is null so far."""
    below = [one for one in value.values() if isinstance(one, Mapping)]
    return is_plain(value) and "_target_" not in value and all(map(_is_settings, below))


def _has_dots(value: Mapping[str, Any]) -> bool:
    """Whether its keys are those of settings, ``__`` for a dot; patterns of layers stay."""
    return all(str(name).isidentifier() for name in value) and any(
        "__" in str(name) for name in value
    )


def _is_written(value: Mapping[Any, Any]) -> bool:
    """Whether an override holds it: the grammar has no quotes for the keys of a mapping."""
    try:
        (override,) = parse_overrides([f"key={_text(value)}"])
    except UserError:
        return False
    return repr(value_of(override)) == repr(_basic(value))  # also of which type the keys are


def _basic(value: Any) -> Any:
    """A plain value of Python's own types, as the command line gives it."""
    if isinstance(value, Mapping):
        return {name: _basic(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_basic(one) for one in value]
    (override,) = parse_overrides([f"key={_text(value)}"])
    return value_of(override)


def _text(value: Any) -> str:
    """A plain value in the grammar of the command line, which is also YAML."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {_text(one)}' for name, one in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(map(_text, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Real):  # also those of NumPy, whose repr says of what kind they are
        return repr(int(value) if isinstance(value, Integral) else float(value))
    return str(value) if _reads_as_itself(str(value)) else _quoted(str(value))


def _reads_as_itself(text: str) -> bool:
    try:
        (override,) = parse_overrides([f"key={text}"])
    except UserError:
        return False
    # In a list a bracket or a comma would end it.
    return not set(text) & set(",[]{}:") and str(value_of(override)) == value_of(override) == text


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
