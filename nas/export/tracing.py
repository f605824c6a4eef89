"""The forward pass of one module as a graph, in which sizes are numbers and the batch is free.

`torch.fx` alone fails on ``for side in x.shape[2:]``: here every proxy knows the tensor that it
stands for, so all sizes but the batch's are plain integers. Calls of submodules stay calls.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.export.layers import is_layer
from nas.supernet.inplace import guard_of

# What a module may be told besides tensors, and be written with the value it was told.
_CONSTANTS = (type(None), bool, str, float)


@dataclass
class Call:
    """How a module is called: the tensors and constants by the names of its own signature.

    Attributes:
        outputs: shapes of the inputs -> a tensor as it came out, of which only the size matters.
        regular: it can stand as a module of its own, being called the same way every time, with
            tensors, and giving one tensor.
    """

    tensors: dict[str, Tensor]
    constants: dict[str, Any]
    outputs: dict[tuple[torch.Size, ...], Any] = field(default_factory=dict)
    regular: bool = True

    def add(self, tensors: dict[str, Tensor], constants: dict[str, Any], output: Any) -> None:
        """One more call of the same module."""
        plain = all(isinstance(value, _CONSTANTS) for value in constants.values())
        self.regular &= isinstance(output, Tensor) and plain and 1 <= len(tensors) <= 3
        self.regular &= self.constants == constants and list(self.tensors) == list(tensors)
        sizes = tuple(tensor.shape for tensor in tensors.values())
        # On another size there would be other numbers in the code.
        self.regular &= sizes == tuple(tensor.shape for tensor in self.tensors.values())
        self.outputs[sizes] = output


def calls(network: nn.Module, example: Tensor) -> dict[nn.Module, Call]:
    """How every submodule is called when `network` runs on `example`."""
    found: dict[nn.Module, Call] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        tensors = {k: v for k, v in bound.items() if isinstance(v, Tensor)}
        constants = {k: v for k, v in bound.items() if k not in tensors}
        found.setdefault(module, Call(tensors, constants)).add(tensors, constants, output)

    hooks = [m.register_forward_hook(note, with_kwargs=True) for m in network.modules()]
    try:
        with torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def graph_of(
    module: nn.Module, known: Mapping[nn.Module, Call], is_leaf: Callable[[nn.Module], bool]
) -> fx.Graph:
    """The operations of ``module.forward``; modules that `is_leaf` refuses are seen through."""
    call = known[module]
    graph = _Tracer(known, list(call.tensors.values()), is_leaf).trace(
        _ENTRIES[len(call.tensors) - 1](module, call)
    )
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix("inner.")
        if node.op == "call_module":
            node.meta["layer"] = is_layer(_attribute(module, str(node.target).split(".")))
    for node in reversed(graph.nodes):
        # Sizes that became numbers; anything else without a user may act in place.
        if not node.users and node.target in (getattr, operator.getitem):
            graph.erase_node(node)
    return graph


class _Entry(nn.Module):
    """Calls ``inner.forward`` with tensors by position and its constants by name."""

    def __init__(self, inner: nn.Module, call: Call) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def enter(self, *tensors: Any) -> Any:
        named = dict(zip(self.call.tensors, tensors, strict=True))
        return self.inner.forward(**named, **self.call.constants)


# The tracer reads the number of inputs from the signature.
class _Entry1(_Entry):
    def forward(self, x: Tensor) -> Any:
        return self.enter(x)


class _Entry2(_Entry):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.enter(x, y)


class _Entry3(_Entry):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self.enter(x, y, z)


_ENTRIES = (_Entry1, _Entry2, _Entry3)


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

    def __init__(
        self,
        known: Mapping[nn.Module, Call],
        inputs: list[Tensor],
        is_leaf: Callable[[nn.Module], bool],
    ) -> None:
        super().__init__()
        self.known, self.inputs, self.is_leaf = known, inputs, is_leaf
        self.values: dict[fx.Node, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.is_leaf(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        guard = guard_of(m)
        if guard is not None and self.is_leaf(m):  # whose hooks are not called
            args, kwargs = guard(m, args, kwargs) or (args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Valued(node, self)

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        made: Any = super().create_proxy(*args, **kwargs)
        with torch.no_grad():
            made.value = self.values[made.node] = self._value(made.node)
        if type(made.value) in (tuple, list):
            # As such: a forward may ask whether it is one.
            items = range(len(made.value))
            return type(made.value)(
                self.create_proxy("call_function", operator.getitem, (made, i), {}) for i in items
            )
        return made

    def _value(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.inputs.pop(0).clone()
        if node.op == "get_attr":
            return _attribute(self.root, str(node.target).split("."))
        args = fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.values.__getitem__)
        if node.op == "call_module":
            # Not run again: the tracer has put itself in the place of every module's call.
            module = _attribute(self.root, str(node.target).split("."))
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            output = self.known[module].outputs[tuple(tensor.shape for tensor in tensors)]
            return output.clone() if isinstance(output, Tensor) else output
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _attribute(root: nn.Module, path: Sequence[str]) -> Any:
    """Without ``getattr``, of which the tracer has taken hold."""
    owner: Any = root
    for name in path:
        own = vars(owner)
        places = (own["_modules"], own["_parameters"], own["_buffers"], own)
        owner = next(place[name] for place in places if name in place)
    return owner
