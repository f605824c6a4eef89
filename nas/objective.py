"""Objectives: how a search joins the task loss and the expected costs to what it minimises."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nas.config.schema import NonNegative, Positive, Share, checked
from nas.errors import UserError
from nas.ranks import averaged


class Objective(nn.Module):
    """Base of the objectives: joins a task loss and costs to the scalar that alphas descend.

    A subclass defines `penalty`, or `forward` where the loss is no sum. The state is in buffers of
    one entry per cost, in the order of `names`. Constructors raise UserError for a number out of
    its range.

    Args:
        buffers: names of the buffers besides `reference` and `target`.

    Attributes:
        needs_targets: whether it holds costs to budgets; then it is given costs without noise.
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
        """Called once, before the first step, with what the costs are measured against.

        Args:
            reference: name -> mean cost over all architectures.
            targets: name -> budget; may lack costs or be empty.

        Raises:
            UserError: a mean cost of 0, or a target that is missing or makes no sense.
        """
        values = {name: float(value) for name, value in reference.items()}
        _check_reference(values)
        self.names = tuple(values)
        self.reference = self._entries(values.values())
        if self.needs_targets:
            _check_targets(values, targets)
            self.target = self._entries(targets[name] for name in self.names)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        """The loss ``task + penalty``; task, costs and loss are all ``()``."""
        task = wide(task)
        return task + self.penalty(costs).to(task)

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        """What the costs add to the task loss, ``()``."""
        raise NotImplementedError

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        """Adapt strengths, at equal intervals of the steps in which alphas move.

        Args:
            costs: name -> expected cost of the thetas without noise.
            progress: in (0, 1], of all steps in which alphas move.
        """

    def state(self) -> Mapping[str, float]:
        """The values to draw as curves, by readable names: ``multiplier/params``, ..."""
        return {}

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

    def _entries(self, values: Iterable[float]) -> Tensor:
        # Where the other buffers are; not all devices have float64.
        return torch.tensor(list(values), dtype=torch.float32, device=self.reference.device)

    # Buffers carry no names, and `start` is not called again when a run is resumed.
    def get_extra_state(self) -> dict[str, Any]:
        """The names of the costs, for a checkpoint."""
        return {"names": list(self.names)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the names back."""
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
        example = f"budget.{name}={float(f'{value / 2:.2g}'):g}"
        if targets.get(name) is None:
            raise UserError(
                f"this objective, which a budget chooses by default, needs one for every cost, and "
                f"{name!r} has none: give it one, such as {example} (half of the mean network), "
                "or leave it out of cost=[...]"
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


@checked("objective")
class Plain(Objective):
    """``L = task + strength * sum_i c_i`` (relative: ``c_i / c_i(start)``; log: ``log`` of it).

    Relative costs are 1 at the start of every search, whatever the space and the unit, so that one
    default strength is sensible everywhere. In log scale a cost smaller by a factor e is as good as
    a loss smaller by `strength`, at any size: a sweep of strengths then spreads over a whole front.
    Targets are ignored.

    Args:
        strength: lambda; 0 searches for accuracy alone.
        relative: divide each cost by its value for the untrained supernet.
        log: penalise the logarithm of the cost.
    """

    needs_targets = False

    def __init__(
        self, strength: NonNegative = 0.3, relative: bool = True, log: bool = False
    ) -> None:
        super().__init__()
        self.strength, self.relative, self.log = strength, relative, log

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        return super().forward(task, costs) if self.strength else task

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        values = self.vector(costs)
        if self.relative:
            values = values / self.reference
        return self.strength * (values.log() if self.log else values).sum()


@checked("objective")
class Hinge(Objective):
    """``L = task + strength * sum_i max(c_i / T_i - 1, 0)``: nothing is gained below a budget.

    Args:
        strength: lambda, the loss added by a cost of twice its budget.
    """

    def __init__(self, strength: NonNegative = 1.0) -> None:
        super().__init__()
        self.strength = strength

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        return self.strength * self.excess(costs).relu().sum()


@checked("objective")
class AddLinear(Objective):
    """``L = task + strength * sum_i (c_i - T_i) / T_i`` (ProxylessNAS, Cai et al. 2019).

    `add#linear` of the reference code. The target only scales the price: below it, a smaller cost
    goes on being rewarded.

    Args:
        strength: lambda.
    """

    def __init__(self, strength: NonNegative = 0.1) -> None:
        super().__init__()
        self.strength = strength

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        return self.strength * self.excess(costs).sum()


class Logarithmic(Objective):
    """Base of the objectives with the logarithm of a cost, which in the papers depends on its unit.

    Here a cost counts as ``n_i = scale * c_i / r_i``, r the mean over all architectures, and its
    logarithm as ``log(1 + n_i)``: a number without a unit, and never negative. Where n is large
    this is the paper's logarithm in the unit in which the mean network measures `scale`.
    """

    def __init__(self, a: Positive, b: NonNegative, scale: Positive) -> None:
        super().__init__()
        self.a, self.b, self.scale = a, b, scale

    def logarithm(self, values: Tensor) -> Tensor:
        """``log(1 + scale * c_i / r_i)`` ``(I,)``."""
        # The power b < 1 of a cost of exactly 0 has an infinite slope.
        return (self.scale * values / self.reference).log1p().clamp_min(1e-6)


@checked("objective")
class MulLog(Logarithmic):
    """``L = a * task * prod_i (log c_i / log T_i)^b`` (ProxylessNAS, Cai et al. 2019, `mul#log`).

    The logarithms are those of `Logarithmic`: the paper's, of milliseconds, change with the unit
    and have no meaning at or below 1. The default scale makes the mean network one of 100 ms.

    Args:
        a, b: as in the reference code.
        scale: the number that the mean network's cost counts as; a smaller one prices cost higher.
    """

    def __init__(self, a: Positive = 0.2, b: NonNegative = 0.3, scale: Positive = 100.0) -> None:
        super().__init__(a, b, scale)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        ratio = self.logarithm(self.vector(costs)) / self.logarithm(self.target)
        return self.a * task * (ratio**self.b).prod().to(task)


@checked("objective")
class FBNet(Logarithmic):
    """``L = a * task * prod_i (log c_i)^b`` (FBNet, Wu et al. 2019, Eq. 2); targets are ignored.

    The logarithms are those of `Logarithmic`: the paper's, of microseconds, change with the unit.
    The default scale makes the mean network one of 20 ms.

    Args:
        a, b: as in the paper; the logarithm is raised to b, not its argument.
        scale: the number that the mean network's cost counts as; a smaller one prices cost higher.
    """

    needs_targets = False

    def __init__(self, a: Positive = 0.2, b: NonNegative = 0.6, scale: Positive = 2e4) -> None:
        super().__init__(a, b, scale)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        task = wide(task)
        return self.a * task * (self.logarithm(self.vector(costs)) ** self.b).prod().to(task)


@checked("objective")
class Constrained(Objective):
    """``L = task + sum_i s_i(t) * max(c_i / T_i - 1, 0)`` (Burrello et al. 2023, arXiv 2310.07217).

    At the end of warm-up the final strengths make each excess as bad as the task loss (Eq. 13), and
    they are ramped up to half of the search (Eq. 14)::

        s_i(1) = task / max(g_i, margin),  g_i = c_i / T_i - 1  of the untrained alphas
        s_i(t) = s_i(1) * min(1, 0.01 + 0.99 * 2 t)

    The paper's ``task / (c_i - T_i)`` times ``max(c_i - T_i, 0)``, without a unit. The margin is
    ours: without it a strength is 0 for ever if the search starts inside the budget, and infinite
    if it starts at it. A cost that starts inside is priced as if it exceeded by `margin`.

    Args:
        margin: the least excess, in parts of the budget, that a strength is derived from.
    """

    final: Tensor  # (I,) strengths at the end of the ramp; NaN until the first call
    ramp: Tensor  # () share of them that is in force

    def __init__(self, margin: Positive = 0.1) -> None:
        super().__init__("final")
        self.margin = margin
        self.register_buffer("ramp", torch.tensor(0.01))

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        super().start(reference, targets)
        self.final = torch.full_like(self.target, torch.nan)
        self.ramp.fill_(0.01)

    def forward(self, task: Tensor, costs: Mapping[str, Tensor]) -> Tensor:
        if self.final.isnan().any():
            # The reference is the cost of alphas that have not moved, and has no noise.
            excess = (self.reference / self.target - 1).clamp_min(self.margin)
            (mean,) = averaged([wide(task)])  # each rank has its own part of the batch
            self.final = (mean / excess).to(self.final)
        return super().forward(task, costs)

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        return (self.ramp * self.final * self.excess(costs).relu()).sum()

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        self.ramp.fill_(min(1.0, 0.01 + 0.99 * 2 * progress))

    def state(self) -> Mapping[str, float]:
        return self.by_name("strength", self.ramp * self.final)


@checked("objective")
class AugmentedLagrangian(Objective):
    """Accuracy within budgets: prices rise while a budget is exceeded, and fall to 0 inside.

    ::

        L = task + sum_i (max(0, mu_i + rho_i g_i)^2 - mu_i^2) / (2 rho_i),  g_i = log(c_i / B_i)

    and at every update ``mu_i <- max(0, mu_i + rho_i g_i)``, ``rho_i <- min(rho_max, 2 rho_i)``
    where g_i > 0 has not shrunk by a factor 0.9 (Nocedal and Wright 2006, Eq. 17.58 and 17.60, in
    logarithms: half and double the budget weigh alike).

    ``B_i`` goes from the mean network's cost r_i to the budget T_i, if that is smaller, along
    ``log B_i = log r_i + s (log T_i - log r_i)`` with s from 0.05 to 1 at the share `ramp` of the
    search. Put in force at once, a far budget drives every decision to its cheapest option, where a
    decided softmax stays, long before the task loss has any influence.

    Args:
        rho: strength at the start: the loss added by each factor e of excess.
        rho_max: its largest value.
        ramp: share of the search until the budgets themselves are in force; 0: from the start.

    Raises:
        UserError: a strength not above 0, rho_max below rho, a ramp outside 0..1; in `start`, no
            target.
    """

    multiplier: Tensor  # (I,) mu
    quadratic: Tensor  # (I,) rho
    last: Tensor  # (I,) g at the last update
    budget: Tensor  # (I,) B, what is in force

    def __init__(self, rho: Positive = 1.0, rho_max: Positive = 4.0, ramp: Share = 0.8) -> None:
        super().__init__("multiplier", "quadratic", "last", "budget")
        if rho_max < rho:
            raise UserError(f"objective.rho_max={rho_max} must be at least rho={rho}")
        self.rho, self.rho_max, self.ramp = rho, rho_max, ramp

    def start(self, reference: Mapping[str, Tensor], targets: Mapping[str, float]) -> None:
        super().start(reference, targets)
        self.multiplier = torch.zeros_like(self.target)
        self.quadratic = torch.full_like(self.target, self.rho)
        self.budget = self._in_force(0.0)
        self.last = (self.reference / self.budget).log()

    def penalty(self, costs: Mapping[str, Tensor]) -> Tensor:
        force = (self.multiplier + self.quadratic * self._violation(costs)).relu()
        return ((force**2 - self.multiplier**2) / (2 * self.quadratic)).sum()

    def update(self, costs: Mapping[str, Tensor], progress: float) -> None:
        now = self._violation(costs).detach().to(self.last)
        self.multiplier = (self.multiplier + self.quadratic * now).relu()
        stuck = (now > 0) & (now > 0.9 * self.last)
        doubled = (2 * self.quadratic).clamp_max(self.rho_max)
        self.quadratic = torch.where(stuck, doubled, self.quadratic)
        self.last, self.budget = now, self._in_force(progress)

    def state(self) -> Mapping[str, float]:
        return {
            **self.by_name("multiplier", self.multiplier),
            **self.by_name("strength", self.quadratic),
            **self.by_name("budget", self.budget),
        }

    def _violation(self, costs: Mapping[str, Tensor]) -> Tensor:
        # The logarithm of a cost of 0 has no slope; it is inside any budget.
        return (self.vector(costs) / self.budget).clamp_min(1e-6).log()

    def _in_force(self, progress: float) -> Tensor:
        # Not 0 at the start: the untrained supernet, at the reference, would feel no force.
        share = min(1.0, 0.05 + 0.95 * progress / self.ramp) if self.ramp else 1.0
        annealed = self.reference * (self.target / self.reference) ** share
        return torch.where(self.reference > self.target, annealed, self.target)
