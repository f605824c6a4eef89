"""Architecture weights drawn from a Dirichlet distribution (DrNAS, Chen et al. 2021).

``x ~ Dir(c)``, ``c = elu(alpha) + 1``; where nothing is drawn, the mean ``c / sum c``. Both go
through the logits of the relaxation, as ``log x``: softmax at tau = 1 gives x itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-6  # share of an option in a draw: at 0 it would have no logarithm


def concentration(alpha: Tensor) -> Tensor:
    """``elu(alpha) + 1`` ``(K,)``, above 0; 1 at the start, where all mixtures are as likely."""
    return F.elu(alpha).add(1).clamp_min(1e-3)


def dirichlet_noise(alpha: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """``log x`` of one draw ``(K,)``, made on the CPU like all draws."""
    shares = torch._sample_dirichlet(concentration(alpha).double().cpu(), generator)
    shares = shares.clamp_min(SMALLEST)
    return (shares / shares.sum(-1, keepdim=True)).log().to(alpha)


def log_dirichlet(alpha: Tensor, noise: Tensor) -> Tensor:
    """``log x`` ``(K,)`` of the draw in `noise`, or of the mean, differentiable in alpha."""
    c = concentration(alpha)
    # A draw sums to 1, so that its logarithms cannot all be 0. No values are known while tracing.
    if noise.is_meta or not bool(noise.any()):
        return (c / c.sum(-1, keepdim=True)).log()
    drawn: Tensor = _Reparametrised.apply(c, noise.float())
    return drawn


class _Reparametrised(torch.autograd.Function):
    """The given draw going forward; going back, how it moves with the concentration.

    Implicit reparametrisation (Figurnov et al. 2018), as `torch.distributions.Dirichlet.rsample`
    has it. Here the draw is given, for a block keeps it over several passes.
    """

    @staticmethod
    def forward(ctx: Any, c: Tensor, log_x: Tensor) -> Tensor:
        ctx.save_for_backward(c, log_x)
        return log_x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        c, log_x = ctx.saved_tensors
        x = log_x.exp()
        slope = torch._dirichlet_grad(x, c, c.sum(-1, keepdim=True).expand_as(c).contiguous())
        by_x = grads[0] / x
        return slope * (by_x - (x * by_x).sum(-1, keepdim=True)), None
