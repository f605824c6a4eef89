"""Architecture gradients from sampled paths (ProxylessNAS, Cai et al. 2019, Sec. 3.2).

``p = softmax(logits)``. Each class here is the mixing of one block for one step: what its forward
pass runs, and which gradient its alphas get. `mixing` puts them into a model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.decision import decisions, free
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock, Mixing
from nas.supernet.relax import gumbel_noise, softmax

Draws = Mapping[Parameter, Mixing]  # alpha -> the draw of the block or blocks that it decides


class TwoPaths:
    """Two sampled candidates with binary gates: one is seen, both are judged (Eq. 4).

    Only the active candidate's output leaves the block; the other runs without gradient. With
    ``q = softmax`` over the two, ``dL/dalpha_i = sum_j dL/dg_j q_j (delta_ij - q_i)``, where the
    gradient of a gate is ``dL/dg_j = <dL/dy, op_j(x)>``. As ``q_a + q_b = 1``, that is the gradient
    along ``q_b`` of an output that moves from ``op_a(x)`` towards ``op_b(x)``.

    Args:
        active, inactive: indices of the candidates; the same if the block has but one.
    """

    def __init__(self, active: int, inactive: int) -> None:
        self.active, self.inactive = active, inactive

    @classmethod
    def draw(cls, block: ChoiceBlock, generator: torch.Generator | None = None) -> "TwoPaths":
        """Two candidates by p without replacement; of these, the active one by q."""
        logits = block.logits.detach()
        # The largest of logits + Gumbel noise are a draw without replacement, however small p is.
        two = (logits + gumbel_noise(logits, generator)).topk(min(2, len(logits))).indices
        share = softmax(logits[two])[0].item()
        if torch.rand((), generator=generator).item() >= share:
            two = two.flip(0)
        first, *others = two.tolist()
        return cls(first, *(others or [first]))

    def theta(self, block: ChoiceBlock) -> Tensor:
        """p in value; only the two move, and as q does.

        The expected cost is thus that of the whole distribution, which is what a budget is for,
        while its gradient is in the proportion to the loss's that it has in the paper.
        """
        logits = block.logits
        two = [self.active, self.inactive]
        shares = softmax(logits[two])
        moved = (shares - shares.detach()).to(logits)
        return softmax(logits).detach().index_add(0, torch.tensor(two, device=moved.device), moved)

    def __call__(self, block: ChoiceBlock, x: Tensor) -> Tensor:
        seen = _run(block, self.active, x)
        if self.active == self.inactive:
            return seen
        with torch.no_grad():
            unseen = _run(block, self.inactive, x)
        share = softmax(block.logits[[self.active, self.inactive]])[1]
        out: Tensor = _Gates.apply(seen, unseen, share)
        return out

    def keep_mass(self, alpha: Tensor, before: Tensor, tau: float) -> None:
        """Give the two together the probability that they had, and all others what they had.

        Args:
            alpha: after the optimizer's step, changed in place.
            before: alpha before it.
            tau: the temperature, ``p = softmax(alpha / tau)``.
        """
        two = [self.active, self.inactive]
        old, new = (before[two].double() / tau).logsumexp(0), (alpha[two].double() / tau)
        after = before.clone()
        # Momentum and weight decay, if the optimizer has them, move what was not sampled.
        after[two] = ((new + old - new.logsumexp(0)) * tau).to(alpha)
        alpha.copy_(after)


class ExactPath:
    """One sampled candidate is seen; all are judged, each run again in the backward pass.

    ``dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`` over all candidates (`full_v2` of the
    reference code): exact where `TwoPaths` compares two, in the memory of one path.

    Args:
        active: index of the candidate that is seen.
    """

    def __init__(self, active: int) -> None:
        self.active = active

    @classmethod
    def draw(cls, block: ChoiceBlock, generator: torch.Generator | None = None) -> "ExactPath":
        """One candidate by p."""
        return cls(draw_option(block.logits, generator))

    def theta(self, block: ChoiceBlock) -> Tensor:
        """p itself."""
        return softmax(block.logits)

    def __call__(self, block: ChoiceBlock, x: Tensor) -> Tensor:
        seen = _run(block, self.active, x)

        def again(x: Tensor) -> Iterator[Tensor | None]:
            for index in range(len(block.options)):
                yield None if index == self.active else _run(block, index, x)

        out: Tensor = _Recomputed.apply(seen, x.detach(), self.theta(block), again)
        return out


@contextmanager
def mixing(model: nn.Module, draws: Draws) -> Iterator[None]:
    """Inside, every block of `model` mixes by its draw; the backward pass belongs inside, too."""
    blocks = [block for block in _blocks(model) if block.alpha in draws]
    for block in blocks:
        block.mixing = draws[block.alpha]
    try:
        yield
    finally:
        for block in blocks:
            block.mixing = None


def draw_mixing(
    model: nn.Module,
    draw: Callable[[ChoiceBlock, torch.Generator | None], Mixing],
    generator: torch.Generator | None = None,
) -> dict[Parameter, Mixing]:
    """One draw for each alpha of `model`, all options being open.

    Raises:
        UserError: a decision that is no choice between modules.
    """
    free(model)
    draws: dict[Parameter, Mixing] = {}
    for name, decision in decisions(model):
        if not isinstance(decision, ChoiceBlock):
            raise UserError(
                f"decision {name!r} ({type(decision).__name__}) is no choice between modules, "
                "so no two paths can be sampled: take search=reinforce or search=bilevel"
            )
        draws[decision.alpha] = draw(decision, generator)
    return draws


def draw_path(model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Choose one option of every decision by its probability."""
    free(model)
    for _, decision in decisions(model):
        decision.choose(decision.options[draw_option(decision.logits, generator)])


def draw_option(logits: Tensor, generator: torch.Generator | None = None) -> int:
    """Index of one option by ``softmax(logits)`` (Gumbel maximum)."""
    logits = logits.detach()
    return int((logits + gumbel_noise(logits, generator)).argmax())


def _blocks(model: nn.Module) -> Iterator[ChoiceBlock]:
    return (module for module in model.modules() if isinstance(module, ChoiceBlock))


def _run(block: ChoiceBlock, index: int, x: Tensor) -> Tensor:
    out: Tensor = block.candidates[str(block.options[index])](x)
    return out


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """``<a, b>`` in float32 at least."""
    return (a * b).sum(dtype=torch.promote_types(a.dtype, torch.float32))


class _Gates(torch.autograd.Function):
    """``seen``; its gradient along `share` is that of ``seen + share * (unseen - seen)``."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, unseen: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(unseen - seen)
        ctx.dtype = share.dtype
        # A copy: what follows the block may work in place.
        return seen.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        (gradient,), (difference,) = gradients, ctx.saved_tensors
        return gradient, None, _inner(gradient, difference).to(ctx.dtype)


class _Recomputed(torch.autograd.Function):
    """``seen``; the gradient of theta_k is ``<dL/dy, op_k(x)>``, the ops being run for it."""

    @staticmethod
    def forward(
        ctx: Any,
        seen: Tensor,
        x: Tensor,
        theta: Tensor,
        again: Callable[[Tensor], Iterator[Tensor | None]],
    ) -> Tensor:
        ctx.save_for_backward(seen, x)
        ctx.dtype, ctx.again = theta.dtype, again
        device = x.device.type
        # The backward pass does not run under the autocast of the forward pass.
        ctx.autocast = torch.autocast(
            device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        )
        return seen.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (gradient,), (seen, x) = gradients, ctx.saved_tensors
        with torch.no_grad(), ctx.autocast:
            gates = [_inner(gradient, seen if y is None else y) for y in ctx.again(x)]
        return gradient, None, torch.stack(gates).to(ctx.dtype), None
