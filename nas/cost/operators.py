"""Reads layers off the operators a model runs: which tensor operator is which kind of layer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.cost.schedule import ScheduleRecorder
from nas.errors import UserError

Fields = dict[str, Any]  # the fields of a LayerSpec, without `module`

# Operators that may take a matrix of weights and multiply nothing with it, by the counting
# convention: lookups, element-wise arithmetic and whatever only moves or views a tensor.
# fmt: off
_FREE = {
    "_to_copy", "_unsafe_view", "abs", "add", "add_", "alias", "as_strided", "cat", "clamp",
    "clone", "contiguous", "copy_", "detach", "div", "embedding", "exp", "expand", "flip",
    "full_like", "gather", "index", "index_select", "linalg_vector_norm", "mean", "mul", "mul_",
    "neg", "norm", "ones_like", "permute", "pow", "prelu", "_prelu_kernel", "repeat", "reshape",
    "roll", "select", "sigmoid", "slice", "softmax", "_softmax", "split", "split_with_sizes",
    "sqrt", "squeeze", "stack", "sub", "sum", "t", "tanh", "to", "transpose", "unbind",
    "unsqueeze", "view", "where", "_weight_norm_interface", "zeros_like",
}
# fmt: on


def _conv(args: tuple[Any, ...], out: Any) -> Fields:
    x, weight, transposed, groups = args[0], args[1], args[6], args[8]
    kind, out_channels = "conv", weight.shape[0]
    if transposed:
        kind, out_channels = "conv_transpose", weight.shape[1] * groups
    return {
        "kind": kind,
        "in_channels": x.shape[1],
        "out_channels": out_channels,
        "groups": groups,
        "kernel": tuple(weight.shape[2:]),
        "in_size": tuple(x.shape[2:]),
        "out_size": tuple(out.shape[2:]),
        "batch": x.shape[0],
    }


def _product(kind: str, left: Tensor, right: Tensor) -> Fields:
    """``(..., n, k) @ (..., k, m)``: n positions, each k -> m."""
    *batch, rows, inner = left.shape
    return {
        "kind": kind,
        "in_channels": inner,
        "out_channels": right.shape[-1],
        "out_size": (rows,),
        "in_size": (rows,),
        "batch": int(torch.Size(batch).numel()),
    }


def _attention(args: tuple[Any, ...], out: Any) -> list[Fields]:
    query, key, value = args[:3]
    scores = _product("matmul", query, key.transpose(-2, -1))
    rows, columns = query.shape[-2], key.shape[-2]
    weighted = {**scores, "in_channels": columns, "out_channels": value.shape[-1]}
    return [scores, {**weighted, "out_size": (rows,)}]


_CALLS: dict[str, Callable[[tuple[Any, ...], Any], Fields | list[Fields]]] = {
    "convolution": _conv,
    "mm": lambda args, out: _product("linear", args[0], args[1]),
    "addmm": lambda args, out: _product("linear", args[1], args[2]),
    "mv": lambda args, out: _product("linear", args[0], args[1].unsqueeze(-1)),
    "bmm": lambda args, out: _product("matmul", args[0], args[1]),
    "baddbmm": lambda args, out: _product("matmul", args[1], args[2]),
    "linear": lambda args, out: _product(
        "linear", args[0].reshape(-1, args[0].shape[-1]), args[1].t()
    ),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}


def register(operator: str, layers: Callable[[tuple[Any, ...], Any], Fields] | None) -> None:
    """Say what an operator costs that `trace` does not know.

    Args:
        operator: its name in `torch.ops.aten` or in a library of your own, without overload.
        layers: its arguments and its output -> fields of `LayerSpec`, or None where it is free.
    """
    if layers is None:
        _FREE.add(operator)
    else:
        _CALLS[operator] = layers


def _run(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns; of some operators without memory, its shapes alone.

    PyTorch derives those through decompositions that take more time than all other operators of
    a network together, and an elastic supernet has thousands of norms.
    """
    if name in ("hardswish", "hardsigmoid") and args[0].is_meta:
        return torch.empty_like(args[0])
    if name == "native_batch_norm" and args[0].is_meta and not args[5]:
        nothing = args[0].new_empty(0)
        return torch.empty_like(args[0]), nothing, nothing.clone()
    return func(*args, **kwargs)


class OperatorRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `on_call` with the fields of each layer that runs inside its `with` block.

    Args:
        on_call: told the fields of a `LayerSpec`, `module` left out.
        where: the path of the module that runs now.
        weights: id of every parameter of the model.
        schedule: told every operator that runs.

    Raises:
        UserError: a matrix of weights goes into an operator that is neither priced nor free.
    """

    def __init__(
        self,
        on_call: Callable[[Fields], None],
        where: Callable[[], str],
        weights: set[int],
        schedule: ScheduleRecorder,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_call, self.where, self.weights = on_call, where, weights
        self.schedule = schedule

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        out = _run(func, name, args, kwargs or {})
        if name in _CALLS:
            found = _CALLS[name](args, out)
            for fields in found if isinstance(found, list) else [found]:
                self.on_call(fields)
        elif name not in _FREE and any(self._is_matrix(arg) for arg in tree_leaves(args)):
            raise UserError(
                f"module {self.where()!r} puts a weight into the operator {name!r}, whose cost "
                f"is not known. Say what it costs: nas.cost.operators.register({name!r}, "
                "lambda args, out: {'kind': 'linear', ...}), or None in place of the function "
                "if it multiplies nothing"
            )
        return self.schedule.operator(func, args, kwargs, out)

    def _is_matrix(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.ndim > 1 and id(value) in self.weights
