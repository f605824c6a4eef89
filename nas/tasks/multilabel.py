"""Multi-label classification: each sample has any number of several labels."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from nas.config.schema import checked
from nas.errors import UserError
from nas.tasks import Names, Supervised, check_finite_targets, numbered

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


@checked("task")
class Multilabel(Supervised):
    """Binary cross-entropy of logits ``(N, labels)`` for targets of zeros and ones.

    Args:
        loss, metric: see `Supervised`; the metric gets probabilities.
    """

    name = "multilabel"
    meaning = "logits (N, labels); sigmoid gives the probability of each label"

    def __init__(
        self,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: "Metric | None" = None,
    ) -> None:
        own = F.binary_cross_entropy_with_logits if loss is None else loss
        super().__init__("ap", own, metric)

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """See `Task`."""
        check_finite_targets(targets)
        if targets.ndim != 2 or not bool(((targets == 0) | (targets == 1)).all()):
            raise UserError(
                f"targets {tuple(targets.shape)} of {targets.dtype} are no labels: task=multilabel "
                "needs (N, labels) of zeros and ones"
            )
        self.outputs = targets.shape[1]
        return targets.float(), numbered("label", self.outputs, names)

    def fit(self, targets: Tensor) -> None:
        """See `Task`; it measures nothing, but looks whether each label can be learned."""
        share = targets.mean(0)
        if bool(((share == 0) | (share == 1)).any()):
            label = int(((share == 0) | (share == 1)).nonzero()[0])
            raise UserError(
                f"label {label} is {int(share[label])} in all samples of the train part: there is "
                "nothing to learn, leave it out"
            )

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """`smoothing` moves them towards 1/2."""
        return targets * (1 - smoothing) + smoothing / 2

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """``T^2 BCE(sigmoid(outputs / T), sigmoid(teacher / T))``, as for classification."""
        soft = (teacher / temperature).sigmoid()
        return temperature**2 * F.binary_cross_entropy_with_logits(outputs / temperature, soft)

    def metrics(self) -> "MetricCollection":
        """``ap``: average precision, and ``f1`` at a probability of 1/2; means over the labels."""
        from torchmetrics.classification import MultilabelAveragePrecision, MultilabelF1Score

        assert self.outputs is not None
        return self.collected(
            ap=MultilabelAveragePrecision(self.outputs, validate_args=False),
            f1=MultilabelF1Score(self.outputs, validate_args=False),
        )

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities: metrics would guess from each batch whether it holds logits."""
        return outputs.sigmoid(), targets
