"""What every objective answers to, and the state and checks that they share."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from nas.errors import UserError


class Objective(Protocol):
    """Joins a task loss and costs to the scalar that alphas descend; state is in buffers."""

    @property
    def needs_targets(self) -> bool:
        """Whether it holds costs to budgets; then it is given the costs without noise."""
        ...

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        """Told, once and before the first step, what the costs are measured against.

        Args:
            reference: name -> mean cost over all architectures.
            targets: name -> budget; may lack costs or be empty.

        Raises:
            UserError: a target that is needed is missing, or makes no sense.
        """
        ...

    def __call__(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor: ...

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        """Adapt strengths, at equal intervals of the steps in which alphas move.

        Args:
            costs: name -> expected cost of the thetas without noise.
            progress: in (0, 1], of all steps in which alphas move.
        """
        ...

    def state(self) -> Mapping[str, float]:
        """What is worth a curve, by readable names: ``multiplier/params``, ..."""
        ...


class PerCost(nn.Module):
    """Base of the objectives: buffers with one entry per cost, in the order of `names`.

    Args:
        buffers: names of the buffers besides `reference` and `target`.
    """

    needs_targets: ClassVar[bool] = True
    reference: Tensor  # (I,) mean cost over all architectures; empty until `start`
    target: Tensor  # (I,) budgets; empty where none are needed

    def __init__(self, *buffers: str) -> None:
        super().__init__()
        self.names: tuple[str, ...] = ()
        for name in ("reference", "target", *buffers):
            self.register_buffer(name, torch.zeros(0))

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in reference.items()}
        _check_reference(values)
        self.names = tuple(values)
        self.reference = self.entries(values.values())
        if self.needs_targets:
            _check_targets(values, targets)
            self.target = self.entries(targets[name] for name in self.names)

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        """Nothing adapts here."""

    def state(self) -> Mapping[str, float]:
        return {}

    def entries(self, values: Iterable[float]) -> Tensor:
        """One entry per cost, where the other buffers are (not all devices have float64)."""
        return torch.tensor(list(values), dtype=torch.float32, device=self.reference.device)

    def vector(self, costs: Mapping[str, Tensor]) -> Tensor:
        """Costs ``(I,)`` in the order of `names`."""
        found = [costs[name] for name in self.names]
        return torch.stack(found) if found else self.reference

    def excess(self, costs: Mapping[str, Tensor]) -> Tensor:
        """``g_i = c_i / T_i - 1`` ``(I,)``: above 0 where a budget is exceeded, without a unit."""
        return self.vector(costs) / self.target - 1

    def by_name(self, label: str, values: Tensor) -> dict[str, float]:
        """Entries of `state`: ``label/<cost>``."""
        pairs = zip(self.names, values.tolist(), strict=True) if len(values) else ()
        return {f"{label}/{name}": value for name, value in pairs}

    # Buffers carry no names, and `start` is not called again when a run is resumed.
    def get_extra_state(self) -> dict[str, Any]:
        return {"names": list(self.names)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.names = tuple(state["names"])

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
        # Buffers have as many entries as there are costs, known only once a search starts.
        for name, buffer in list(self.named_buffers(recurse=False)):
            saved = state.get(f"{prefix}{name}")
            if saved is not None and saved.shape != buffer.shape:
                setattr(self, name, buffer.new_zeros(saved.shape))
        super()._load_from_state_dict(state, prefix, *rest)


def wide(task: Tensor) -> Tensor:
    """The task loss in float32 at least: in half precision a small penalty would round away."""
    return task.to(torch.promote_types(task.dtype, torch.float32))


def _check_reference(reference: Mapping[str, float]) -> None:
    for name, value in reference.items():
        if not 0 < value < float("inf"):
            raise UserError(
                f"cost {name!r} is {value:g} in the mean over all networks of this space, so it "
                "tells them apart by nothing: leave it out of cost=[...]"
            )


def _check_targets(reference: Mapping[str, float], targets: Mapping[str, float]) -> None:
    for name, value in reference.items():
        example = f"budget.{name}={value / 2:.2g}"
        if targets.get(name) is None:
            raise UserError(
                f"this objective needs a budget for every cost, and {name!r} has none: give it "
                f"one, such as {example} (half of the mean network), or leave it out of cost=[...]"
            )
        if not 0 < targets[name] < float("inf"):
            raise UserError(
                f"budget.{name}={targets[name]} must be a finite number above 0, in the unit of "
                f"the cost, such as {example} (half of the mean network)"
            )
    if unknown := sorted(targets.keys() - reference.keys()):
        raise UserError(
            f"budget.{unknown[0]}={targets[unknown[0]]} is the budget of no cost searched for: "
            f"add it to cost=[...], which holds {sorted(reference)} now"
        )
