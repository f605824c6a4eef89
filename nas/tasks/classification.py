"""Classification: each sample is of one of several classes."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from nas.ranks import rank_and_ranks
from nas.tasks import Task


class Classification:
    """Cross-entropy and top-1 accuracy of logits ``(N, classes)`` for labels ``(N,)``.

    Args:
        outputs: number of classes; None: as many as the network has outputs.
    """

    primary: str = "acc"

    def __init__(self, outputs: int | None = None) -> None:
        self.outputs = outputs

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Cross-entropy; `smoothing` is its `label_smoothing`."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction=reduction)

    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """``CE(outputs, softmax(teacher))`` (Hinton et al. 2015, temperature 1)."""
        return F.cross_entropy(outputs, teacher.softmax(-1))

    def metrics(self) -> MetricCollection:
        """``acc``: the share of samples whose largest logit is the label."""
        accuracy = MulticlassAccuracy(
            self.outputs,
            average="micro",
            validate_args=False,
            # Inside `each_rank_alone`, a rank evaluates for itself.
            distributed_available_fn=_over_ranks,
        )
        return MetricCollection({"acc": accuracy})


def _over_ranks() -> bool:
    return rank_and_ranks()[1] > 1


def task_of(data: Any) -> Task:
    """The task of a data module: its own `task`, or classification of its classes."""
    task: Task | None = getattr(data, "task", None)
    return Classification(getattr(data, "num_outputs", None)) if task is None else task
