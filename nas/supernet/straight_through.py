"""One candidate gives the output; in the backward pass thetas get a gradient from each of them.

The output is passed on unchanged: neither multiplied by its theta, which is 1, nor copied. The
other candidates run in the backward pass, one after another and without a gradient of their own, so
that autograd keeps no more memory than for the plain network.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

# Of one candidate after another: indices into theta, and the outputs that they stand for.
Outcomes = Iterator[tuple[Sequence[int], Sequence[Tensor]]]
Recompute = Callable[[Any], Outcomes]  # the arguments of the block -> outcomes


class Reader:
    """Whether the module that reads a block's output writes on it, as found while training."""

    def __init__(self) -> None:
        self.writes: bool | None = None  # None until the first backward pass


def with_weight_gradient(
    outs: Sequence[Tensor], weight: Tensor, reader: Reader, inputs: Any
) -> tuple[list[Tensor], list[bool]]:
    """Return `outs`, and give `weight` the gradient ``<dL/dout, out>``, summed over `outs`.

    Args:
        weight: 0-dim, exactly 1.
        reader: of the outputs. Until it is known, copies are kept in case it writes on them.
        inputs: the arguments of what gave `outs`.

    Returns:
        The outputs, and which of them lie in the memory of `inputs`, so that nobody may write on
        them.
    """
    own = {_storage(x) for x in tree_leaves(inputs) if isinstance(x, Tensor)}
    shared = [_storage(out) in own for out in outs]
    fixed = [reader.writes is False and is_shared for is_shared in shared]
    passed: tuple[Tensor, ...] = _WeightGradient.apply(weight, reader, shared, *outs)
    return list(passed), fixed


def with_theta_gradient(
    outs: Sequence[Tensor],
    theta: Tensor,
    recompute: Recompute,
    inputs: Any,
    fixed: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Return `outs`, and give theta_k the gradient ``<dL/dout, o_k>``, o_k from `recompute`.

    Args:
        theta: ``(K,)``; entries that `recompute` does not name get a gradient of 0.
        recompute: called in the backward pass with `inputs`.
        inputs: any structure of tensors.
        fixed: as from `with_weight_gradient`.
    """
    leaves, spec = tree_flatten(inputs)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def again(tensors: Sequence[Tensor]) -> Outcomes:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return recompute(tree_unflatten(filled, spec))

    tensors = [leaves[place] for place in places]
    leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    passed: tuple[Tensor, ...] = _ThetaGradient.apply(
        theta, again, fixed or [False] * len(outs), *outs, *tensors
    )
    return list(passed)


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _inner(gradients: Sequence[Tensor | None], outs: Sequence[Tensor], like: Tensor) -> Tensor:
    """``sum_i <gradient_i, out_i>`` in float32 at least, then as `like`."""
    total: Tensor | None = None
    for gradient, out in zip(gradients, outs, strict=True):
        if gradient is None:
            continue
        product = (gradient * out.conj()).real if out.is_complex() else gradient * out
        term = product.sum(dtype=torch.promote_types(product.dtype, torch.float32))
        total = term if total is None else total + term
    return like.new_zeros(()) if total is None else total.to(like.dtype)


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, reader: Reader, shared: Sequence[bool], *outs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *outs)
        ctx.reader, ctx.copies = reader, None
        passed = tuple(map(_handed(reader.writes), outs, shared))
        if reader.writes is None:
            ctx.copies, ctx.like = [out.clone() for out in outs], weight.detach()
            # Each has the version counter of what is handed out, and does not keep it alive.
            ctx.handed = [(y.detach(), y._version) for y in passed]
        return passed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        written = False
        if ctx.copies is not None:
            written = any(y._version != version for y, version in ctx.handed)
            ctx.reader.writes = written or bool(ctx.reader.writes)
        if written:
            return _inner(gradients, ctx.copies, ctx.like), None, None, *gradients
        weight, *outs = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative sees that the output had this weight
            moving = [None if g is None else g * weight for g in gradients]
            return _inner(gradients, outs, weight), None, None, *moving
        return _inner(gradients, outs, weight), None, None, *gradients


def _handed(writes: bool | None) -> Callable[[Tensor, bool], Tensor]:
    """How an output is handed out, given whether it lies in the memory of the input."""

    def hand(out: Tensor, shared: bool) -> Tensor:
        if writes or (writes is None and shared):
            return out.clone()
        # PyTorch refuses to write on a view that is made here; the input would be lost.
        return out.view_as(out) if shared else out.detach()

    return hand


class _ThetaGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, theta: Tensor, again: Callable[..., Any], fixed: Sequence[bool], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        outs, inputs = tensors[: len(fixed)], tensors[len(fixed) :]
        ctx.save_for_backward(theta, *inputs)
        ctx.again = again
        device = outs[0].device.type
        # The backward pass does not run under the autocast of the forward pass.
        ctx.autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        return tuple(map(_handed(False), outs, fixed))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        theta, *inputs = ctx.saved_tensors
        scores = [theta.new_zeros(())] * len(theta)
        moved: list[Tensor | None] = [None] * len(inputs)
        with ctx.autocast:
            for places, outs in ctx.again(inputs):
                score = _inner(gradients, outs, theta)
                for place in places:
                    scores[place] = score
                if torch.is_grad_enabled():
                    parts = _input_gradients(gradients, outs, inputs)
                    moved = [
                        _plus(a, b, theta[list(places)].sum())
                        for a, b in zip(moved, parts, strict=True)
                    ]
        return torch.stack(scores), None, None, *gradients, *moved


def _input_gradients(
    gradients: Sequence[Tensor | None], outs: Sequence[Tensor], inputs: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The gradient of the inputs through a candidate that gives no output, were its theta 1.

    Its theta is 0, so that only a second derivative needs it.
    """
    used = [
        (out, g)
        for out, g in zip(outs, gradients, strict=True)
        if g is not None and out.requires_grad
    ]
    places = [i for i, x in enumerate(inputs) if x.requires_grad]
    found: list[Tensor | None] = [None] * len(inputs)
    if used and places:
        parts = torch.autograd.grad(
            [out for out, _ in used],
            [inputs[i] for i in places],
            [g for _, g in used],
            create_graph=True,
            allow_unused=True,
        )
        for place, part in zip(places, parts, strict=True):
            found[place] = part
    return found


def _plus(total: Tensor | None, part: Tensor | None, theta: Tensor) -> Tensor | None:
    if part is None:
        return total
    return theta * part if total is None else total + theta * part
