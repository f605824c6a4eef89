"""Which channels of a network matter most, by Taylor scores; used by compress_study.py."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from nas.compress.layer import SearchedLayer, Width
from nas.decision import decisions, split_parameters
from nas.inputs import Inputs, run
from nas.recalibrate import kept_modes


def widths(supernet: nn.Module) -> Iterator[tuple[str, Width]]:
    """Name and decision of every number of channels."""
    return ((name, one) for name, one in decisions(supernet) if isinstance(one, Width))


def taylor(
    supernet: nn.Module,
    batches: Iterable[tuple[Inputs, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[Width, Tensor]:
    """Score of each channel: how much the loss would change without it, to first order, squared.

    ``mean over batches of (sum_w w * dL/dw)^2`` over the weights that read the channel (Molchanov
    et al. 2019, eq. 8, with a gate on the channel), in the network of all channels. It computes in
    evaluation mode, and stays as it was.

    Args:
        supernet: as of `nas.compress.convert.searchable`.
        batches: inputs and targets, on its device.
        loss: of outputs and targets, a mean over samples.
    """
    found: dict[Width, Tensor] = {}
    weights = split_parameters(supernet).weights
    opened = [(one, one.open.clone()) for _, one in decisions(supernet)]
    learning = [one.alpha.requires_grad for one, _ in opened]
    with kept_modes(supernet):
        supernet.eval()
        for one, _ in opened:
            one.choose(one.options[-1])
            one.alpha.requires_grad_(False)
        for x, targets in batches:
            total = loss(run(supernet, x), targets)
            slopes = torch.autograd.grad(total, weights, allow_unused=True)
            for width, change in _changes(
                supernet, dict(zip(weights, slopes, strict=True))
            ).items():
                found[width] = found.get(width, 0.0) + change.square()
    for (one, state), learns in zip(opened, learning, strict=True):
        one.open.copy_(state)
        one.alpha.requires_grad_(learns)
    return found


def _changes(supernet: nn.Module, slopes: dict[nn.Parameter, Tensor | None]) -> dict[Width, Tensor]:
    """``sum_w w * dL/dw`` over the weights that read each channel."""
    found: dict[Width, Tensor] = {}
    for layer in supernet.modules():
        for slicing in layer.slicings if isinstance(layer, SearchedLayer) else ():
            weight = layer._parameters.get(slicing.tensor)
            slope = None if weight is None else slopes.get(weight)
            if not slicing.reads or weight is None or slope is None:
                continue
            width = layer._modules[slicing.width]
            assert isinstance(width, Width)
            change = (weight.detach() * slope).transpose(0, slicing.dim).flatten(1).sum(1)
            units = torch.from_numpy(slicing.units).to(change.device)
            own = change.new_zeros(len(width.first))
            own.index_add_(0, units[units >= 0], change[units >= 0])
            found[width] = found.get(width, torch.zeros_like(own)) + own
    return found


@torch.no_grad()
def put_in_order(scores: dict[Width, Tensor]) -> None:
    """Let narrower networks keep the channels of the largest scores, in place."""
    for width, score in scores.items():
        start = 0
        for size in width.groups:
            own = slice(start, start + size)
            order = score[own].argsort(descending=True, stable=True)
            first = width.first[own].sort().values
            width.first[own] = first.new_empty(size).scatter(0, order.to(first.device), first)
            start += size
