"""Seams of a search: the problem that it is given, and the result that it ends with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytorch_lightning as pl
from torch import nn

from nas.arch import Arch
from nas.cost.base import Expected
from nas.train import Training


class TrainingRecipe(Protocol):
    """What a run is made of, see `nas.plan.Plan`."""

    data: Any
    finetune: Callable[..., Training]
    trainer: Callable[..., pl.Trainer]
    seed: int


class SearchProblem(Protocol):
    """A supernet with its costs and budgets, see `nas.plan.Problem`."""

    @property
    def plan(self) -> Any: ...

    @property
    def supernet(self) -> nn.Module: ...

    @property
    def space(self) -> str: ...

    @property
    def costs(self) -> Mapping[str, Expected]: ...

    @property
    def budgets(self) -> Mapping[str, float]: ...

    def build(self) -> nn.Module:
        """A supernet as the seed initialises it."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What a search by trials ends with."""

    arch: Arch
    metrics: Mapping[str, float]
    seconds: float  # wall clock of all trials, over all sessions
    cpu_seconds: float

    def known(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What the run remembers of the search, after what came `before` the trials."""
        return {
            "seconds": before["seconds"] + self.seconds,
            "cpu_seconds": before["cpu_seconds"] + self.cpu_seconds,
            "metrics": {**before["metrics"], **self.metrics},
        }
