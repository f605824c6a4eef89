"""Metrics of torchmetrics as tasks take them; it is loaded when the first are made."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers.transformations import MetricInputTransformer

from nas.ranks import rank_and_ranks

MOST = 2**22  # numbers of outputs that wait for their metrics

Pair = Callable[[Tensor, Tensor], tuple[Tensor, ...]]


class Of(MetricInputTransformer):
    """A metric of ``pair(outputs, targets)``."""

    def __init__(self, metric: Metric, pair: Pair) -> None:
        super().__init__(metric)
        metric.distributed_available_fn = _over_ranks
        self.pair = pair

    def _wrap_transform(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self.pair(*args)


class AUROC(BinaryAUROC):
    """Without a warning for each epoch of samples of one kind."""

    def compute(self) -> Tensor:  # type: ignore[override]
        kinds = torch.cat([one.flatten() for one in self.target])
        one_kind = bool((kinds == kinds[0]).all())
        return kinds.new_full((), torch.nan, dtype=torch.float) if one_kind else super().compute()


class GroupAUROC(Metric):
    """Of the mean scores of groups."""

    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    kinds: list[Tensor]
    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "kinds", "groups"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, kinds: Tensor, groups: Tensor) -> None:
        """Take a batch."""
        self.scores.append(scores)
        self.kinds.append(kinds)
        self.groups.append(groups)

    def compute(self) -> Tensor:
        """NaN where all groups are of one kind."""
        scores, kinds, groups = map(dim_zero_cat, (self.scores, self.kinds, self.groups))
        names, number = torch.unique(groups, return_inverse=True)
        total = scores.new_zeros(len(names), dtype=torch.double)
        mean = total.index_add(0, number, scores.double()) / torch.bincount(number)
        kind = kinds.new_zeros(len(names)).index_copy(0, number, kinds)
        if bool((kind == kind[0]).all()):
            return scores.new_full((), torch.nan)
        found: Tensor = binary_auroc(mean / (1 + mean), kind)
        return found.float()


class Joined(MetricCollection):
    """Metrics that count samples, and so may take many batches as one: an update costs most."""

    def __init__(self, metrics: dict[str, Metric | MetricCollection]) -> None:
        super().__init__(metrics)
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.size = 0  # numbers in what is kept

    def update(self, outputs: Tensor, targets: Tensor) -> None:  # type: ignore[override]
        """Take a batch."""
        self.kept.append((outputs, targets))
        self.size += outputs.numel()
        if self.size > MOST:
            self._join()

    def _join(self) -> None:
        if self.kept:
            outputs, targets = map(torch.cat, zip(*self.kept, strict=True))
            self.kept, self.size = [], 0
            super().update(outputs, targets)

    def compute(self) -> dict[str, Any]:
        """See `MetricCollection`."""
        self._join()
        return super().compute()

    def reset(self) -> None:
        """See `MetricCollection`."""
        self.kept, self.size = [], 0
        super().reset()


def collection(
    metrics: Mapping[str, Metric], pair: Pair | None = None, joined: bool = False
) -> MetricCollection:
    """These metrics, of ``pair(outputs, targets)`` where that is given.

    Args:
        joined: they count samples, so that several batches give what one of all of them does.
    """
    found: dict[str, Metric | MetricCollection] = {
        name: Of(one, pair) if pair else one for name, one in metrics.items()
    }
    for one in found.values():
        # Inside `each_rank_alone`, a rank evaluates for itself.
        one.distributed_available_fn = _over_ranks
    return Joined(found) if joined else MetricCollection(found)


def _over_ranks() -> bool:
    return rank_and_ranks()[1] > 1
