"""What each tensor operator does to the channels of its inputs; here: all that joins them."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.compress import movement, products  # noqa: F401  they register operators
from nas.compress.labels import EFFECTS, Effect, Labels, effect_of, pointwise
from nas.cost.activations import tensors

ASKING = ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero")  # values of tensors
_INSIDE = (torch.__path__[0], str(Path(__file__).parents[1]))


def follow(
    labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> None:
    """Set the places of what an operator makes; one that is not known fixes what it reads."""
    read = tensors((list(args), dict(kwargs)))
    if any(id(x) in labels.data for x in read):
        labels.mark(tensors(out))
        if func.overloadpacket.__name__ in ASKING:
            labels.asked.setdefault(labels.where, _line())
    if not any(labels.of(x) for x in read):
        return
    name = func.overloadpacket.__name__
    bound = [
        *args,
        *(kwargs.get(a.name, a.default_value) for a in func._schema.arguments[len(args) :]),
    ]
    known = EFFECTS.get(name) or EFFECTS.get(name.rstrip("_"))
    if known is None and _pointwise(func):
        known = pointwise
    names = {a.name for a in func._schema.arguments}
    if known is None and len(read) == 1 and names & {"dim", "dims"}:
        known = _along(func)
    if known is not None:
        known(labels, bound, out)
        return
    for x in read:
        labels.fix(x, None, f"the operator {name!r} reads them")


def _line() -> str:
    """File and line of the user's code that runs."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _pointwise(func: Any) -> bool:
    name = func.overloadpacket.__name__
    plain = getattr(getattr(torch.ops, func.namespace), name.rstrip("_"), func.overloadpacket)
    return any(torch.Tag.pointwise in getattr(plain, o).tags for o in plain.overloads())


def _along(func: Any) -> Effect:
    """An operator that joins or orders what is along some dimensions."""
    names = [a.name for a in func._schema.arguments]
    position = names.index("dim" if "dim" in names else "dims")

    def joined(labels: Labels, args: Sequence[Any], out: Any) -> None:
        x, asked, outs = args[0], args[position], tensors(out)
        if asked is None or asked == []:
            asked = list(range(x.ndim))
        dims = {d % max(x.ndim, 1) for d in ([asked] if isinstance(asked, int) else asked)}
        labels.fix(x, list(dims), f"{func.overloadpacket.__name__} joins them")
        for y in outs:
            kept = [d for d in range(x.ndim) if y.ndim == x.ndim or d not in dims]
            left = {kept.index(d): p for d, p in labels.of(x).items() if d in kept}
            labels.give(y, {d: p for d, p in left.items() if d not in dims or y.ndim != x.ndim})

    return joined


def _windows(rank: int) -> Effect:
    def windows(labels: Labels, args: Sequence[Any], out: Any) -> None:
        x = args[0]
        labels.fix(x, range(x.ndim - rank, x.ndim), "windows are taken")
        for y in tensors(out):
            labels.give(y, {d: p for d, p in labels.of(x).items() if d < x.ndim - rank})

    return windows


for _rank in (1, 2, 3):
    for _name in (
        "avg_pool",
        "max_pool",
        "adaptive_avg_pool",
        "_adaptive_avg_pool",
        "adaptive_max_pool",
        "lp_pool",
    ):
        EFFECTS[f"{_name}{_rank}d"] = _windows(_rank)
    EFFECTS[f"max_pool{_rank}d_with_indices"] = _windows(_rank)
    for _name in ("upsample_nearest", "_upsample_nearest_exact"):
        EFFECTS[f"{_name}{_rank}d"] = _windows(_rank)
EFFECTS |= {"upsample_linear1d": _windows(1), "upsample_trilinear3d": _windows(3)}
for _name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"):
    EFFECTS[_name] = _windows(2)


@effect_of("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
@effect_of("_batch_norm_no_update", "_batch_norm_with_update", "cudnn_batch_norm", "batch_norm")
def _batch_norm(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    own = [labels.of(y).get(0) for y in args[1:5] if isinstance(y, Tensor)]
    places = labels.tie(labels.of(x).get(1), *own)
    labels.give(tensors(out)[0], {**labels.of(x), **({} if places is None else {1: places})})


@effect_of("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, last = args[0], len(args[1])
    for y in tensors(list(args)):
        labels.fix(y, range(y.ndim - last, y.ndim), "a LayerNorm joins them")
    labels.give(tensors(out)[0], labels.of(x))


@effect_of("native_group_norm")
def _group_norm(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, weight, bias, groups = args[0], args[1], args[2], args[6]
    own = [labels.of(y).get(0) for y in (weight, bias) if isinstance(y, Tensor)]
    places = labels.tie(labels.of(x).get(1), *own)
    if places is not None:
        rows = places.reshape(groups, -1)
        labels.tie(np.repeat(rows[:, 0], rows.shape[1]), places)
        if groups == 1:
            labels.fix(x, [1], "a GroupNorm of one group joins them")
    labels.give(tensors(out)[0], labels.of(x))
