"""Texts that the exported Python file is put together of: values, layers, forward passes.

Names that are no plain ones become string literals, or are refused: none of them becomes code.
"""

import ast
import builtins
import inspect
import keyword
import operator
import re
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import magic_methods
from torch.fx.node import _get_qualified_name

from nas.errors import UserError

OTHER_FORMAT = "use another format, such as onnx or pt2"
_OPERATORS = {  # function -> "{} + {}"
    getattr(operator, name): text
    for name, text in magic_methods.items()
    if hasattr(operator, name) and name != "getitem"
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Forward:
    """A traced graph as the text of a ``forward``: one statement for each operation."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph
        self.texts: dict[fx.Node, str] = {}
        self.used = {"self", "torch", "nn", "float", "getattr"}

    def text(self) -> str:
        inputs, lines = ["self"], list[str]()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                inputs.append(self._name(node))
            elif node.op == "output":
                lines.append(f"return {self.value(node.args[0])}")
            elif node.op == "get_attr":
                self.texts[node] = _access(str(node.target))
            elif node.target is getattr or _is_size(node):
                self.texts[node] = self.expression(node)
            else:
                expression = self.expression(node)
                lines.append(f"{self._name(node)} = {expression}")
        return "\n    ".join([f"def forward({', '.join(inputs)}):", *lines])

    def _name(self, node: fx.Node) -> str:
        name = node.name  # an identifier, and no builtin
        while name in self.used:
            name += "_"
        self.used.add(name)
        self.texts[node] = name
        return name

    def expression(self, node: fx.Node) -> str:
        """The operation itself."""
        target: Any = node.target
        args = [self.value(a) for a in node.args]
        given = [*args, *(f"{_word(k)}={self.value(v)}" for k, v in node.kwargs.items())]
        if node.op == "call_module":
            called = self.module.get_submodule(target)
            if not is_layer(called):
                # Its class has the constants that it is told written into its forward.
                bound = inspect.signature(called.forward).bind(*node.args, **node.kwargs)
                given = [self.texts[a] for a in bound.arguments.values() if isinstance(a, fx.Node)]
            return f"{_access(target)}({', '.join(given)})"
        if node.op == "call_method":
            return f"{args[0]}.{_word(target)}({', '.join(given[1:])})"
        if target in _OPERATORS:
            operands = (f"({a})" if a.startswith("-") else a for a in args)
            return _OPERATORS[target].format(*operands)
        if target is operator.getitem:
            index = node.args[1]
            items = index if isinstance(index, tuple) and index else (index,)
            return f"{args[0]}[{', '.join(map(self._index, items))}]"
        if target is getattr:
            return f"{args[0]}.{_word(str(node.args[1]))}"
        return f"{_qualified(target)}({', '.join(given)})"

    def _index(self, item: Any) -> str:
        if not isinstance(item, slice):
            return self.value(item)
        start, stop = ("" if part is None else self.value(part) for part in (item.start, item.stop))
        return f"{start}:{stop}" + ("" if item.step is None else f":{self.value(item.step)}")

    def value(self, value: Any) -> str:
        """An argument."""
        if isinstance(value, fx.Node):
            return self.texts[value]
        if isinstance(value, tuple):
            return f"({''.join(f'{self.value(item)}, ' for item in value).strip()})"
        if isinstance(value, list):
            return f"[{', '.join(map(self.value, value))}]"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.value, (value.start, value.stop, value.step)))})"
        if value is Ellipsis:
            return "..."
        if isinstance(value, torch.device):
            return f"torch.{value!r}"
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return str(value)
        return literal(value)


def _is_size(node: fx.Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and source.target is getattr


def _qualified(function: Any) -> str:
    name = _get_qualified_name(function).removeprefix("builtins.")
    known = name.startswith("torch.") or name in vars(builtins)
    if not known or not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII):
        raise UserError(
            f"the function {name!r} is none of torch, which is all that the file imports: "
            f"{OTHER_FORMAT}"
        )
    return name


def _word(name: str) -> str:
    """The name of a method or of an argument; UserError where it is no such name."""
    if not is_plain(name) and not re.fullmatch(r"__[a-z]+__", name):
        raise UserError(f"{name!r} cannot stand in Python code; {OTHER_FORMAT}")
    return name


def _access(path: str) -> str:
    """``getattr(self.a.b, "0").c`` for "a.b.0.c"."""
    text = "self"
    for name in path.split("."):
        text = f"{text}.{name}" if is_plain(name) else f"getattr({text}, {literal(name)})"
    return text


def is_plain(name: str) -> bool:
    """Whether ``self.NAME`` in a class means the attribute of this very name.

    Not where Python reads another one: outside ASCII it joins letters, and ``__x`` it mangles.
    """
    word = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return word and not name.startswith("__")


def literal(value: Any) -> str:
    """Python text of a plain value, whatever stands in it: never a name, never a call.

    Raises:
        UserError: a value of another kind.
    """
    if type(value) is float and not isfinite(value):
        return f'float("{value}")'
    try:
        plain = ast.literal_eval(repr(value))
        if plain == value:
            return repr(plain)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    raise UserError(f"a {type(value).__name__} cannot be written as Python code; {OTHER_FORMAT}")


def is_layer(module: nn.Module) -> bool:
    """Whether it is exactly one of `torch.nn`'s own layers, containers left out."""
    kind = type(module)
    return vars(nn).get(kind.__name__) is kind and kind not in _CONTAINERS


def constructor(layer: nn.Module) -> str:
    """``nn.Conv2d(1, 16, 3, padding=1)``: what builds a layer like this, with weights of its own.

    Raises:
        UserError: the layer does not tell how it was built.
    """
    kind = type(layer)
    required, options = list[Any](), dict[str, Any]()
    try:
        for name, parameter in _parameters(kind).items():
            value = _passed(getattr(layer, name), name)
            if parameter.default is parameter.empty:
                required.append(value)
            elif value != parameter.default:
                options[name] = value
        built = kind(*required, **options)
    except Exception:
        built = None
    sizes = [{k: v.shape for k, v in m.state_dict().items()} for m in (layer, built) if m]
    if str(built) != str(layer) or sizes[0] != sizes[1]:
        raise UserError(
            f"the layer {kind.__name__} cannot be written as Python code, as it does not tell how "
            f"it was built; {OTHER_FORMAT}"
        )
    words = [*map(literal, required), *(f"{k}={literal(v)}" for k, v in options.items())]
    return f"nn.{kind.__name__}({', '.join(words)})"


def _parameters(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """What the constructor takes; those of recurrent layers tell only in their common base."""
    found = dict(inspect.signature(nn.RNNBase if issubclass(kind, nn.RNNBase) else kind).parameters)
    mode = found.pop("mode") if issubclass(kind, nn.RNNBase) else None
    if kind is nn.RNN and mode is not None:
        found["nonlinearity"] = mode.replace(name="nonlinearity", default="tanh")
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    left_out = ("device", "dtype")
    return {k: p for k, p in found.items() if k not in left_out and p.kind not in variable}


def _passed(value: Any, name: str) -> Any:
    """What was passed for what is stored: True for a bias, 3 for (3, 3)."""
    if isinstance(value, Tensor) or name == "bias":
        return value is not None and value is not False
    equal = isinstance(value, tuple) and len(set(value)) == 1 and name != "normalized_shape"
    return value[0] if equal else value
