"""A traced graph as the statements of a ``forward``."""

import builtins
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import _get_qualified_name

from nas.errors import UserError
from nas.export.layers import is_plain, literal

_INFIX: dict[Any, str] = {
    operator.add: "+",
    operator.iadd: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.imul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
}


def statements(graph: fx.Graph) -> tuple[list[str], list[str]]:
    """Names of the inputs, and the lines of the body, which end in a return."""
    return _Writer(graph).write()


class _Writer:
    """Names values, reuses a name whose value is used up, and joins chains of operations."""

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self.texts: dict[fx.Node, str] = {}
        self.names: dict[fx.Node, str] = {}

    def write(self) -> tuple[list[str], list[str]]:
        inputs: list[str] = []
        lines: list[str] = []
        for node in self.nodes:
            if node.op == "placeholder":
                self.names[node] = self.texts[node] = str(node.target)
                inputs.append(str(node.target))
            elif node.op == "output":
                lines.append(f"return {self.text(node.args[0])}")
            elif self._inline(node):
                self.texts[node] = self.expression(node)
            else:
                expression = self.expression(node)
                self.names[node] = self.texts[node] = self._name(node)
                lines.append(f"{self.texts[node]} = {expression}")
        return inputs, lines

    def _inline(self, node: fx.Node) -> bool:
        """Attributes, sizes, and what only the next operation uses, modules left out."""
        if node.op == "get_attr" or node.target is getattr:
            return True
        if node.target is operator.getitem and node.args[0].target is getattr:  # type: ignore[union-attr]
            return True
        following = self.nodes[self.at[node] + 1 :]
        others = (n for n in following if n.target is not getattr and n.op != "get_attr")
        following_one = next((n for n in others if not self._is_size(n)), None)
        if following_one is None or list(node.users) != [following_one]:
            return False
        return following_one.op == "output" or node.op != "call_module"

    def _is_size(self, node: fx.Node) -> bool:
        source = node.args[0] if node.target is operator.getitem else None
        return isinstance(source, fx.Node) and source.target is getattr

    def _name(self, node: fx.Node) -> str:
        """The name of an input that is used up here, or a new one."""
        taken = {name for n, name in self.names.items() if self._live(n, self.at[node])}
        for source in node.all_input_nodes:
            name = self.names.get(source)
            if name and name not in taken:
                return name
        base = str(node.target).rpartition(".")[2] if node.op == "call_module" else str(node.name)
        if not is_plain(base):
            base = "y"
        # Not the name of a dead value either: `x` stays the input for a reader.
        used = {*self.names.values(), "self", "torch", "nn", "float", "getattr"}
        options = [base, *(f"{base}{i}" for i in range(2, len(self.nodes) + 2))]
        return next(option for option in options if option not in used)

    def _live(self, node: fx.Node, at: int) -> bool:
        """Whether the value is still needed after operation `at`, through inlined ones too."""
        later = any(self.at[user] > at for user in node.users)
        inlined = (user for user in node.users if self.at[user] < at and user not in self.names)
        return later or any(self._live(user, at) for user in inlined)

    def expression(self, node: fx.Node) -> str:
        """The operation itself."""
        args = [self.text(a) for a in node.args]
        named = [f"{_word(k)}={self.text(v)}" for k, v in node.kwargs.items()]
        if node.op == "get_attr":
            return _access(str(node.target))
        if node.op == "call_module":
            if node.meta.get("layer"):
                return f"{_access(str(node.target))}({', '.join([*args, *named])})"
            # A class of its own has what it is told besides tensors written into its forward. Not
            # `all_input_nodes`: a module may be given one tensor twice.
            given = (*node.args, *node.kwargs.values())
            tensors = [self.text(a) for a in given if isinstance(a, fx.Node)]
            return f"{_access(str(node.target))}({', '.join(tensors)})"
        if node.op == "call_method":
            method = _word(str(node.target))
            return f"{_bracketed(args[0])}.{method}({', '.join([*args[1:], *named])})"
        return self._function(node, args, named)

    def _function(self, node: fx.Node, args: list[str], named: list[str]) -> str:
        target: Any = node.target
        if target in _INFIX:
            return f"{_bracketed(args[0])} {_INFIX[target]} {_bracketed(args[1])}"
        if target is operator.getitem:
            index = node.args[1]
            items = index if isinstance(index, tuple) else (index,)
            return f"{_bracketed(args[0])}[{', '.join(map(self._index, items))}]"
        if target is getattr:
            return f"{_bracketed(args[0])}.{_word(str(node.args[1]))}"
        return f"{_qualified(target)}({', '.join([*args, *named])})"

    def _index(self, item: Any) -> str:
        if not isinstance(item, slice):
            return self.text(item)
        parts = ["" if part is None else self.text(part) for part in (item.start, item.stop)]
        step = [] if item.step is None else [self.text(item.step)]
        return ":".join([*parts, *step])

    def text(self, value: Any) -> str:
        """An argument."""
        if isinstance(value, fx.Node):
            return self.texts[value]
        if isinstance(value, tuple):
            inside = ", ".join(map(self.text, value))
            return f"({inside},)" if len(value) == 1 else f"({inside})"
        if isinstance(value, list):
            return f"[{', '.join(map(self.text, value))}]"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self.text, (value.start, value.stop, value.step)))})"
        if value is Ellipsis:
            return "..."
        if isinstance(value, torch.device):
            return f"torch.{value!r}"
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return str(value)
        return literal(value)


def _qualified(function: Callable[..., Any]) -> str:
    name = _get_qualified_name(function).removeprefix("builtins.")
    known = name.startswith("torch.") or name in vars(builtins)
    if not known or not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII):
        raise UserError(
            f"the function {name!r} is none of torch, and the file imports only torch: use another "
            "format, such as onnx or pt2"
        )
    return name


def _word(name: str) -> str:
    """The name of a method or of an argument; UserError where it is no such name."""
    if not is_plain(name) and not re.fullmatch(r"__[a-z]+__", name):
        raise UserError(f"{name!r} cannot stand in Python code; use another format, such as onnx")
    return name


def _access(path: str) -> str:
    """``getattr(self.a.b, "0").c`` for "a.b.0.c"."""
    text = "self"
    for name in path.split("."):
        text = f"{text}.{name}" if is_plain(name) else f"getattr({text}, {literal(name)})"
    return text


def _bracketed(text: str) -> str:
    return f"({text})" if _loose(text) else text


def _loose(text: str) -> bool:
    """Whether an operator stands outside all brackets."""
    depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == " " and depth == 0:
            return True
    return False
