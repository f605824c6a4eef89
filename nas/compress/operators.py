"""What each tensor operator does to the channels of its inputs.

The places of a tensor are known for some of its dimensions, for each as one atom for each index
along it. Where a dimension has no places, nothing may be taken away from it.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.compress.atoms import FIXED, Atoms, Places
from nas.cost.activations import tensors

Dims = Mapping[int, Places]  # dimension -> its places


class Labels:
    """The places of all tensors of one forward pass.

    Attributes:
        where: path of the module that runs, for reasons.
        heads: numbers of heads of the module that runs.
        hosts: path of a module -> places of its heads.
        read: atoms of weights over which a product sums.
        data: ids of the inputs, and of what is made of them.
    """

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.where = ""
        self.heads: set[int] = set()
        self.hosts: dict[str, list[Places]] = defaultdict(list)
        self.read: list[Places] = []
        self.data: set[int] = set()
        self._dims: dict[int, Dims] = {}
        self._kept: list[Tensor] = []  # so that no tensor gets the id of another

    def of(self, x: Any) -> Dims:
        """The places of a tensor; {} if it has none, or is none."""
        return self._dims.get(id(x), {})

    def give(self, x: Tensor, dims: Dims) -> None:
        """Set the places of a tensor; dimensions of size 1 have none."""
        known = {d % x.ndim: places for d, places in dims.items() if x.shape[d] > 1}
        if known or id(x) in self._dims:
            self._dims[id(x)] = known
            self._kept.append(x)

    def mark(self, made: Sequence[Tensor]) -> None:
        """Take tensors for data."""
        self.data.update(id(x) for x in made)
        self._kept += made

    def fix(self, x: Any, dims: Sequence[int] | None, why: str) -> None:
        """Nothing may be taken from these dimensions of x; None: from any."""
        for d, places in self.of(x).items():
            if dims is None or d in dims:
                self.atoms.fix(places, f"{why} in {self.where or 'the network'}")

    def tie(self, *several: Places | None) -> Places | None:
        """Tie places of one dimension of several tensors; None stands for a fixed dimension."""
        known = [places for places in several if places is not None]
        if not known:
            return None
        why = f"channels meet a constant in {self.where or 'the network'}"
        if len(known) < len(several):
            for places in known:
                self.atoms.fix(places, why)
        for places in known[1:]:
            self.atoms.tie(known[0], places, why)
        return known[0]

    def in_blocks(self, places: Places, length: int) -> Places:
        """Cut places into blocks of one length, which lose the same ones; the places of a block."""
        blocks: Places = places.reshape(-1, length)
        if length == 1:
            self.atoms.fix(places, f"channels are told apart in {self.where or 'the network'}")
        for block in blocks[1:]:
            self.tie(blocks[0], block)
        own: Places = blocks[0]
        return own


Rule = Callable[[Labels, Sequence[Any], Any], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what operators of these names do: labels, arguments, outputs."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def follow(
    labels: Labels, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
) -> None:
    """Set the places of what an operator makes; one that is not known fixes what it reads."""
    read = tensors((list(args), dict(kwargs)))
    if any(id(x) in labels.data for x in read):
        labels.mark(tensors(out))
    if not any(labels.of(x) for x in read):
        return
    name = func.overloadpacket.__name__
    bound = [
        *args,
        *(kwargs.get(a.name, a.default_value) for a in func._schema.arguments[len(args) :]),
    ]
    known = RULES.get(name) or RULES.get(name.rstrip("_"))
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


def _pointwise(func: Any) -> bool:
    name = func.overloadpacket.__name__
    plain = getattr(getattr(torch.ops, func.namespace), name.rstrip("_"), func.overloadpacket)
    return any(torch.Tag.pointwise in getattr(plain, o).tags for o in plain.overloads())


def pointwise(labels: Labels, args: Sequence[Any], out: Any) -> None:
    """``y[i] = f(x[i], ...)``, broadcast."""
    outs = tensors(out)
    read = tensors(list(args))
    rank = max(x.ndim for x in outs)
    made = {}
    for d in range(-rank, 0):
        size = outs[0].shape[d]
        here = [x for x in read if x.ndim >= -d and x.shape[d] == size]
        if size > 1 and here:
            places = labels.tie(*(labels.of(x).get(x.ndim + d) for x in here))
            if places is not None:
                made[d] = places
    for y in outs:
        labels.give(y, {d: places for d, places in made.items() if -d <= y.ndim})


_POINTWISE = """
clone detach alias lift_fresh contiguous _to_copy to positive hardswish hardsigmoid _prelu_kernel
prelu log_sigmoid_forward native_dropout dropout feature_dropout rrelu_with_noise masked_fill where
copy empty_like zeros_like ones_like full_like rand_like randn_like bernoulli
"""
RULES |= dict.fromkeys(_POINTWISE.split(), pointwise)


def _along(func: Any) -> Rule:
    """An operator that joins or orders what is along some dimensions."""
    names = [a.name for a in func._schema.arguments]
    position = names.index("dim" if "dim" in names else "dims")

    def joined(labels: Labels, args: Sequence[Any], out: Any) -> None:
        x, given, outs = args[0], args[position], tensors(out)
        if given is None or given == []:
            given = list(range(x.ndim))
        dims = {d % max(x.ndim, 1) for d in ([given] if isinstance(given, int) else given)}
        labels.fix(x, list(dims), f"{func.overloadpacket.__name__} joins them")
        for y in outs:
            kept = [d for d in range(x.ndim) if y.ndim == x.ndim or d not in dims]
            moved = {kept.index(d): p for d, p in labels.of(x).items() if d in kept}
            labels.give(y, {d: p for d, p in moved.items() if d not in dims or y.ndim != x.ndim})

    return joined


# --- what only moves numbers ---


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "view_copy")
def _view(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    made: dict[int, Places | None] = {}
    for own, other in _segments(x.shape, out.shape):
        known = {d: labels.of(x)[d] for d in own if d in labels.of(x)}
        for d, places in known.items():
            if len(own) == len(other) == 1:
                found = (other[0], places)
            else:
                shape = [x.shape[e] if e == d else 1 for e in own]
                whole = np.broadcast_to(places.reshape(shape), [x.shape[e] for e in own])
                found = _along_one(labels, whole.reshape([out.shape[e] for e in other]), other)
            old = made.get(found[0])
            made[found[0]] = found[1] if old is None else labels.tie(old, found[1])
    labels.give(out, {d: places for d, places in made.items() if places is not None})


def _segments(left: Sequence[int], right: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dimensions of two shapes that have as many elements each."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        own, other, a, b = [i], [j], left[i], right[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                own, a, i = [*own, i], a * left[i], i + 1
            else:
                other, b, j = [*other, j], b * right[j], j + 1
        found.append((own, other))
    return found


def _along_one(labels: Labels, whole: Places, dims: Sequence[int]) -> tuple[int, Places]:
    """The places of a block that vary along one of its dimensions; others are tied to that."""
    varying = [a for a in range(whole.ndim) if (whole != whole.take([0], a)).any()]
    if not varying:
        varying = [int(np.argmax(whole.shape))]
    # Heads go as a whole, where the module knows how many there are.
    heads = [a for a in varying[:-1] if whole.shape[a] in labels.heads]
    axis = heads[-1] if heads else varying[-1]
    rows = np.moveaxis(whole, axis, -1).reshape(-1, whole.shape[axis])
    if len(varying) > 1:
        labels.tie(np.broadcast_to(rows[0], rows.shape).ravel(), rows.ravel())
    if heads:
        labels.hosts[labels.where].append(rows[0])
    return dims[axis], rows[0]


@rule("permute", "transpose", "t", "movedim")
def _permute(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    order = list(range(x.ndim))
    if len(args) == 1:
        order = order[::-1]
    elif isinstance(args[1], int):
        order[args[1]], order[args[2]] = order[args[2]], order[args[1]]
    else:
        order = [d % x.ndim for d in args[1]]
    labels.give(out, {i: labels.of(x)[d] for i, d in enumerate(order) if d in labels.of(x)})


@rule("expand")
def _expand(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    labels.give(out, {d - x.ndim: places for d, places in labels.of(x).items()})


@rule("repeat")
def _repeat(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, times = args[0], args[1]
    labels.give(out, {d - x.ndim: np.tile(p, times[d - x.ndim]) for d, p in labels.of(x).items()})


@rule("slice")
def _slice(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d, start, end, step = args[0], args[1] % args[0].ndim, args[2] or 0, args[3], args[4]
    known, size = dict(labels.of(x)), x.shape[args[1]]
    if d in known:
        bounds = range(size)[start:end:step]
        if step == 1 and len(bounds) and len(bounds) < size:
            labels.in_blocks(known[d], gcd(size, bounds.start, bounds.stop))
        elif len(bounds) < size:
            labels.fix(x, [d], "a part of them is taken")
        known[d] = known[d][bounds.start : bounds.stop : step]
    labels.give(out, known)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[2] % args[0].ndim
    known, start = dict(labels.of(x)), 0
    if d in known and len(out) > 1:
        labels.in_blocks(known[d], gcd(*(y.shape[d] for y in out)))
    for y in out:
        stop = start + y.shape[d]
        labels.give(y, {e: p[start:stop] if e == d else p for e, p in known.items()})
        start = stop


@rule("select", "unbind")
def _select(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[1] % args[0].ndim
    labels.fix(x, [d], "a part of them is taken")
    for y in tensors(out):
        labels.give(y, {e - (e > d): p for e, p in labels.of(x).items() if e != d})


@rule("cat", "stack")
def _cat(labels: Labels, args: Sequence[Any], out: Any) -> None:
    parts, made = [x for x in args[0] if x.ndim and x.numel()], {}
    d = (args[1] or 0) % out.ndim
    stacked = parts[0].ndim < out.ndim
    for e in range(parts[0].ndim):
        if out.shape[e + (stacked and e >= d)] == 1:
            continue
        if e == d and not stacked:
            whole = [labels.of(x).get(e, np.full(x.shape[e], FIXED)) for x in parts]
            if any(e in labels.of(x) for x in parts):
                made[e] = np.concatenate(whole)
        elif (places := labels.tie(*(labels.of(x).get(e) for x in parts))) is not None:
            made[e + (stacked and e >= d)] = places
    labels.give(out, made)


@rule("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@rule("replication_pad1d", "replication_pad2d", "replication_pad3d", "_pad_circular")
def _pad(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, pads, made = args[0], args[1], {}
    for d, places in labels.of(x).items():
        index = 2 * (x.ndim - 1 - d)
        before, after = pads[index : index + 2] if index < len(pads) else (0, 0)
        places = places[max(0, -before) : len(places) - max(0, -after)]
        pair = (max(0, before), max(0, after))
        made[d] = np.pad(places, pair, constant_values=FIXED)
    labels.give(out, made)


@rule("flip")
def _flip(labels: Labels, args: Sequence[Any], out: Any) -> None:
    dims = {d % out.ndim for d in args[1]}
    labels.give(out, {d: p[::-1] if d in dims else p for d, p in labels.of(args[0]).items()})


@rule("roll")
def _roll(labels: Labels, args: Sequence[Any], out: Any) -> None:
    dims = [d % out.ndim for d in args[2]] or None
    labels.fix(args[0], dims, "they are rolled")
    labels.give(out, labels.of(args[0]))


@rule("index", "index_select", "gather", "embedding")
def _index(labels: Labels, args: Sequence[Any], out: Any) -> None:
    # The dimension whose values are looked up, and what takes its place in the shape.
    x, given = args[0], args[1]
    if isinstance(given, Tensor):
        dims, index = [0], given
    elif isinstance(given, int):
        dims, index = [given % x.ndim], args[2]
    else:
        dims = [d for d, i in enumerate(given) if i is not None]
        index = given[dims[0]]
    if len(dims) > 1 or index.dtype == torch.bool or index.ndim == x.ndim > 1:
        labels.fix(x, None, "they are looked up")
        return
    labels.fix(x, dims, "they are looked up")
    shift = index.ndim - 1
    labels.give(
        out, {d + shift * (d > dims[0]): p for d, p in labels.of(x).items() if d != dims[0]}
    )


@rule("pixel_shuffle", "pixel_unshuffle")
def _pixel_shuffle(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[0].ndim - 3
    known = dict(labels.of(x))
    labels.fix(x, [d + 1, d + 2], "pixels are shuffled")
    if (places := known.get(d)) is not None:
        if x.shape[d] > out.shape[d]:
            rows = places.reshape(out.shape[d], -1)
            labels.tie(np.repeat(rows[:, 0], rows.shape[1]), places)
            known[d] = rows[:, 0]
        else:
            known[d] = np.repeat(places, out.shape[d] // x.shape[d])
    labels.give(out, {e: p for e, p in known.items() if e <= d})


@rule("glu")
def _glu(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[1] % args[0].ndim
    known = dict(labels.of(x))
    if d in known:
        known[d] = labels.in_blocks(known[d], x.shape[d] // 2)
    labels.give(out, known)


@rule("im2col")
def _im2col(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[0].ndim - 3
    labels.fix(x, [d + 1, d + 2], "windows are taken")
    known = {e: p for e, p in labels.of(x).items() if e <= d}
    if d in known:
        known[d] = np.repeat(known[d], out.shape[d] // x.shape[d])
    labels.give(out, known)


# --- windows along the last dimensions, each channel for itself ---


def _windows(rank: int) -> Rule:
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
        RULES[f"{_name}{_rank}d"] = _windows(_rank)
    RULES[f"max_pool{_rank}d_with_indices"] = _windows(_rank)
    for _name in ("upsample_nearest", "_upsample_nearest_exact"):
        RULES[f"{_name}{_rank}d"] = _windows(_rank)
RULES |= {"upsample_linear1d": _windows(1), "upsample_trilinear3d": _windows(3)}
for _name in ("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"):
    RULES[_name] = _windows(2)


# --- norms ---


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
@rule("_batch_norm_no_update", "_batch_norm_with_update", "cudnn_batch_norm", "batch_norm")
def _batch_norm(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    own = [labels.of(y).get(0) for y in args[1:5] if isinstance(y, Tensor)]
    places = labels.tie(labels.of(x).get(1), *own)
    labels.give(tensors(out)[0], {**labels.of(x), **({} if places is None else {1: places})})


@rule("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, last = args[0], len(args[1])
    for y in tensors(list(args)):
        labels.fix(y, range(y.ndim - last, y.ndim), "a LayerNorm joins them")
    labels.give(tensors(out)[0], labels.of(x))


@rule("native_group_norm")
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


# --- products ---


@rule("convolution")
def _convolution(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    labels.fix(x, range(2, x.ndim), "a convolution goes along them")
    reads, makes = (0, 1) if transposed else (1, 0)
    inputs, own = labels.of(x).get(1), labels.of(weight)
    outputs = own.get(makes)
    if inputs is None and x.shape[1] > 1:
        inputs = np.full(x.shape[1], FIXED)
    each, made = x.shape[1] // groups, out.shape[1] // groups
    if groups == 1:
        _sum_over(labels, inputs, own.get(reads) if each > 1 else None)
    elif each == 1:
        assert inputs is not None
        # Depthwise: a group is one channel, and goes with what it makes.
        whole = np.repeat(inputs, made)
        if transposed:
            labels.tie(inputs, own.get(0))
            labels.fix(weight, [1], "a transposed convolution makes several of each channel")
            outputs = whole
        else:
            outputs = labels.tie(whole, outputs)
    else:
        assert inputs is not None
        # Every group keeps equally many.
        per_group = labels.in_blocks(inputs, each)
        if transposed:
            if own.get(0) is not None:
                _sum_over(labels, per_group, labels.in_blocks(own[0], each))
                labels.read.append(own[0])
            outputs = np.tile(own.get(1, np.full(made, FIXED)), groups)
        else:
            _sum_over(labels, per_group, own.get(1))
            if outputs is not None and made > 1:
                labels.in_blocks(outputs, made)
            elif outputs is not None:
                labels.fix(weight, [0], "each group makes one channel")
    if isinstance(bias, Tensor) and out.shape[1] > 1:
        labels.tie(outputs, labels.of(bias).get(0))
    labels.give(out, {} if outputs is None else {1: outputs})


def _sum_over(labels: Labels, inputs: Places | None, weights: Places | None) -> None:
    """A product sums over these places of data and of a weight."""
    labels.tie(inputs, weights)
    if weights is not None:
        labels.read.append(weights)


@rule("mm", "bmm", "mv", "dot", "matmul")
def _product(labels: Labels, args: Sequence[Any], out: Any) -> None:
    _multiplied(labels, args[0], args[1], out)


@rule("addmm", "baddbmm", "addmv")
def _added_product(labels: Labels, args: Sequence[Any], out: Any) -> None:
    _multiplied(labels, args[1], args[2], out)
    pointwise(labels, [args[0], out], out)


@rule("linear")
def _linear(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, weight, bias = args[0], args[1], args[2]
    own = labels.of(weight)
    _sum_over(labels, labels.of(x).get(x.ndim - 1), own.get(1))
    made = {d: p for d, p in labels.of(x).items() if d < x.ndim - 1}
    if 0 in own:
        made[out.ndim - 1] = own[0]
    labels.give(out, made)
    if isinstance(bias, Tensor):
        pointwise(labels, [bias, out], out)


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
def _attention(labels: Labels, args: Sequence[Any], out: Any) -> None:
    parts = [x for x in args if isinstance(x, Tensor)]
    for x in parts:
        labels.fix(x, [0, 2, 3], "attention sums over them")
    heads = labels.tie(*(labels.of(x).get(1) for x in parts if x.ndim == 4 and x.shape[1] > 1))
    labels.give(tensors(out)[0], {} if heads is None else {1: heads})


def _multiplied(labels: Labels, left: Tensor, right: Tensor, out: Tensor) -> None:
    """``(..., n, k) @ (..., k, m)``, or the same without n or m."""
    if id(left) in labels.data and id(right) in labels.data:
        labels.fix(left, [left.ndim - 1], "a product of activations sums over them")
        labels.fix(right, [max(0, right.ndim - 2)], "a product of activations sums over them")
    a, b = labels.of(left), labels.of(right)
    inner, outer = left.ndim - 1, max(0, right.ndim - 2)
    one, other = a.get(inner), b.get(outer)
    made: dict[int, Places] = {}
    if left.shape[-1] > 1:
        labels.tie(one, other)
        # Of what is made of weights alone, as a table of positions is, the right one is read.
        weight = other if id(right) not in labels.data else one
        if weight is not None and not {id(left), id(right)} <= labels.data:
            labels.read.append(weight)
    if left.ndim > 1 and inner - 1 in a:
        made[left.ndim - 2] = a[inner - 1]
    if right.ndim > 1 and right.ndim - 1 in b:
        made[out.ndim - 1] = b[right.ndim - 1]
    for d in range(left.ndim - 2):
        if left.shape[d] > 1:
            places = labels.tie(a.get(d), b.get(d))
            if places is not None:
                made[d] = places
    labels.give(out, made)
