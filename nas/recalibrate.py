"""BatchNorm statistics measured anew: those of a supernet are a mixture over architectures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.errors import UserError


@contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Put every running mean, variance and count of batches back afterwards, to the bit.

    A backward pass must happen inside, too: autograd finds the statistics changed.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set every running mean and variance of `network` to its mean over `batches`.

    Each batch runs once without gradient, BatchNorm normalising with the batch's own statistics and
    everything else as in evaluation (dropout off), so that nothing is drawn. Weights, momenta and
    training flags stay as they are (Cai et al. 2020, Once-for-All; Yu et al. 2020, BigNAS).

    Args:
        batches: inputs ``(N, ...)`` on the network's device; training images, unaugmented.

    Returns:
        The number of batches seen.

    Raises:
        UserError: there is no batch.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [(module, module.training) for module in network.modules()]
    momenta = [norm.momentum for norm in norms]
    seen = 0
    network.eval()
    try:
        with torch.no_grad():
            for x in batches:
                for norm in () if seen else norms:
                    # Only now: with no batch the statistics stay what they were.
                    norm.reset_running_stats()
                    norm.momentum = None  # the plain mean over batches
                    norm.train()
                network(x)
                seen += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    if not seen:
        raise UserError(
            "recalibrating BatchNorm needs at least one batch of training inputs, got none"
        )
    return seen
