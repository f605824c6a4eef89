"""What operators give on tensors without memory, told faster than PyTorch tells it.

PyTorch derives many shapes in Python, which takes longer than all else of a trace, and loads its
compiler for it, and a library for formulas, which takes a second.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Sides = tuple[int, ...]


def run_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `func` returns; of a call without memory like an earlier one, the same shapes anew.

    A supernet calls an operator on equal shapes thousands of times.
    """
    name = func.overloadpacket.__name__
    if (plain := _frequent(name, args, kwargs)) is not None:
        return plain
    call = _call_of(func, args, kwargs)
    if call is None:
        return func(*args, **kwargs)
    if (known := _made_by.get(call)) is None:
        out = func(*args, **kwargs)
        if (made := _made(out, tree_leaves((args, kwargs)))) is not None:
            if len(_made_by) >= _MOST_CALLS:
                _made_by.clear()
            _made_by[call] = made
        return out
    single, shapes = known
    outs = [torch.empty_strided(*s, dtype=dtype, device="meta") for *s, dtype in shapes]
    return outs[0] if single else tuple(outs)


_POINTWISE = ("relu", "sigmoid", "silu", "hardswish", "hardsigmoid", "hardtanh")


def _frequent(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a frequent operator gives; None: another one, or arguments for PyTorch to judge."""
    given = [x for x in _flat(args) if isinstance(x, Tensor)]
    if not given or kwargs or not all(_simple(x, given[0].dtype) for x in given):
        return None
    # Others hand a layout that is not row-major on to what they give.
    if name != "addmm" and not all(x.is_contiguous() for x in given):
        return None
    x = given[0]
    if name == "hardtanh_":
        return x
    if name == "native_batch_norm" and not args[5]:
        return x.new_empty(x.shape), x.new_empty(0), x.new_empty(0)
    shape = _shape(name, args, [y.shape for y in given])
    if shape is None or min(shape, default=1) < 1:
        return None
    made = x.new_empty(shape)
    return (made, x.new_empty(shape, dtype=torch.int64)) if name.startswith("max_") else made


def _flat(args: Sequence[Any]) -> list[Any]:
    return [*args[0], *args[1:]] if args and isinstance(args[0], list) else list(args)


def _simple(x: Tensor, dtype: torch.dtype) -> bool:
    return x.is_meta and x.dtype == dtype and dtype.is_floating_point and x.numel() > 0


def _shape(name: str, args: tuple[Any, ...], given: Sequence[Sides]) -> Sequence[int] | None:
    shape, count = given[0], len(args)
    if name in _POINTWISE:
        return shape
    if name in ("add", "mul") and count == len(given) == 2:
        return _broadcast(*given)
    if name in ("mean", "sum") and count > 1 and isinstance(args[1], list):
        return _reduced(shape, args[1], count > 2 and args[2])
    if name in ("cat", "stack") and len(given) == len(args[0]):
        return _joined(name, given, args[1] if count > 1 else 0)
    if name == "addmm" and count == len(given) == 3:
        bias, (rows, inner), (own, columns) = given
        return (rows, columns) if inner == own and bias == (columns,) else None
    if name == "convolution" and not args[6] and len(given[0]) == len(given[1]) > 2:
        return _convolved(given, args[3], args[4], args[5], args[8])
    if name in ("avg_pool2d", "max_pool2d_with_indices") and 4 <= count <= 6:
        kernel, stride, padding = args[1:4]
        # Behind these: of the one whether a part of a window counts, of the other a dilation.
        usual = args[4:] in ((), (False,), (False, False), ([1, 1],), ([1, 1], False))
        if usual and all(2 * p <= k for p, k in zip(padding, kernel, strict=True)):
            return _slid(shape, kernel, stride, padding, [1, 1])
    return None


def _broadcast(one: Sides, other: Sides) -> Sequence[int] | None:
    most = max(len(one), len(other))
    padded = ((*[1] * (most - len(sides)), *sides) for sides in (one, other))
    pairs = list(zip(*padded, strict=True))
    return [max(pair) for pair in pairs] if all(a == b or 1 in (a, b) for a, b in pairs) else None


def _reduced(shape: Sides, dims: list[int], keep: bool) -> Sequence[int] | None:
    ndim = len(shape)
    if not dims or not all(-ndim <= d < ndim for d in dims):
        return None
    gone = {d % ndim for d in dims}
    if len(gone) < len(dims):
        return None
    return [1 if d in gone else n for d, n in enumerate(shape) if keep or d not in gone]


def _joined(name: str, given: Sequence[Sides], dim: int) -> Sequence[int] | None:
    first, ndim = given[0], len(given[0]) + (name == "stack")
    if len(set(map(len, given))) > 1 or not -ndim <= dim < ndim:
        return None
    dim %= ndim
    if name == "stack":
        return [*first[:dim], len(given), *first[dim:]] if len(set(given)) == 1 else None
    others = {(*shape[:dim], *shape[dim + 1 :]) for shape in given}
    side = sum(shape[dim] for shape in given)
    return [*first[:dim], side, *first[dim + 1 :]] if len(others) == 1 else None


def _convolved(
    given: Sequence[Sides],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Sequence[int] | None:
    (samples, inputs, *sides), (outputs, fan_in, *kernel), *bias = given
    if inputs != fan_in * groups or outputs % groups or bias not in ([], [(outputs,)]):
        return None
    return _slid((samples, outputs, *sides), kernel, stride, padding, dilation)


def _slid(
    shape: Sides, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Sequence[int] | None:
    """The shape behind a window that slides over all sides but the first two."""
    given = (shape[2:], kernel, stride, padding, dilation)
    if len({*map(len, given)}) > 1 or not kernel:
        return None
    return [
        *shape[:2],
        *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*given, strict=True)),
    ]


# Call of an operator on tensors without memory -> whether it gives one, and shape, stride, type.
_made_by: dict[Any, tuple[bool, list[tuple[Any, ...]]]] = {}
_MOST_CALLS = 100_000
_PLAIN = (Tensor, nn.Parameter)  # of no class with operators of its own
_VALUES = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


def _call_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All that the shapes depend on that `func` gives; None: not to be known, or no new tensors."""
    if not _makes_anew(func):
        return None
    key: list[Any] = [func, torch.get_default_dtype(), *kwargs]
    return tuple(key) if _note((*args, *kwargs.values()), key) else None


def _note(value: Any, key: list[Any]) -> bool:
    """Append what shapes may depend on of an argument; False: it cannot be told."""
    if isinstance(value, Tensor):
        plain = type(value) in _PLAIN and value.is_meta and not value.is_complex()
        if not plain or value.layout is not torch.strided:
            return False
        key.append((value.shape, value.stride(), value.dtype))
        return True
    if isinstance(value, list | tuple):
        key.append(len(value))
        return all(_note(item, key) for item in value)
    key.append((type(value), value))
    return value is None or isinstance(value, _VALUES)


@cache
def _makes_anew(func: Any) -> bool:
    """Whether an operator writes to no argument, gives none back, and is given a tensor."""
    schema = func._schema
    given = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return given and not schema.is_mutable and all(x.alias_info is None for x in schema.returns)


def _made(out: Any, given: Sequence[Any]) -> tuple[bool, list[tuple[Any, ...]]] | None:
    """What `out` consists of; None where it holds more than tensors of a storage of their own.

    The schema does not tell: ``_unsafe_view`` gives the storage of its argument.
    """
    outs = [out] if isinstance(out, Tensor) else out
    if not isinstance(outs, tuple | list) or not all(isinstance(x, Tensor) for x in outs):
        return None
    found = []
    for x in outs:
        alike = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        if not x.is_meta or x.untyped_storage().nbytes() != alike.untyped_storage().nbytes():
            return None
        found.append((x.shape, x.stride(), x.dtype))
    every = [*outs, *(x for x in given if isinstance(x, Tensor))]
    storages = [x.untyped_storage()._cdata for x in every]
    anew = all(storages.count(storage) == 1 for storage in storages[: len(outs)])
    return (isinstance(out, Tensor), found) if anew else None
