"""The forward pass of a whole network as Python text; all sizes but the batch's are numbers.

`torch.fx` alone fails on ``for side in x.shape[2:]``: here every proxy knows the tensor that it
stands for, so all sizes but the batch's are plain integers. Layers of torch, and sequences of them,
are called; all other modules are seen through. Every operation is one statement.
"""

import ast
import builtins
import keyword
import operator
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import magic_methods
from torch.fx.node import _get_qualified_name

from nas.errors import UserError
from nas.supernet.inplace import guard_of

OTHER_FORMAT = "use another format, such as onnx or pt2"
_OPERATORS = {  # function -> "{} + {}"
    getattr(operator, name): text
    for name, text in magic_methods.items()
    if hasattr(operator, name) and name != "getitem"
}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_layer(module: nn.Module) -> bool:
    """Whether it is exactly one of `torch.nn`'s own layers, containers left out."""
    kind = type(module)
    return vars(nn).get(kind.__name__) is kind and kind not in _CONTAINERS


def is_numbered(module: nn.Module) -> bool:
    """Whether it holds nothing but modules by the names 0, 1, ..., as a list does."""
    names = list(module._modules)
    own_tensors = module._parameters or module._buffers
    return bool(names) and not own_tensors and names == [str(i) for i in range(len(names))]


def traced(network: nn.Module, example: Tensor) -> tuple[str, set[nn.Module]]:
    """The definition of ``forward(self, x)``, and the sequences of modules that it calls as such.

    Args:
        network: in eval mode.
        example: an input ``(N, ...)``, N at least 2.

    Raises:
        UserError: something in the network cannot be written as code; the message names it.
    """
    tracer = _Tracer(example)
    graph = tracer.named(network, lambda: tracer.trace(network))
    for node in reversed(graph.nodes):
        # Sizes that became numbers; anything else without a user may act in place.
        if not node.users and node.target in (getattr, operator.getitem):
            graph.erase_node(node)
    return _Forward(network, graph).text(), tracer.sequences


class _Valued(fx.Proxy):
    """A proxy beside the value it stands for on the example."""

    value: Any = None
    tracer: Any

    @property
    def shape(self) -> Any:
        if not isinstance(self.value, Tensor):
            raise AttributeError("shape")
        batch = self.tracer.create_proxy("call_function", getattr, (self, "shape"), {})[0]
        return (batch, *self.value.shape[1:])

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    def dim(self) -> int:
        return int(self.value.ndim)

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.values: dict[fx.Node, Any] = {}
        self.sequences: set[nn.Module] = set()
        self.running = False  # a submodule, for its output on the example

    def named(self, module: nn.Module, call: Callable[[], Any]) -> Any:
        """Run the forward pass of `module`; an error names it, the innermost one first."""
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"the module {type(module).__name__} cannot be written as Python code ({reason}); "
                f"{OTHER_FORMAT}"
            ) from error

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        given = self.create_proxy("placeholder", "x", (), {})
        return lambda: root_fn(self.root, given), []

    def create_arg(self, a: Any) -> Any:
        own = (*self.root.parameters(), *self.root.buffers())
        if isinstance(a, Tensor) and not any(a is tensor for tensor in own):
            raise ValueError("it uses a tensor that is neither its parameter nor its buffer")
        return super().create_arg(a)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        if not is_layer(m):
            before = len(self.graph.nodes)
            made = self.named(m, lambda: forward(*args, **kwargs))
            nodes = list(self.graph.nodes)[before:]
            return self._joined(m, nodes, args[0]) if self._in_turn(m, nodes, args) else made
        if guard := guard_of(m):  # a leaf's hooks are not called
            args, kwargs = guard(m, args, kwargs) or (args, kwargs)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def _in_turn(self, module: nn.Module, nodes: list[fx.Node], args: Any) -> bool:
        """Whether `nodes` call the children of a sequence one after the other on one input."""
        children = list(module._modules.values())
        if not isinstance(module, nn.Sequential) or module._parameters or module._buffers:
            return False
        if not nodes or len(nodes) != len(children) or not isinstance(args[0], fx.Proxy):
            return False
        inputs = [args[0].node, *nodes]
        return all(
            node.op == "call_module" and node.args == (x,) and not node.kwargs
            and self.root.get_submodule(str(node.target)) is child
            for node, x, child in zip(nodes, inputs, children, strict=False)
        )  # fmt: skip

    def _joined(self, module: nn.Module, nodes: list[fx.Node], x: fx.Proxy) -> Any:
        """One call of the sequence in place of the calls of its children."""
        for node in reversed(nodes):
            self.graph.erase_node(node)
        self.sequences.add(module)
        return self.create_proxy("call_module", self.path_of_module(module), (x,), {})

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Valued(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().create_proxy(*args, **kwargs)
        self.running = True
        try:
            with torch.no_grad():
                made.value = self.values[made.node] = self._value(made.node)
        finally:
            self.running = False
        if type(made.value) in (tuple, list):
            # As such: a forward may ask whether it is one.
            items = range(len(made.value))
            return type(made.value)(
                self.create_proxy("call_function", operator.getitem, (made, i), {}) for i in items
            )
        return made

    def _value(self, node: fx.Node) -> Any:
        target: Any = node.target
        if node.op == "placeholder":
            return self.example.clone()
        if node.op in ("get_attr", "call_module"):
            owner: Any = self.root
            for name in target.split("."):
                owner = {**owner._buffers, **owner._parameters, **owner._modules}[name]
            if node.op == "get_attr":
                return owner
            target = owner
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


class _Forward:
    """A traced graph as text."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self.network, self.graph = network, graph
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
                self.texts[node] = self._access(str(node.target))
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
        given = [*args, *(f"{_identifier(k)}={self.value(v)}" for k, v in node.kwargs.items())]
        if node.op == "call_module":
            return f"{self._access(target)}({', '.join(given)})"
        if node.op == "call_method":
            return f"{args[0]}.{_identifier(target)}({', '.join(given[1:])})"
        if target in _OPERATORS:
            operands = (f"({a})" if a.startswith("-") else a for a in args)
            return _OPERATORS[target].format(*operands)
        if target is operator.getitem:
            index = node.args[1]
            items = index if isinstance(index, tuple) and index else (index,)
            return f"{args[0]}[{', '.join(map(self._index, items))}]"
        if target is getattr:
            return f"{args[0]}.{_identifier(str(node.args[1]))}"
        return f"{_qualified(target)}({', '.join(given)})"

    def _index(self, item: Any) -> str:
        if not isinstance(item, slice):
            return self.value(item)
        start, stop = ("" if part is None else self.value(part) for part in (item.start, item.stop))
        return f"{start}:{stop}" + ("" if item.step is None else f":{self.value(item.step)}")

    def _access(self, path: str) -> str:
        """``getattr(self.a[0], "b c").d`` for "a.0.b c.d"."""
        text, owner = "self", self.network
        for name in path.split("."):
            if owner is not self.network and is_numbered(owner):
                text = f"{text}[{name}]"
            else:
                text = f"{text}.{name}" if is_plain(name) else f"getattr({text}, {literal(name)})"
            owner = owner._modules.get(name) or owner
        return text

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


def _identifier(name: str) -> str:
    """The name of a method or of an argument; UserError where it is no such name."""
    if not is_plain(name) and not re.fullmatch(r"__[a-z]+__", name):
        raise UserError(f"{name!r} cannot stand in Python code; {OTHER_FORMAT}")
    return name


def is_plain(name: str) -> bool:
    """Whether ``self.NAME`` in a class means the attribute of this very name.

    Not where Python reads another one: outside ASCII it joins letters, and ``__x`` it mangles.
    """
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return plain and not name.startswith("__")


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
