"""What a search minimises: the task loss joined with the expected costs."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from nas.errors import UserError


class Objective(Protocol):
    """Joins a task loss and costs to the scalar that alphas descend; state is in buffers."""

    def start(self, costs: Mapping[str, Tensor]) -> None:
        """Told the mean costs over all architectures, once, before the first step."""
        ...

    def __call__(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor: ...


class Plain(nn.Module):
    """``L = task + strength * sum_i c_i`` (relative: ``c_i / c_i(start)``; log: ``log`` of it).

    Relative costs are 1 at the start of every search, whatever the space and the unit, so that one
    default strength is sensible everywhere. In log scale a strength is the loss that a cost smaller
    by a factor e is worth, at any size: a sweep of strengths then spreads over a whole front.

    Args:
        strength: lambda; 0 searches for accuracy alone.
        relative: divide each cost by its value for the untrained supernet.
        log: penalise the logarithm of the cost.

    Raises:
        UserError: a negative strength, or one that is not a number.
    """

    reference: Tensor  # (number of costs,), 0 until `start`

    def __init__(self, strength: float = 0.3, relative: bool = True, log: bool = False) -> None:
        super().__init__()
        if not 0 <= strength < float("inf"):
            raise UserError(
                f"objective.strength={strength} must be a finite number of at least 0 "
                "(0 ignores the cost; larger values give smaller networks)"
            )
        self.strength, self.relative, self.log = strength, relative, log
        self.register_buffer("reference", torch.zeros(0))

    def start(self, costs: Mapping[str, Tensor]) -> None:
        device = next(iter(costs.values())).device if costs else torch.device("cpu")
        values = [
            cost.detach().float() if self.relative else torch.ones(()) for cost in costs.values()
        ]
        self.reference = torch.stack([value.to(device) for value in values])

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        if not self.strength:
            return task
        pairs = zip(costs.values(), self.reference, strict=True)
        penalties = torch.stack([(cost / reference).to(task) for cost, reference in pairs])
        return task + self.strength * (penalties.log() if self.log else penalties).sum()

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # The buffer has as many entries as there are costs, known only once a search starts.
        saved = state.get(f"{prefix}reference")
        if saved is not None:
            self.reference = torch.zeros_like(saved)
        super()._load_from_state_dict(state, prefix, *rest)
