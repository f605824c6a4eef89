"""What every differentiable search takes, for the signatures of those that take more."""

from collections.abc import Mapping
from typing import TypedDict

from torch import nn

from nas.cost.base import Expected
from nas.objective import Objective
from nas.supernet.relax import Schedule
from nas.train import OptimizerFactory
from nas.values import Count, NonNegative, Seed, Share, Whole


class Options(TypedDict, total=False):
    """Arguments of `nas.search.differentiable.DifferentiableSearch`; the meaning is given there."""

    supernet: nn.Module
    costs: Mapping[str, Expected]
    objective: Objective
    weight_optimizer: OptimizerFactory
    alpha_optimizer: OptimizerFactory
    epochs: Count
    warmup_epochs: Whole
    temperature: Schedule | None
    clip: NonNegative
    label_smoothing: Share
    seed: Seed
    targets: Mapping[str, float] | None
