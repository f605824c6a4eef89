"""Reads layers off the operators a model runs: which tensor operator is which kind of layer."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nas.cost.schedule import ScheduleRecorder, key_of, tensors
from nas.errors import UserError

Fields = dict[str, Any]  # the fields of a LayerSpec, without `module`

_FREE: set[str] = set()  # what `register` was told of
# Operators of PyTorch that only move numbers, or scale what is normalised: nothing that the
# counting convention counts, whatever goes in.
_UNCOUNTED = re.compile(r"norm|scatter|index|embedding|copy|stack|(^|_)cat$|prelu|search|bucket")


def _uncounted(func: Any) -> bool:
    """Whether an operator multiplies no matrix of weights with data; element by element it may."""
    name = func.overloadpacket.__name__
    if name in _FREE:
        return True
    if func.namespace == "aten" and _UNCOUNTED.search(name):
        return True
    # The tag is missing on some overloads, and on most that work in place.
    plain = getattr(getattr(torch.ops, func.namespace), name.rstrip("_"), func.overloadpacket)
    overloads = (getattr(plain, overload) for overload in plain.overloads())
    return any(torch.Tag.pointwise in overload.tags for overload in overloads)


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


def _bilinear(args: tuple[Any, ...], out: Any) -> list[Fields]:
    """``y_no = sum_ij a_ni W_oij b_nj``: a product with every ``W_o``, then one with b."""
    left, weight, right = args[:3]
    outputs, inner, last = weight.shape
    first = _product("linear", left, weight.reshape(outputs, inner, last).movedim(1, 0).flatten(1))
    second = _product("matmul", right[:, None], right.new_empty(len(right), last, outputs))
    return [first, second]


def _bag(args: tuple[Any, ...], out: Any) -> list[Fields]:
    """Sums of rows; with a weight for each row, a product of these with the rows."""
    rows, indices = args[:2]
    if len(args) < 7 or args[6] is None:
        return []
    return [_product("linear", rows.new_empty(1, indices.numel()), rows[:1])]


_CALLS: dict[str, Callable[[tuple[Any, ...], Any], Fields | list[Fields]]] = {
    "convolution": _conv,
    "mm": lambda args, out: _product("linear", args[0], args[1]),
    "addmm": lambda args, out: _product("linear", args[1], args[2]),
    "mv": lambda args, out: _product("linear", args[0], args[1].unsqueeze(-1)),
    "addmv": lambda args, out: _product("linear", args[1], args[2].unsqueeze(-1)),
    "dot": lambda args, out: _product("linear", args[0].unsqueeze(0), args[1].unsqueeze(-1)),
    "vdot": lambda args, out: _product("linear", args[0].unsqueeze(0), args[1].unsqueeze(-1)),
    "bmm": lambda args, out: _product("matmul", args[0], args[1]),
    "baddbmm": lambda args, out: _product("matmul", args[1], args[2]),
    "addbmm": lambda args, out: _product("matmul", args[1], args[2]),
    "_trilinear": _bilinear,
    "_embedding_bag": _bag,
    "_embedding_bag_forward_only": _bag,
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

    What an operator makes of weights and constants alone is a weight again, at no cost unless the
    operator is a product, which counts where it runs. What it makes of data is data.

    Args:
        on_call: told the fields of a `LayerSpec`, `module` left out.
        where: the path of the module that runs now.
        model: whose parameters are the weights.
        data: what the model is run on.
        schedule: told every operator that runs.

    Raises:
        UserError: a matrix of weights goes, with data, into an operator whose cost is not known.
    """

    def __init__(
        self,
        on_call: Callable[[Fields], None],
        where: Callable[[], str],
        model: nn.Module,
        data: Any,
        schedule: ScheduleRecorder,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_call, self.where, self.schedule = on_call, where, schedule
        # By storage: views, and tensors that share one with a weight, are of the same sort.
        self._weights = {key_of(x) for x in model.parameters()}
        self._data: set[int] = set()
        self._kept: list[torch.UntypedStorage] = []  # so that no storage gets the address of one
        self.add(self._data, tensors(data))

    def add(self, sort: set[int], made: list[Tensor]) -> None:
        """Take `made` for data, or for weights."""
        for x in made:
            storage = x.untyped_storage()
            if storage._cdata not in sort:
                sort.add(storage._cdata)
                self._kept.append(storage)

    def passes(self, out: Any) -> Any:
        """Take for data what a module gives that stands for several and makes it of nothing."""
        self.add(self._data, tensors(out))
        return out

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        out = _run(func, name, args, kwargs or {})
        data: list[Tensor] = []
        weights: list[Tensor] = []
        for x in tensors((args, kwargs)):
            key = key_of(x)
            if key in self._data:  # also where data was written over what was a weight
                data.append(x)
            elif key in self._weights:
                weights.append(x)
        if name in _CALLS:
            found = _CALLS[name](args, out)
            for fields in found if isinstance(found, list) else [found]:
                self.on_call(fields)
        elif data and weights:
            self._check(func, weights, data)
        out = self.schedule.operator(func, args, kwargs, out)
        if data or weights:
            made = tensors(out)
            if func._schema.is_mutable:
                made += tensors(list(_written(func, args, kwargs or {})))
            self.add(self._data if data else self._weights, made)
        return out

    def _check(self, func: Any, weights: list[Tensor], data: list[Tensor]) -> None:
        # With whole numbers a row is looked up, with truth values one is picked.
        multiplied = any(x.is_floating_point() or x.is_complex() for x in data)
        if not multiplied or all(x.ndim < 2 for x in weights) or _uncounted(func):
            return
        name = func.overloadpacket.__name__
        raise UserError(
            f"module {self.where()!r} puts a weight into the operator {name!r}, whose cost "
            f"is not known. Say what it costs: nas.cost.operators.register({name!r}, "
            "lambda args, out: {'kind': 'linear', ...}), or None in place of the function "
            "if it multiplies nothing"
        )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments that an operator writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[index] if index < len(args) else kwargs.get(argument.name)
