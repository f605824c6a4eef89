"""Statistics of BatchNorm: measured anew for one network of a supernet, or left as they were."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.errors import UserError
from nas.inputs import Inputs, run


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


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise by each batch, and all else work as in evaluation.

    A mixture of candidates has no running statistics of its own. Statistics and modes are as before
    afterwards; a backward pass must happen inside.
    """
    with kept_modes(network), kept_statistics(network):
        network.eval()
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        yield


@contextmanager
def kept_modes(network: nn.Module) -> Iterator[None]:
    """Put the training flag of every module back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def recalibrate(network: nn.Module, batches: Iterable[Inputs]) -> int:
    """Set every running mean and variance of `network` to those of all `batches` together.

    Each batch runs once without gradient, BatchNorm normalising with the batch's own statistics and
    everything else as in evaluation (dropout off), so that nothing is drawn. Weights, momenta and
    training flags stay as they are (Cai et al. 2020, Once-for-All; Yu et al. 2020, BigNAS).

    Every sample weighs the same, however they are split into batches: the first norm of a network
    gets what one batch of all samples would give it. A deeper one sees what the norms before it
    made of each batch, and that depends on the split.

    Args:
        batches: inputs ``(N, ...)`` on the network's device; training images, unaugmented.

    Returns:
        The number of batches seen.

    Raises:
        UserError: there is no batch.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    pools = [_Pool(norm) for norm in norms]
    try:
        for norm, pool in zip(norms, pools, strict=True):
            vars(norm)["forward"] = pool
        seen = run_all(network, batches)
    finally:
        for norm in norms:
            del norm.forward
    if not seen:
        raise UserError(
            "recalibrating BatchNorm needs at least one batch of training inputs, got none"
        )
    for pool in pools:
        pool.write()
    return seen


def run_all(network: nn.Module, batches: Iterable[Inputs]) -> int:
    """Run a network in eval mode on each batch, without gradients; gives their number."""
    seen = 0
    with kept_modes(network), torch.no_grad():
        network.eval()
        for x in batches:
            run(network, x)
            seen += 1
    return seen


class _Pool:
    """The statistics of all inputs of one norm, whose forward pass it is meanwhile."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.calls, self.count = norm, 0, 0  # count: values per channel

    def __call__(self, x: Tensor) -> Tensor:
        """The batch, normalised with its own statistics."""
        norm, count = self.norm, x.numel() // x.shape[1]
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        mean, variance = (x.new_zeros(x.shape[1], dtype=kind) for _ in range(2))
        if count > 1:
            # One kernel normalises and leaves the statistics, the variance unbiased.
            y = F.batch_norm(x, mean, variance, norm.weight, norm.bias, True, 1.0, norm.eps)
            self._add(count, mean, variance * (count - 1))
            if type(norm).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
                return y
            variance = variance * ((count - 1) / count)  # a norm that does more, as well
        if count == 1:
            self._add(1, x.flatten().to(kind), variance)
            # It has no variance of its own: it is normalised with that of all so far.
            mean, variance = self.mean, self.squares / self.count
        if count:
            self._use(mean, variance)
        found: Tensor = type(norm).forward(norm, x)
        return found

    def _add(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Join a batch to all (Chan, Golub and LeVeque 1979, Eq. 2.1); `squares` about `mean`."""
        self.calls += 1
        if not self.count:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total, away = self.count + count, mean - self.mean
        self.mean = self.mean + away * (count / total)
        self.squares = self.squares + squares + away.square() * (self.count * count / total)
        self.count = total

    def _use(self, mean: Tensor, variance: Tensor) -> None:
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        self.norm.running_mean.copy_(mean)
        self.norm.running_var.copy_(variance)

    def write(self) -> None:
        """Set them as the norm's own, with the unbiased variance, as training does."""
        self.norm.reset_running_stats()
        if not self.calls:
            return
        unbiased = self.squares / (self.count - 1) if self.count > 1 else self.squares + 1
        self._use(self.mean, unbiased)
        if self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked.fill_(self.calls)
