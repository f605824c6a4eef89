"""A layer of `torch.nn` as the text that builds it: ``nn.Conv2d(1, 16, 3, padding=1)``."""

import inspect
import json
import keyword
from math import isfinite
from typing import Any

from torch import Tensor, nn

from nas.errors import UserError


def is_layer(module: nn.Module) -> bool:
    """Whether it is exactly one of `torch.nn`'s own layers, containers left out."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return vars(nn).get(type(module).__name__) is type(module) and type(module) not in containers


def constructor(layer: nn.Module) -> str:
    """The expression that builds a layer like this one, with weights of its own.

    Raises:
        UserError: the layer does not tell how it was built.
    """
    kind = type(layer)
    required, options = _arguments(layer)
    try:
        built = kind(*required, **options)
    except Exception:
        raise _unknown(layer) from None
    mine, other = ({k: v.shape for k, v in m.state_dict().items()} for m in (layer, built))
    if str(built) != str(layer) or mine != other:
        raise _unknown(layer)
    words = [literal(value) for value in required]
    words += [f"{name}={literal(value)}" for name, value in options.items()]
    return f"nn.{kind.__name__}({', '.join(words)})"


def _arguments(layer: nn.Module) -> tuple[list[Any], dict[str, Any]]:
    required: list[Any] = []
    options: dict[str, Any] = {}
    for name, parameter in _parameters(type(layer)).items():
        if name in ("device", "dtype") or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        if not hasattr(layer, name):
            raise _unknown(layer)
        value = _plain(getattr(layer, name), name)
        if parameter.default is parameter.empty:
            required.append(value)
        elif value != parameter.default:
            options[name] = value
    return required, options


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What the constructor takes; those of recurrent layers tell only in their common base."""
    found = dict(inspect.signature(kind).parameters)
    if issubclass(kind, nn.RNNBase):
        found = dict(inspect.signature(nn.RNNBase).parameters)
        mode = found.pop("mode")
        if kind is nn.RNN:
            found["nonlinearity"] = mode.replace(name="nonlinearity", default="tanh")
    return found


def _plain(value: Any, name: str) -> Any:
    """What was passed for what is stored: True for a bias, 3 for (3, 3)."""
    if isinstance(value, Tensor) or name == "bias":
        return value is not None and value is not False
    equal = isinstance(value, tuple) and len(set(value)) == 1 and name != "normalized_shape"
    return value[0] if equal else value


def literal(value: Any) -> str:
    """Python text of a plain value, whatever stands in it: never a name, never a call.

    Raises:
        UserError: a value of another kind.
    """
    if type(value) is str:
        return json.dumps(value, ensure_ascii=False) if value.isprintable() else ascii(value)
    if isinstance(value, tuple):
        inside = ", ".join(map(literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) is list:
        return f"[{', '.join(map(literal, value))}]"
    if type(value) is float and not isfinite(value):
        return f'float("{value}")'
    if value is None or type(value) in (bool, int, float):
        return repr(value)
    kind = type(value).__name__
    raise UserError(f"a {kind} cannot be written as Python code; use another format, such as onnx")


def is_plain(name: str) -> bool:
    """Whether ``self.NAME`` in a class means the attribute of this very name.

    Not where Python reads another one: outside ASCII it joins letters, and ``__x`` it mangles.
    """
    word = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return word and not name.startswith("__")


def _unknown(layer: nn.Module) -> UserError:
    return UserError(
        f"the layer {type(layer).__name__} cannot be written as Python code, as it does not tell "
        "how it was built; use another format, such as onnx or pt2"
    )
