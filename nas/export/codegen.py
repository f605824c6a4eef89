"""A network as one readable Python file that imports only torch.

Each kind of module becomes a class with its ``forward`` (traced, with what is fixed written out),
the network one expression of such classes and layers of `torch.nn`. Names are kept, so that
the state dict of the network fits the file.
"""

import ast
import builtins
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from nas.errors import UserError
from nas.export.layers import constructor, is_layer, is_plain, literal
from nas.export.statements import statements
from nas.export.tracing import Call, calls, graph_of
from nas.supernet.inplace import guard_of

WIDTH = 100
_FILE_NAMES = ("torch", "nn", "Path", "OrderedDict", "build", "load")  # of the file itself
_TAKEN = ("self", "super", "torch", "nn")  # in an `__init__`
_LISTS = (nn.Sequential, nn.ModuleList)


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
    writer = _Writer(calls(network, example), constants)
    tree = writer.build(network, "Network")
    values = "\n".join(_assignment(name, value) for name, value in constants.items())
    classes = "\n\n\n".join(writer.classes.values())
    body = _laid_out(tree, 1, len("return "))
    ordered = "from collections import OrderedDict\n" if "OrderedDict(" in body else ""
    text = _FILE.format(
        about=about.replace("\\", "/").replace('"', "'"),
        ordered=ordered,
        values=values,
        classes=classes,
        body=body,
        weights=weights,
    )
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UserError(
            f"the network cannot be written as Python code ({error}): use another format, such as "
            "onnx or pt2"
        ) from None
    return text


_FILE = '''"""{about}

Needs only torch, and {weights} beside it.

    network = load()
    logits = network(x)  # (N, *INPUT_SHAPE) -> (N, len(CLASSES)); x = (image in 0..1 - MEAN) / STD
"""

{ordered}from pathlib import Path

import torch
from torch import nn

{values}


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


def _assignment(name: str, value: Any) -> str:
    return f"{name} = {literal(value)}"


class _Writer:
    """Collects classes while it writes the tree of modules.

    Attributes:
        classes: body without its name -> text of the class.
    """

    def __init__(self, known: Mapping[nn.Module, Call], constants: Iterable[str]) -> None:
        self.known = known
        self.reserved = {*_FILE_NAMES, *vars(builtins), *constants}
        self.classes: dict[str, str] = {}
        self.names: dict[str, str] = {}

    def build(self, module: nn.Module, name: str | None = None) -> "_Tree":
        """The expression that builds `module`."""
        if is_layer(module):
            return _Tree(constructor(module))
        children = {key: self.build(child) for key, child in _children(module).items()}
        if type(module) is nn.ModuleDict:
            return _Tree("nn.ModuleDict", children, "{")
        if type(module) is nn.ModuleList:
            return _Tree("nn.ModuleList", children, "[")
        if isinstance(module, nn.Sequential) and self._is_chain(module):
            numbered = list(children) == [str(i) for i in range(len(children))]
            return _Tree("nn.Sequential", children, "(" if numbered else "o")
        own = self._own_tensors(module)
        return _Tree(self._class(module, name, list(children)), children | own, "=")

    def _own_tensors(self, module: nn.Module) -> dict[str, "_Tree"]:
        tensors: dict[str, Tensor] = dict(module.named_buffers(recurse=False))
        tensors |= dict(module.named_parameters(recurse=False))
        return {k: _Tree(f"torch.empty({tuple(v.shape)})") for k, v in tensors.items()}

    def _is_chain(self, module: nn.Sequential) -> bool:
        """Whether calling it is calling its children in turn (a subclass may do otherwise)."""
        if any(guard_of(child) for child in _children(module).values()):
            return False  # what is called may be given a copy
        if type(module) is nn.Sequential:
            return True
        graph = self._graph(module)
        if graph is None:
            return False
        inner = list(graph.nodes)[1:-1]
        named = [str(node.target) for node in inner if node.op == "call_module"]
        return len(named) == len(inner) and named == list(_children(module))

    def _is_leaf(self, module: nn.Module) -> bool:
        return is_layer(module) or self._stands_alone(module)

    def _stands_alone(self, module: nn.Module) -> bool:
        return module in self.known and self.known[module].regular

    def _graph(self, module: nn.Module) -> fx.Graph | None:
        """None: the module is never called itself, or only seen through by its caller."""
        if not self._stands_alone(module):
            return None
        try:
            return graph_of(module, self.known, self._is_leaf)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the module {type(module).__name__} cannot be written as Python code ({reason}); "
                "use another format, such as onnx or pt2"
            ) from error

    def _class(self, module: nn.Module, name: str | None, children: Sequence[str]) -> str:
        """The name of the class that `module` is an instance of; written if it is a new one."""
        parameters = [k for k, _ in module.named_parameters(recurse=False)]
        buffers = [
            (k, k not in module._non_persistent_buffers_set)
            for k, _ in module.named_buffers(recurse=False)
        ]
        if any(not persistent for _, persistent in buffers):
            raise UserError(
                f"the module {type(module).__name__} holds a buffer that is not in its state dict, "
                "so that it cannot be written as Python code; use another format, such as onnx"
            )
        kept = [k for k, _ in buffers]
        body = _init(children, parameters, kept) + _forward(self._graph(module))
        if body not in self.classes:
            base = name or re.sub(r"\W", "", type(module).__name__, flags=re.ASCII)
            base = base if is_plain(base) else f"Part{base.lstrip('_')}"
            used = {*self.names.values(), *self.reserved}
            options = [base, *(f"{base}{i}" for i in range(2, len(used) + 3))]
            self.names[body] = next(option for option in options if option not in used)
            self.classes[body] = f"class {self.names[body]}(nn.Module):\n{body}"
        return self.names[body]


def _children(module: nn.Module) -> dict[str, nn.Module]:
    # Not `named_children`, which leaves out a module that stands there twice.
    return {name: child for name, child in module._modules.items() if child is not None}


def _init(children: Sequence[str], parameters: Sequence[str], buffers: Sequence[str]) -> str:
    names = (*children, *parameters, *buffers)
    if not names:
        return ""
    given = _arguments(names)
    lines = ["super().__init__()"]
    made = {name: ("add_module", given[name]) for name in children}
    made |= {name: ("register_parameter", f"nn.Parameter({given[name]})") for name in parameters}
    for name, (method, value) in made.items():
        plain = is_plain(name)
        lines.append(
            f"self.{name} = {value}" if plain else f"self.{method}({literal(name)}, {value})"
        )
    lines += [f"self.register_buffer({literal(name)}, {given[name]})" for name in buffers]
    inside = "\n".join(f"        {line}" for line in lines)
    return f"    def __init__(self, {', '.join(given[name] for name in names)}):\n{inside}\n\n"


def _arguments(names: Iterable[str]) -> dict[str, str]:
    """Name -> that of its argument, which Python takes: a child of a container may be called "0".

    Each is another one, whatever the order of the names.
    """
    found = {name: name for name in sorted(names)}
    free = {name for name in found if is_plain(name) and name not in _TAKEN}
    used = set(free)
    for name in sorted(found.keys() - free):
        base = f"part_{re.sub(r'[^A-Za-z0-9]+', '_', name)}"
        options = (base, *(f"{base}_{i}" for i in range(2, len(found) + 2)))
        found[name] = next(option for option in options if option not in used)
        used.add(found[name])
    return found


def _forward(graph: fx.Graph | None) -> str:
    if graph is None:
        return "    pass"
    inputs, lines = statements(graph)
    inside = "\n".join(f"        {line}" for line in lines)
    return f"    def forward(self, {', '.join(inputs)}):\n{inside}"


class _Tree:
    """A call with named parts: ``MBConv(branch=...)``, ``nn.Sequential(..., ...)``."""

    def __init__(
        self, head: str, parts: Mapping[str, "_Tree"] | None = None, how: str = ""
    ) -> None:
        self.head, self.parts, self.how = head, dict(parts or {}), how

    def brackets(self) -> tuple[str, str]:
        kinds = {"": ("", ""), "(": ("(", ")"), "=": ("(", ")")}
        kinds |= {"[": ("([", "])"), "{": ("({", "})"), "o": ("(OrderedDict([", "]))")}
        opening, closing = kinds[self.how]
        return self.head + opening, closing

    def items(self) -> list[tuple[str, "_Tree", str]]:
        given = _arguments(self.parts)
        before: Callable[[str], str] = {
            "=": lambda name: f"{given[name]}=",
            "{": lambda name: f"{literal(name)}: ",
            "o": lambda name: f"({literal(name)}, ",
        }.get(self.how, lambda name: "")
        after = ")" if self.how == "o" else ""
        return [(before(name), tree, after) for name, tree in self.parts.items()]

    def __str__(self) -> str:
        opening, closing = self.brackets()
        return opening + ", ".join(f"{b}{tree}{a}" for b, tree, a in self.items()) + closing


def _laid_out(tree: _Tree, depth: int, before: int) -> str:
    """On one line where it fits, else one part a line; `before` counts what stands before it."""
    if len(str(tree)) + 4 * depth + before + 1 <= WIDTH or not tree.parts:
        return str(tree)
    opening, closing = tree.brackets()
    pad = "    " * (depth + 1)
    lines = [
        f"{pad}{before}{_laid_out(part, depth + 1, len(before) + len(after))}{after},\n"
        for before, part, after in tree.items()
    ]
    return f"{opening}\n{''.join(lines)}{'    ' * depth}{closing}"
