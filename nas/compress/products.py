"""Convolutions, products of matrices, and attention."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from nas.compress.atoms import FIXED, Places
from nas.compress.labels import Labels, effect_of, pointwise
from nas.cost.activations import tensors


@effect_of("convolution")
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


@effect_of("mm", "bmm", "mv", "dot", "matmul")
def _product(labels: Labels, args: Sequence[Any], out: Any) -> None:
    _multiplied(labels, args[0], args[1], out)


@effect_of("addmm", "baddbmm", "addmv")
def _added_product(labels: Labels, args: Sequence[Any], out: Any) -> None:
    _multiplied(labels, args[1], args[2], out)
    pointwise(labels, [args[0], out], out)


@effect_of("linear")
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


@effect_of(
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
