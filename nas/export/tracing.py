"""The forward pass of one module as a graph, in which sizes are numbers and the batch is free.

`torch.fx` alone fails on ``for side in x.shape[2:]``: here every proxy knows the tensor that it
stands for, so all sizes but the batch's are plain integers. Calls of submodules stay calls.
"""

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.errors import UserError
from nas.supernet.inplace import guard_of

# What a module may be told besides tensors, and be written with the value it was told.
_CONSTANTS = (type(None), bool, str, float)


@dataclass(frozen=True)
class Call:
    """How a module is called; equal where one text of its forward pass serves both calls.

    Args:
        shapes: argument of its own signature -> size of the tensor.
        constants: the other arguments.
        tensors: those of the first call.
    """

    shapes: Mapping[str, torch.Size]
    constants: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(compare=False)


def regular_calls(network: nn.Module, example: Tensor) -> dict[nn.Module, Call]:
    """The modules that can be a class of their own, and how they are called.

    They get tensors and constants, give one tensor, and are called the same way every time when
    `network` runs on `example`.
    """
    found: dict[nn.Module, Call | None] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        tensors = {name: x for name, x in given.items() if isinstance(x, Tensor)}
        constants = {name: x for name, x in given.items() if name not in tensors}
        call = Call({name: x.shape for name, x in tensors.items()}, constants, tensors)
        plain = all(isinstance(value, _CONSTANTS) for value in constants.values())
        regular = plain and tensors and isinstance(output, Tensor)
        found[module] = call if regular and found.setdefault(module, call) == call else None

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in network.modules()]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return {module: call for module, call in found.items() if call is not None}


def graph_of(module: nn.Module, call: Call, is_leaf: Callable[[nn.Module], bool]) -> fx.Graph:
    """The operations of ``module.forward``; submodules that `is_leaf` refuses are seen through."""
    graph = _Tracer(call, is_leaf).trace(module)
    for node in reversed(graph.nodes):
        # Sizes that became numbers; anything else without a user may act in place.
        if not node.users and node.target in (getattr, operator.getitem):
            graph.erase_node(node)
    return graph


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

    def __init__(self, call: Call, is_leaf: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.call, self.is_leaf = call, is_leaf
        self.values: dict[fx.Node, Any] = {}
        self.running = False  # a submodule, for its output on the example

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        given = {n: self.create_proxy("placeholder", n, (), {}) for n in self.call.tensors}
        return lambda: root_fn(self.root, **given, **self.call.constants), []

    def create_arg(self, a: Any) -> Any:
        own = (*self.root.parameters(), *self.root.buffers())
        if isinstance(a, Tensor) and not any(a is tensor for tensor in own):
            raise UserError("it uses a tensor that is neither its parameter nor its buffer")
        return super().create_arg(a)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if self.running or not self.is_leaf(m):
            return forward(*args, **kwargs)
        if guard := guard_of(m):  # a leaf's hooks are not called
            args, kwargs = guard(m, args, kwargs) or (args, kwargs)
        return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

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
            return self.call.tensors[target].clone()
        if node.op in ("get_attr", "call_module"):
            owner: Any = self.root
            for name in target.split("."):
                owner = _own(owner)[name]
            if node.op == "get_attr":
                return owner
            target = owner
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def _own(module: nn.Module) -> dict[str, Any]:
    return {**module._buffers, **module._parameters, **module._modules}
