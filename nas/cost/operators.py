"""The operators of a trace: which is which kind of layer, or costs nothing."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from nas.cost.activations import Read
from nas.cost.layer import LayerSpec
from nas.cost.polynomial import Choice, Condition
from nas.errors import UserError


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator that runs outside of what mixes candidates.

    Attributes:
        name: of `torch.ops`, without overload.
        module: path of the module that runs it.
        choices: what it stands under, outermost first.
        reads: the buffers that it may read.
        makes: the buffers that it makes.
        overwrites: of `reads`, those that it works on in place.
        pointwise: it has one activation to read and may write its output over it.
        view: it only looks at its input differently, in the same memory.
        layers: the calls that it stands for.
        text: see `text_of`; "" for a copy that is made only here.
        free: by its declaration it computes nothing.
        weight: identity of the layer's weight, if a norm behind it could be folded into that.
        has_bias: whether that layer adds a bias.
        norm_bias: of a norm with constant statistics, the bias that stays when it is folded.
    """

    name: str
    module: str
    choices: tuple[Choice, ...]
    reads: tuple[Read, ...] = ()
    makes: tuple[int, ...] = ()
    overwrites: tuple[Read, ...] = ()
    pointwise: bool = False
    view: bool = False
    layers: tuple[LayerSpec, ...] = ()
    text: str = ""
    free: bool = False
    weight: int | str | None = None
    has_bias: bool = False
    norm_bias: LayerSpec | None = None

    @property
    def condition(self) -> Condition:
        """Where it runs."""
        return frozenset(self.choices)


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
    x, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    kind, out_channels = "conv", weight.shape[0]
    if transposed:
        kind, out_channels = "conv_transpose", weight.shape[1] * groups
    return {
        "kind": kind,
        "in_channels": x.shape[1],
        "out_channels": out_channels,
        "groups": groups,
        "kernel": tuple(weight.shape[2:]),
        "stride": tuple(stride),
        "padding": tuple(padding),
        "dilation": tuple(dilation),
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


def layers_of(func: Any, args: tuple[Any, ...], out: Any) -> list[Fields] | None:
    """The calls that an operator stands for, as fields of `LayerSpec`; None if it is none known."""
    name = func.overloadpacket.__name__
    if name not in _CALLS:
        return None
    found = _CALLS[name](args, out)
    return found if isinstance(found, list) else [found]


def check_known(func: Any, weights: Sequence[Tensor], data: Sequence[Tensor], path: str) -> None:
    """Refuse an operator that may multiply a matrix of weights with data, at a cost not known.

    Raises:
        UserError: naming the operator and `path`, the module that runs it.
    """
    # With whole numbers a row is looked up, with truth values one is picked.
    multiplied = any(x.is_floating_point() or x.is_complex() for x in data)
    if not multiplied or all(x.ndim < 2 for x in weights) or _uncounted(func):
        return
    name = func.overloadpacket.__name__
    raise UserError(
        f"module {path!r} puts a weight into the operator {name!r}, whose cost "
        f"is not known. Say what it costs: nas.cost.operators.register({name!r}, "
        "lambda args, out: {'kind': 'linear', ...}), or None in place of the function "
        "if it multiplies nothing"
    )


def text_of(func: Any, args: Sequence[Any], out: Any) -> str:
    """An operator with the shapes and whole numbers that go in, and the shapes that come out.

    Equal for equal work. Epsilons and the like are left out: they take no time.
    """
    given = ",".join(filter(None, map(_text, args)))
    made = ",".join(_shape(x) for x in tree_leaves(out) if isinstance(x, Tensor))
    return f"{func.overloadpacket.__name__}({given})->{made}"


def is_view(func: Any) -> bool:
    """Whether an operator computes nothing: its outputs are its inputs, looked at differently."""
    aliases = [returned.alias_info for returned in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _shape(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(filter(None, map(_text, value)))}]"
    return "" if isinstance(value, float) else str(value)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"
