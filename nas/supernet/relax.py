"""Relaxations: logits ``(K,)`` -> theta ``(K,)``, and the decisions, draws and schedules they use.

A relaxation is a plain function. A closed option has logit -inf and gets theta exactly 0; with one
option open theta is exactly one-hot. Noise is added to the logits by the decision, which keeps it
in its state, so that the forward pass and the cost see the same draw.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import cos, pi
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.arch import Option
from nas.config.schema import Positive, checked
from nas.decision import Decision

Relaxation = Callable[[Tensor], Tensor]
Made = TypeVar("Made")
Schedule = Callable[[float], float]  # progress of the search in [0, 1] -> value


def softmax(logits: Tensor) -> Tensor:
    """``exp(l_k) / sum exp(l)`` (DARTS, Liu et al. 2019, Eq. 2)."""
    return F.softmax(logits, dim=-1)


def straight_through(logits: Tensor) -> Tensor:
    """One-hot of the largest logit going forward, the gradient of softmax going back.

    With Gumbel noise in the logits this is the straight-through Gumbel-softmax (Jang et al. 2017,
    Sec. 2.2). A choice block outputs one candidate and evaluates all open ones for the gradient,
    ``dL/dalpha_k = theta_k (<g, o_k> - sum_j theta_j <g, o_j>) / tau`` with theta of the softmax,
    ``g = dL/dy`` and o_k the output of candidate k. The weights of the others get no gradient.
    """
    soft = softmax(logits)
    best = soft.argmax(-1, keepdim=True)
    hard = torch.zeros_like(soft, requires_grad=False).scatter_(-1, best, 1.0)
    # The one-hot vector alone is constant in alpha: the search would run and never move.
    return hard + (soft - soft.detach())


def one_path(logits: Tensor) -> Tensor:
    """As `straight_through`, but a choice block runs no other candidate and takes it to give 0.

    Or what its `stand_in` says. Time and memory are those of one network; the gradient differs.
    """
    return straight_through(logits)


def sigmoid(logits: Tensor) -> Tensor:
    """``1 / (1 + exp(-l_k))``: options do not compete (FairDARTS, Chu et al. 2020, Eq. 4).

    They sum to anything in (0, K), except that a single open option has exactly 1. The cost under
    them is that of a layer which keeps each option independently with probability theta_k.
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


# --- DrNAS: theta ~ Dir(elu(alpha) + 1) (Chen et al. 2021) ---
# The draw x, or its mean where nothing is drawn, goes through the relaxation as log x: softmax at
# tau = 1 gives x itself.

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
    blind = torch.compiler.is_compiling()  # a graph cannot look at values, and is one for both
    # A draw sums to 1, so that its logarithms cannot all be 0. No values are known while tracing.
    if not (blind or noise.is_meta) and bool(noise.any()):
        drawn: Tensor = _Reparametrised.apply(c, noise.float())
        return drawn
    mean = (c / c.sum(-1, keepdim=True)).log()
    if not blind:
        return mean
    is_drawn = noise.any()
    drawn = _Reparametrised.apply(c, torch.where(is_drawn, noise.float(), mean.detach()))
    return torch.where(is_drawn, drawn, mean)


class _Reparametrised(torch.autograd.Function):
    """Forward, the given draw; backward, its implicit gradient (Figurnov et al. 2018).

    As `torch.distributions.Dirichlet.rsample`, but for a draw that is kept over several passes.
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


# --- Schedules: partials of plain functions, not closures, as they may be sent to processes ---


@checked("relax.temperature")
def constant(tau: Positive = 1.0) -> Schedule:
    """The same temperature from beginning to end."""
    return partial(_straight, tau, tau)


@checked("relax.temperature")
def linear(start: Positive, end: Positive) -> Schedule:
    """``start + (end - start) * progress`` (GDAS, Dong and Yang 2019: from 10 to 0.1)."""
    return partial(_straight, start, end)


@checked("relax.temperature")
def exponential(start: Positive, end: Positive) -> Schedule:
    """``start * (end / start) ** progress`` (FBNet, Wu et al. 2019: an exponential decay)."""
    return partial(_geometric, start, end)


def linear_fade() -> Schedule:
    """``1 - progress``, of the weight of an auxiliary skip."""
    return partial(_straight, 1.0, 0.0)


def cosine_fade() -> Schedule:
    """``(1 + cos(pi progress)) / 2``, of the weight of an auxiliary skip."""
    return _cosine


def _straight(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _geometric(start: float, end: float, progress: float) -> float:
    return float(start * (end / start) ** progress)


def _cosine(progress: float) -> float:
    return (1 + cos(pi * progress)) / 2


class Mixing(Protocol):
    """How a block computes its output for one step instead of by its weighted sum."""

    def theta(self, block: Any) -> Tensor:
        """The probabilities ``(K,)`` that costs are expected under."""
        ...

    def __call__(self, block: Any, args: Any, kwargs: Any) -> Any:
        """The block's output for those arguments."""
        ...


class RelaxedDecision(Decision):
    """``theta = relax((alpha + noise) / tau)``.

    Args:
        options: the names of the alternatives, in the order of `alpha`.
        relax: one of `RELAXATIONS`, or another function ``(K,) -> (K,)``.
        gumbel: add Gumbel noise to alpha at every `resample`.
        tied_to: see `Decision`.
    """

    def __init__(
        self,
        options: Sequence[Option],
        relax: Relaxation = softmax,
        gumbel: bool = False,
        tied_to: Decision | None = None,
    ) -> None:
        super().__init__(options, tied_to)
        self.relax, self.gumbel = relax, gumbel
        self.dirichlet = False  # draw from Dir(elu(alpha) + 1); noise is then log of the draw
        self.mixing: Mixing | None = None  # see `nas.supernet.proxyless`

    def drawn(self) -> Tensor:
        if self.dirichlet:
            return log_dirichlet(self.alpha.float(), self.noise)
        return super().drawn()

    @property
    def theta(self) -> Tensor:
        return self.relax(self.logits) if self.mixing is None else self.mixing.theta(self)

    def resample(self, generator: torch.Generator | None = None) -> None:
        if self.dirichlet:
            self.noise.copy_(dirichlet_noise(self.alpha.detach(), generator))
        elif self.gumbel:
            self.noise.copy_(gumbel_noise(self.noise, generator))


class Shared(RelaxedDecision):
    """A decision of its own, to which all blocks that carry it out are tied.

    So that its name does not depend on how many there are, or where.
    """

    def active_if(self) -> Mapping[Option, nn.Module]:
        return dict.fromkeys(self.options, nn.Identity())

    def decisions(self) -> Sequence[Decision]:
        return ()  # it becomes the same whatever is taken


class _Pass(threading.local):
    """What was computed in the forward pass that this thread runs; None: it runs none."""

    found: dict[Any, Any] | None = None


_PASS = _Pass()


def known(key: Any, compute: Callable[[], Made]) -> Made:
    """What `compute` gives: computed once in a forward pass of a supernet with `once_in_a_pass`."""
    found = {} if _PASS.found is None else _PASS.found
    if key not in found:
        # Checkpointing compares what a part of a network saves when it runs again, alone.
        with torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
            found[key] = compute()
    made: Made = found[key]
    return made


def _itself(x: Tensor) -> Tensor:
    return x


def once_in_a_pass(supernet: nn.Module) -> None:
    """Let what many layers read of a decision be computed once in a pass, see `known`."""
    supernet.register_forward_pre_hook(_begin)
    supernet.register_forward_hook(_end, always_call=True)


def without_passes(network: nn.Module) -> None:
    """Undo `once_in_a_pass`."""
    for hooks in (network._forward_pre_hooks, network._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in HOOKS]:
            del hooks[key]
            network._forward_hooks_always_called.pop(key, None)


def _begin(*_: Any) -> None:
    _PASS.found = {}


def _end(*_: Any) -> None:
    _PASS.found = None


HOOKS = (_begin, _end)  # of a pass; they change nothing
