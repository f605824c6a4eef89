"""Anomaly detection: a network that has seen normal samples alone cannot rebuild other ones."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.config.schema import Name, checked
from nas.errors import UserError
from nas.tasks import Names, Parts, Supervised, one_input

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


@checked("task")
class Anomaly(Supervised):
    """An autoencoder of normal samples: outputs are its input again, flattened ``(N, C * S)``.

    A sample's score is the mean square of its error (Sakurada and Yairi 2014). Anomalous samples
    never train, neither weights nor architecture: they count as 0 in every loss. Those of the
    train part move to validation, or are left out where samples come in groups. Where a source has
    anomalous samples in its test part alone, every second of that part is for validation.

    Args:
        normal: name of the class of normal samples, where classes have names; all others are
            anomalous. Without names, 0 is normal and 1 anomalous.
        loss: ``(outputs, inputs) -> mean``, instead of the mean squared error.
        metric: instead of the area under the ROC curve; it gets scores in [0, 1), and 1 or 0.
    """

    name = "anomaly"
    meaning = (
        "the input (N, C * S) again, as it was normalised; the mean square of the difference is "
        "the score, high where a sample is anomalous"
    )

    def __init__(
        self,
        normal: Name = "normal",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: "Metric | None" = None,
    ) -> None:
        super().__init__("auroc", F.mse_loss if loss is None else loss, metric)
        self.normal = normal

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """See `Task`: 1 where a sample is anomalous, else 0, float32 ``(N, 1)``."""
        inputs = one_input(inputs, "anomaly")
        if names and self.normal not in names:
            raise UserError(
                f"task.normal={self.normal} is none of the classes {', '.join(names)}: name the "
                "one whose samples are normal"
            )
        wrong = targets.ndim != 1 or targets.is_floating_point()
        if wrong or not (names or bool(((targets == 0) | (targets == 1)).all())):
            raise UserError(
                f"targets {tuple(targets.shape)} of {targets.dtype} do not say which samples are "
                "normal: task=anomaly needs one whole number for each, (N,), 0 normal, 1 anomalous"
            )
        self.outputs = inputs[0].numel()
        odd = targets != (names.index(self.normal) if names else 0)
        return odd.float()[:, None], ("normal", "anomalous")

    def divide(self, targets: Tensor, parts: Parts, grouped: bool) -> Parts:
        """See `Task`."""
        odd = targets[:, 0] == 1
        train, val, test = (parts[name] for name in ("train", "val", "test"))
        if not grouped:
            val = torch.cat([val, train[odd[train]]])
        if not odd[val].any():
            # By kind, in an order that no seed changes: networks are compared on one test part.
            order = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
            order = order[odd[order].sort(stable=True).indices]
            val, test = torch.cat([val, order[1::2]]), order[::2]
        for part, own in (("validation", val), ("test", test)):
            for kind, count in (("anomalous", odd[own].sum()), ("normal", (~odd[own]).sum())):
                if not count:
                    raise UserError(
                        f"no sample of the {part} part is {kind}, of {len(own)}: task=anomaly "
                        "needs both kinds there, add some"
                    )
        return {"train": train[~odd[train]], "val": val.sort().values, "test": test.sort().values}

    def batch(self, inputs: Any, targets: Tensor) -> Tensor:
        """See `Task`: the kind of each sample, then its input ``(N, 1 + C * S)``."""
        return torch.cat([targets.to(inputs), inputs.flatten(1)], 1)

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """The inputs; of anomalous samples the outputs themselves, which leaves no error."""
        return torch.where(targets[:, :1] == 0, targets[:, 1:].to(outputs), outputs.detach())

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """The mean squared error against the teacher's outputs; there is no temperature."""
        return F.mse_loss(outputs, teacher)

    def metrics(self) -> "MetricCollection":
        """``auroc``, and ``pauc``: that for false alarms up to 10 %, as in DCASE 2020's task 2.

        NaN where all samples are of one kind, as in the train part.
        """
        from nas.tasks.metrics import AUROC

        return self.collected(auroc=AUROC(), pauc=AUROC(max_fpr=0.1))

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores s as ``s / (1 + s)``, in their order: the metrics take probabilities."""
        score = (outputs.float() - targets[:, 1:].float()).square().mean(1)
        return score / (1 + score), targets[:, 0].long()
