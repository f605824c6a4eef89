"""What networks are trained for: a `Task` gives the loss, the metrics and the number of outputs."""

from typing import Literal, Protocol

from torch import Tensor
from torchmetrics import MetricCollection


class Task(Protocol):
    """What a network is for: the only thing that training, searches and ranking know of it.

    Attributes:
        primary: name of the metric that networks are compared by, one of `metrics`; its
            ``higher_is_better`` says in which direction.
        outputs: outputs of a network for one sample; None: any number.
    """

    primary: str
    outputs: int | None

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """The loss that training minimises, over the samples of a batch.

        Args:
            outputs: of the network ``(N, ...)``.
            targets: as the data module gives them ``(N, ...)``.
            smoothing: of the targets, in [0, 1], where the task knows such a thing.
            reduction: over samples.
        """
        ...

    def distillation(self, outputs: Tensor, teacher: Tensor) -> Tensor:
        """The loss of `outputs` against the outputs of a teacher, mean over samples."""
        ...

    def metrics(self) -> MetricCollection:
        """Fresh metrics by name, updated with ``(outputs, targets)``; files have ``val_<name>``."""
        ...
