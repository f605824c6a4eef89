"""Relaxations: logits ``(K,)`` -> theta ``(K,)``, the weights a choice block mixes with.

Each is a plain function. A closed option has logit -inf and gets theta exactly 0; with one option
open theta is exactly one-hot. Noise (Gumbel) is added to the logits by the choice block, which
keeps it in its state, so forward and cost see the same draw.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Relaxation = Callable[[Tensor], Tensor]


def softmax(logits: Tensor) -> Tensor:
    """``exp(l_k) / sum exp(l)`` (DARTS, Liu et al. 2019, Eq. 2)."""
    return F.softmax(logits, dim=-1)


def straight_through(logits: Tensor) -> Tensor:
    """One-hot of the largest logit going forward, the gradient of softmax going back.

    With Gumbel noise in the logits this is the straight-through Gumbel-softmax (Jang et al. 2017,
    Sec. 2.2): every open candidate of a choice block runs, one is seen, and all are judged,
    ``dL/dalpha_k = theta_k (<g, o_k> - sum_j theta_j <g, o_j>) / tau`` with theta of the softmax,
    ``g = dL/dy`` and o_k what the candidates give. Weights of those not seen get no gradient.
    """
    soft = softmax(logits)
    best = soft.argmax(-1, keepdim=True)
    hard = torch.zeros_like(soft, requires_grad=False).scatter_(-1, best, 1.0)
    # The one-hot vector alone is constant in alpha: the search would run and never move.
    return hard + (soft - soft.detach())


def one_path(logits: Tensor) -> Tensor:
    """As `straight_through`, but a choice block runs no other candidate, and takes it to give 0.

    Or what its `stand_in` says. Time and memory are those of one network; the gradient is another.
    """
    return straight_through(logits)


def sigmoid(logits: Tensor) -> Tensor:
    """``1 / (1 + exp(-l_k))``: options do not compete (FairDARTS, Chu et al. 2020, Eq. 4).

    These add up to anything in (0, K), except that a single open option has exactly 1. A cost under
    them is that of a layer which keeps each option on its own with probability theta_k.
    """
    closed = logits.isneginf()
    alone = closed.sum(-1, keepdim=True) == closed.shape[-1] - 1
    return torch.where(alone & ~closed, torch.ones_like(logits), logits.sigmoid())


RELAXATIONS: dict[str, Relaxation] = {
    "softmax": softmax,
    "straight_through": straight_through,
    "one_path": one_path,
    "sigmoid": sigmoid,
}


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel draws of the shape of `like`: ``-log(e)``, e ~ Exp(1).

    Drawn on the CPU: a device's own generator would give each kind of device another search.
    """
    noise = torch.empty(like.shape).exponential_(generator=generator).log_().neg_()
    # Exp(1) in float32 can round to 0, and a noise of +inf makes softmax NaN.
    return noise.clamp_(max=50.0).to(like)
