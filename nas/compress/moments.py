"""Second moments of what trained layers read: all that least squares needs to know of the data.

A layer computes ``y = W p + b`` of each patch p ``(F,)`` of its input, F = C_in / groups * prod(K).
Whatever W' takes the place of W, the mean squared change of the outputs is

    E |W p - W' p|^2 = tr((W - W') G (W - W')^T),  G = E[p p^T],

and with a free bias, which takes the mean along (b' = b + (W - W') E[p]), the same with the
covariance of p in the place of G. So one pass over a few batches serves every candidate.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.errors import UserError
from nas.inputs import Inputs
from nas.recalibrate import run_all

Layer = nn.Linear | nn.Conv1d | nn.Conv2d
PATCHES = 16_384  # of one batch, drawn evenly where there are more
CHUNK = 2**24  # values of patches at a time
TOGETHER = 2**26  # values of second moments that are kept at a time


@dataclass(frozen=True)
class Moments:
    """Of the patches that one layer reads, in float64 on the CPU.

    Attributes:
        gram: E[p p^T] of each group of channels ``(groups, F, F)``.
        mean: E[p] ``(groups, F)``.
    """

    gram: Tensor
    mean: Tensor

    def of_change(self, biased: bool) -> Tensor:
        """G of the mean squared change: the covariance where a bias takes the mean along."""
        return self.gram - self.mean[:, :, None] * self.mean[:, None] if biased else self.gram


def flat_weight(layer: Layer) -> Tensor:
    """Its weight ``(groups, C_out / groups, F)`` in float64 on the CPU."""
    weight = layer.weight.detach().to("cpu", torch.float64)
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return weight.reshape(groups, -1, prod(weight.shape[1:]))


def moments(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Inputs] | None,
    all_run: bool = True,
) -> dict[nn.Module, Moments]:
    """The moments of `layers`, which are in `model`, over `batches`.

    Everything works as in evaluation; the model stays as it is.

    Args:
        batches: inputs ``(N, ...)``; None: patches are taken to be white, of mean 0, so that what
            is fitted is fitted to the weights alone.
        all_run: refuse a layer that does not run; else it is left out.

    Raises:
        UserError: there is no batch, or a layer does not run.
    """
    if batches is None:
        return {layer: _white(flat_weight(layer)) for layer in layers}
    sums: dict[nn.Module, list[Tensor | int]] = {}

    def add(layer: Layer, run: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(run, Layer)  # in the place of `layer`, with its hooks, perhaps unpadded
        gram, total, count = _sums(run, args[0])
        old = sums.get(layer, [0, 0, 0])
        sums[layer] = [old[0] + gram, old[1] + total, old[2] + count]

    hooks = [layer.register_forward_pre_hook(partial(add, layer)) for layer in layers]
    try:
        seen = run_all(model, batches)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise UserError("fitting candidates to a trained layer needs at least one batch, got none")
    if all_run and (missed := [layer for layer in layers if layer not in sums]):
        raise UserError(f"the forward pass does not reach {missed[0]}: exclude it")
    return {layer: Moments(g / n, m / n) for layer, (g, m, n) in sums.items()}  # type: ignore[arg-type]


def in_parts(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """All layers, some at a time: second moments take memory."""
    some: list[Layer] = []
    size = 0
    for layer in layers:
        values = prod(layer.weight.shape[1:]) ** 2
        if some and size + values > TOGETHER:
            yield some
            some, size = [], 0
        some.append(layer)
        size += values
    if some:
        yield some


def _white(weight: Tensor) -> Moments:
    groups, _, values = weight.shape
    eye = torch.eye(values, dtype=weight.dtype)
    return Moments(eye.expand(groups, -1, -1), eye.new_zeros(groups, values))


def _sums(layer: Layer, x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sums of ``p p^T`` and of p over the patches of a batch, and how many there are."""
    gram: Tensor | None = None
    total, count = torch.zeros(()), 0
    for patches in _patches(layer, x):  # (groups, F, patches)
        product = (patches @ patches.mT).to("cpu", torch.float64)
        gram = product if gram is None else gram + product
        total = total + patches.sum(-1).to("cpu", torch.float64)
        count += patches.shape[-1]
    assert gram is not None
    return gram, total, count


def _patches(layer: Layer, x: Tensor) -> Iterator[Tensor]:
    """What the layer reads for its outputs: ``(groups, F, patches)``, a part at a time."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        yield rows[:: -(-len(rows) // PATCHES)].mT[None]
        return
    ndim, groups = len(layer.kernel_size), layer.groups
    x = x if x.ndim == ndim + 2 else x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
    if ndim == 1:
        x = x[:, :, None]
    ones = (1,) * (2 - ndim)
    kernel, step, stride = (
        (*ones, *side) for side in (layer.kernel_size, layer.dilation, layer.stride)
    )
    places = prod(
        (n - d * (k - 1) - 1) // s + 1
        for n, k, d, s in zip(x.shape[2:], kernel, step, stride, strict=True)
    )
    every = max(1, len(x) * places // PATCHES)
    size = max(1, CHUNK // (layer.in_channels * prod(kernel) * places))
    for part in torch.split(x, size):
        columns = F.unfold(part, kernel, step, stride=stride)  # (N, C K, places)
        flat = columns.transpose(0, 1).flatten(1)[:, ::every]
        yield flat.reshape(groups, -1, flat.shape[-1])
