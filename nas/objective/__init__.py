"""What a search minimises: the task loss joined with the expected costs."""

from nas.objective.base import Objective, PerCost
from nas.objective.constrained import Constrained
from nas.objective.lagrangian import AugmentedLagrangian
from nas.objective.penalty import AddLinear, FBNet, Hinge, MulLog
from nas.objective.plain import Plain

__all__ = [
    "AddLinear",
    "AugmentedLagrangian",
    "Constrained",
    "FBNet",
    "Hinge",
    "MulLog",
    "Objective",
    "PerCost",
    "Plain",
]
