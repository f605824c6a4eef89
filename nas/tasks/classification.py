"""Classification: each sample is of one of several classes."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.config.schema import Positive, checked
from nas.errors import UserError
from nas.tasks import Names, Reduction, Supervised, Task

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


@checked("task")
class Classification(Supervised):
    """Cross-entropy and top-1 accuracy of logits ``(N, classes)`` for labels ``(N,)``.

    Args:
        outputs: number of classes; None: as many as the network has outputs.
        weights: of the classes in the loss while training; "balanced": in inverse proportion to
            their samples. The mean weight of a training sample is 1.
        loss, metric: see `Supervised`.

    Raises:
        UserError: from `fit`, weights of another number than classes.
    """

    name = "classification"
    meaning = "logits (N, classes); softmax gives probabilities"
    metrics_count = True

    def __init__(
        self,
        outputs: int | None = None,
        weights: Literal["balanced"] | Sequence[Positive] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: "Metric | None" = None,
    ) -> None:
        super().__init__("acc", loss, metric)
        self.outputs, self.weights = outputs, weights
        self.scale: Tensor | None = None  # of the loss of each class

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """See `Task`; without names, any whole numbers are classes."""
        if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
            raise UserError(
                f"targets {tuple(targets.shape)} of {targets.dtype} are no classes: "
                "task=classification needs one whole number for each sample, (N,); for numbers "
                "pass task=regression, for several labels task=multilabel"
            )
        targets = targets.long()
        if not names:
            values, targets = torch.unique(targets, return_inverse=True)
            names = tuple(map(str, values.tolist()))
        if len(names) < 2:
            raise UserError(f"all samples are of one class ({names[0]}): there is nothing to learn")
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(names):
            raise UserError(
                f"labels are from {int(targets.min())} to {int(targets.max())}, and there are "
                f"{len(names)} classes: they must be from 0 to {len(names) - 1}"
            )
        self.outputs = len(names)
        return targets, names

    def fit(self, targets: Tensor) -> None:
        """See `Task`."""
        if self.weights is None:
            return
        counts = torch.bincount(targets, minlength=self.outputs or 0).double()
        given = 1 / counts if self.weights == "balanced" else torch.tensor(self.weights).double()
        if len(given) != len(counts):
            raise UserError(
                f"task.weights has {len(given)} numbers for {len(counts)} classes: give one each"
            )
        self.scale = (given * counts.sum() / (given * counts).sum()).float()

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Cross-entropy; `smoothing` is its `label_smoothing`."""
        if self.own_loss is not None:
            return super().loss(outputs, targets, smoothing, reduction)
        if self.scale is None:
            return F.cross_entropy(outputs, targets, label_smoothing=smoothing, reduction=reduction)
        scale = self.scale.to(outputs)
        found = F.cross_entropy(outputs, targets, scale, label_smoothing=smoothing, reduction="sum")
        return found if reduction == "sum" else found / len(targets)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """``T^2 CE(softmax(outputs / T), softmax(teacher / T))`` (Hinton et al. 2015, Section 2).

        ``T^2`` keeps the size of its gradient when T changes, relative to that of hard targets.
        """
        soft = (teacher / temperature).softmax(-1)
        return temperature**2 * F.cross_entropy(outputs / temperature, soft)

    def metrics(self) -> "MetricCollection":
        """``acc``: the share of samples whose largest logit is the label."""
        from torchmetrics.classification import MulticlassAccuracy

        accuracy = MulticlassAccuracy(self.outputs, average="micro", validate_args=False)
        return self.collected(acc=accuracy)


def task_of(data: Any) -> Task:
    """The task of a data module: its own `task`, or classification of its classes."""
    task: Task | None = getattr(data, "task", None)
    return Classification(getattr(data, "num_outputs", None)) if task is None else task
