"""Operators that only move numbers: views, slices, concatenations, paddings, look-ups."""

from collections.abc import Sequence
from math import gcd
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nas.compress.atoms import FIXED, Places
from nas.compress.labels import Labels, effect_of
from nas.cost.activations import tensors


@effect_of("view", "_unsafe_view", "reshape", "_reshape_alias", "squeeze", "unsqueeze", "view_copy")
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


@effect_of("permute", "transpose", "t", "movedim")
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


@effect_of("expand")
def _expand(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x = args[0]
    labels.give(out, {d - x.ndim: places for d, places in labels.of(x).items()})


@effect_of("repeat")
def _repeat(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, times = args[0], args[1]
    labels.give(out, {d - x.ndim: np.tile(p, times[d - x.ndim]) for d, p in labels.of(x).items()})


@effect_of("slice")
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


@effect_of("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk", "tensor_split")
def _split(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[2] % args[0].ndim
    known, start = dict(labels.of(x)), 0
    if d in known and len(out) > 1:
        labels.in_blocks(known[d], gcd(*(y.shape[d] for y in out)))
    for y in out:
        stop = start + y.shape[d]
        labels.give(y, {e: p[start:stop] if e == d else p for e, p in known.items()})
        start = stop


@effect_of("select", "unbind")
def _select(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[1] % args[0].ndim
    labels.fix(x, [d], "a part of them is taken")
    for y in tensors(out):
        labels.give(y, {e - (e > d): p for e, p in labels.of(x).items() if e != d})


@effect_of("cat", "stack")
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


@effect_of("constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
@effect_of("replication_pad1d", "replication_pad2d", "replication_pad3d", "_pad_circular")
def _pad(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, pads, made = args[0], args[1], {}
    for d, places in labels.of(x).items():
        index = 2 * (x.ndim - 1 - d)
        before, after = pads[index : index + 2] if index < len(pads) else (0, 0)
        places = places[max(0, -before) : len(places) - max(0, -after)]
        pair = (max(0, before), max(0, after))
        made[d] = np.pad(places, pair, constant_values=FIXED)
    labels.give(out, made)


@effect_of("flip")
def _flip(labels: Labels, args: Sequence[Any], out: Any) -> None:
    dims = {d % out.ndim for d in args[1]}
    labels.give(out, {d: p[::-1] if d in dims else p for d, p in labels.of(args[0]).items()})


@effect_of("roll")
def _roll(labels: Labels, args: Sequence[Any], out: Any) -> None:
    dims = [d % out.ndim for d in args[2]] or None
    labels.fix(args[0], dims, "they are rolled")
    labels.give(out, labels.of(args[0]))


@effect_of("index", "index_select", "gather", "embedding")
def _index(labels: Labels, args: Sequence[Any], out: Any) -> None:
    # The dimension whose values are looked up, and what takes its place in the shape.
    x, asked = args[0], args[1]
    if isinstance(asked, Tensor):
        dims, index = [0], asked
    elif isinstance(asked, int):
        dims, index = [asked % x.ndim], args[2]
    else:
        dims = [d for d, i in enumerate(asked) if i is not None]
        index = asked[dims[0]]
    if len(dims) > 1 or index.dtype == torch.bool or index.ndim == x.ndim > 1:
        labels.fix(x, None, "they are looked up")
        return
    labels.fix(x, dims, "they are looked up")
    shift = index.ndim - 1
    labels.give(
        out, {d + shift * (d > dims[0]): p for d, p in labels.of(x).items() if d != dims[0]}
    )


@effect_of("pixel_shuffle", "pixel_unshuffle")
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


@effect_of("glu")
def _glu(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[1] % args[0].ndim
    known = dict(labels.of(x))
    if d in known:
        known[d] = labels.in_blocks(known[d], x.shape[d] // 2)
    labels.give(out, known)


@effect_of("im2col")
def _im2col(labels: Labels, args: Sequence[Any], out: Any) -> None:
    x, d = args[0], args[0].ndim - 3
    labels.fix(x, [d + 1, d + 2], "windows are taken")
    known = {e: p for e, p in labels.of(x).items() if e <= d}
    if d in known:
        known[d] = np.repeat(known[d], out.shape[d] // x.shape[d])
    labels.give(out, known)
