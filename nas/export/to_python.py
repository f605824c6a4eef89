"""A network as one readable Python file that imports only torch.

Each kind of module becomes a class with its ``forward`` (traced, with what is fixed written out),
the network one expression of such classes and layers of `torch.nn`. Names are kept, so that the
state dict of the network fits the file. Of names only plain ones stand in the code; all others are
string literals.
"""

import ast
import builtins
import re
from collections.abc import Iterable, Mapping
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.errors import UserError
from nas.export.python_code import OTHER_FORMAT, Forward, constructor, is_layer, is_plain, literal
from nas.export.tracing import graph_of, regular_calls
from nas.supernet.inplace import guard_of

_FILE_NAMES = ("torch", "nn", "Path", "OrderedDict", "Parts", "build", "load")  # of the file itself

_FILE = '''"""{about}

Needs only torch, and {weights} beside it.

    network = load()
    logits = network(x)  # (N, *INPUT_SHAPE) -> (N, len(CLASSES)); x = (image in 0..1 - MEAN) / STD
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

{values}


class Parts(nn.Module):
    """Layers, parameters and buffers by their names."""

    def __init__(self, /, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


{classes}


def build() -> nn.Module:
    """The network, not trained."""
    return {body}


def load(weights: str | Path = Path(__file__).with_name("{weights}")) -> nn.Module:
    """The trained network in eval mode; only tensors are read from the file."""
    network = build()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network.eval()
'''


def python_source(
    network: nn.Module, example: Tensor, about: str, constants: Mapping[str, Any], weights: str
) -> str:
    """The file's text.

    Args:
        network: in eval mode.
        example: an input ``(N, ...)``, N at least 2; sizes but N's are fixed in the code.
        about: first line of the file's docstring.
        constants: NAME -> value, written at the top.
        weights: name of the file beside it that holds the state dict.

    Raises:
        UserError: something in the network cannot be written as code; the message names it.
    """
    writer = _Writer(network, example, constants)
    body = indent(writer.build(network, "Network"), "    ").lstrip()
    text = _FILE.format(
        about=about.replace("\\", "/").replace('"', "'"),
        values="\n".join(f"{name} = {literal(value)}" for name, value in constants.items()),
        classes="\n\n\n".join(
            f"class {name}(Parts):\n{indent(forward, '    ')}"
            for forward, name in writer.classes.items()
        ),
        body=body,
        weights=weights,
    )
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f"the network cannot be written as Python code ({error}): {OTHER_FORMAT}"
        ) from None
    return text


class _Writer:
    """Collects classes while it writes the tree of modules.

    Attributes:
        classes: text of a ``forward`` -> name of its class.
    """

    def __init__(self, network: nn.Module, example: Tensor, constants: Iterable[str]) -> None:
        self.calls = regular_calls(network, example)
        self.reserved = {*_FILE_NAMES, *vars(builtins), *constants}
        self.classes: dict[str, str] = {}

    def build(self, module: nn.Module, name: str = "") -> str:
        """The expression that builds `module`."""
        if is_layer(module):
            return constructor(module)
        # Not `named_children`, which leaves out a module that stands there twice.
        children = {k: m for k, m in module._modules.items() if m is not None}
        parts = {key: self.build(child) for key, child in children.items()}
        named = _named(parts)
        if type(module) is nn.ModuleDict:
            return _block("nn.ModuleDict({", named, "})")
        if type(module) is nn.ModuleList:
            return _block("nn.ModuleList([", parts.values(), "])")
        graph = self._graph(module)
        if isinstance(module, nn.Sequential) and _is_chain(module, list(children.values()), graph):
            if list(parts) == [str(i) for i in range(len(parts))]:
                return _block("nn.Sequential(", parts.values(), ")")
            return _block("nn.Sequential(OrderedDict({", named, "}))")
        parts |= _own_tensors(module)
        kind = "Parts" if graph is None else self._class(module, graph, name)
        if all(map(is_plain, parts)):
            return _block(f"{kind}(", [f"{key}={part}" for key, part in parts.items()], ")")
        return _block(f"{kind}(**{{", _named(parts), "})")

    def _graph(self, module: nn.Module) -> fx.Graph | None:
        """None: the module is never called itself, or only seen through by its caller."""
        if module not in self.calls:
            return None
        try:
            return graph_of(module, self.calls[module], lambda m: is_layer(m) or m in self.calls)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the module {type(module).__name__} cannot be written as Python code ({reason}); "
                f"{OTHER_FORMAT}"
            ) from error

    def _class(self, module: nn.Module, graph: fx.Graph, name: str) -> str:
        """The name of the class that `module` is an instance of; written if it is a new one."""
        forward = Forward(module, graph).text()
        if forward not in self.classes:
            base = name or re.sub(r"\W", "", type(module).__name__, flags=re.ASCII)
            base = base if is_plain(base) else f"Part{base.lstrip('_')}"
            used = {*self.classes.values(), *self.reserved}
            options = [base, *(f"{base}{i}" for i in range(2, len(used) + 3))]
            self.classes[forward] = next(option for option in options if option not in used)
        return self.classes[forward]


def _named(parts: Mapping[str, str]) -> list[str]:
    return [f"{literal(name)}: {part}" for name, part in parts.items()]


def _block(opening: str, parts: Iterable[str], closing: str) -> str:
    """On one line where it is short, else one part a line."""
    parts = list(parts)
    line = opening + ", ".join(parts) + closing
    if len(line) <= 60 and "\n" not in line:
        return line
    return "\n".join([opening, *(indent(f"{part},", "    ") for part in parts), closing])


def _own_tensors(module: nn.Module) -> dict[str, str]:
    """Parameters and buffers as expressions of their size and type."""
    found = {}
    for name, buffer in module.named_buffers(recurse=False):
        if name in module._non_persistent_buffers_set:
            raise UserError(
                f"the module {type(module).__name__} holds a buffer that is not in its state dict, "
                f"so that it cannot be written as Python code; {OTHER_FORMAT}"
            )
        found[name] = f"nn.Buffer({_empty(buffer)})"
    for name, parameter in module.named_parameters(recurse=False):
        found[name] = f"nn.Parameter({_empty(parameter)})"
    return found


def _empty(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    return f"torch.empty({tuple(tensor.shape)}{dtype})"


def _is_chain(module: nn.Sequential, children: list[nn.Module], graph: fx.Graph | None) -> bool:
    """Whether calling it is calling its children in turn (a subclass may do otherwise)."""
    if any(map(guard_of, children)):
        return False  # what is called may be given a copy
    if type(module) is nn.Sequential:
        return True
    inner = list(graph.nodes)[1:] if graph else []
    straight = all(node.args == (node.prev,) and not node.kwargs for node in inner)
    called = [node.target for node in inner if node.op == "call_module"]
    return straight and [module.get_submodule(str(name)) for name in called] == children
