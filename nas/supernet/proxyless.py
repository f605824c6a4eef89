"""Architecture gradients from sampled paths (ProxylessNAS, Cai et al. 2019, Sec. 3.2).

``p = softmax(logits)``. Each class here is the `Mixing` of one block for one step: which candidates
its forward pass runs, and which gradient its alphas get. `mixing` sets them on a model.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from nas.decision import decisions, free
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import Mixing, RelaxedDecision, Shared, gumbel_noise, softmax

Draws = Mapping[Parameter, Mixing]  # alpha -> the draw of the block or blocks that it decides


class TwoPaths:
    """Two sampled candidates with binary gates: one gives the output, both get a gradient (Eq. 4).

    The other one runs in the backward pass. With
    ``q = softmax`` over the two, ``dL/dalpha_i = sum_j dL/dg_j q_j (delta_ij - q_i)``, where the
    gradient of a gate is ``dL/dg_j = <dL/dy, op_j(x)>``. As ``q_a + q_b = 1``, that is the gradient
    along ``q_b`` of an output that moves from ``op_a(x)`` towards ``op_b(x)``.

    Args:
        active, inactive: indices of the candidates; the same if the block has but one.
    """

    def __init__(self, active: int, inactive: int) -> None:
        self.active, self.inactive = active, inactive

    @classmethod
    def draw(cls, block: RelaxedDecision, generator: torch.Generator | None = None) -> "TwoPaths":
        """Two candidates by p without replacement; of these, the active one by q."""
        logits = block.logits.detach()
        # The largest of logits + Gumbel noise are a draw without replacement, however small p is.
        two = (logits + gumbel_noise(logits, generator)).topk(min(2, len(logits))).indices
        share = softmax(logits[two])[0].item()
        if torch.rand((), generator=generator).item() >= share:
            two = two.flip(0)
        first, *others = two.tolist()
        return cls(first, *(others or [first]))

    def theta(self, block: RelaxedDecision) -> Tensor:
        """p; only the entries of the two candidates have a gradient, that of q.

        So a budget sees the expected cost of the whole distribution, while the gradient of the cost
        has the proportion to the loss's that it has in the paper.
        """
        logits = block.logits
        two = [self.active, self.inactive]
        shares = softmax(logits[two])
        moved = (shares - shares.detach()).to(logits)
        return softmax(logits).detach().index_add(0, torch.tensor(two, device=moved.device), moved)

    def __call__(self, block: ChoiceBlock, args: Any, kwargs: Any) -> Any:
        other = [self.inactive] if self.inactive != self.active else []
        return block.run_one(_gates(self, block), self.active, other, args, kwargs)

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
    """One sampled candidate gives the output; all get a gradient, each run in the backward pass.

    ``dL/dalpha_i = sum_j dL/dg_j p_j (delta_ij - p_i)`` over all candidates (`full_v2` of the
    reference code): exact where `TwoPaths` compares two, in the memory of one path.

    Args:
        active: index of the candidate that gives the output.
    """

    def __init__(self, active: int) -> None:
        self.active = active

    @classmethod
    def draw(cls, block: RelaxedDecision, generator: torch.Generator | None = None) -> "ExactPath":
        """One candidate by p."""
        return cls(draw_option(block.logits, generator))

    def theta(self, block: RelaxedDecision) -> Tensor:
        """p itself."""
        return softmax(block.logits)

    def __call__(self, block: ChoiceBlock, args: Any, kwargs: Any) -> Any:
        others = [k for k in range(len(block.options)) if k != self.active]
        return block.run_one(_gates(self, block), self.active, others, args, kwargs)


@contextmanager
def mixing(model: nn.Module, draws: Draws) -> Iterator[None]:
    """Make every block mix by its draw for a forward and backward pass within this context."""
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
    draw: Callable[[RelaxedDecision, torch.Generator | None], Mixing],
    generator: torch.Generator | None = None,
) -> dict[Parameter, Mixing]:
    """Open all options of `model`, and make one draw for each alpha.

    Raises:
        UserError: a decision that is no choice between modules.
    """
    free(model)
    draws: dict[Parameter, Mixing] = {}
    for name, decision in decisions(model):
        if not isinstance(decision, ChoiceBlock | Shared):
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


def _blocks(model: nn.Module) -> Iterator[ChoiceBlock | Shared]:
    """The blocks that mix, and the decisions that they share and that expected costs read."""
    return (module for module in model.modules() if isinstance(module, ChoiceBlock | Shared))


def _gates(draw: TwoPaths | ExactPath, block: ChoiceBlock) -> Tensor:
    """1 for the active candidate and 0 for all others, with the gradient of the probabilities."""
    theta = draw.theta(block)
    hard = torch.zeros_like(theta, requires_grad=False)
    hard[draw.active] = 1.0
    return hard + (theta - theta.detach())
