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

    A sample's score is the mean square of its error (Sakurada and Yairi 2014). Where samples come
    in groups of one kind, such as the windows of a file, a group's score is the mean of theirs.
    Anomalous samples never train, neither weights nor architecture: they count as 0 in every loss.
    Those of the train part move to validation, or are left out where samples come in groups. Where
    a source has anomalous samples in its test part alone, every second of that part, or every
    second group, is for validation.

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
        self.normal, self.grouped = normal, False

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

    def with_groups(self, targets: Tensor, groups: Tensor) -> Tensor:
        """See `Supervised`: a second column, where all samples of each group are of one kind."""
        _, number = torch.unique(groups, return_inverse=True)
        odd = torch.zeros(int(number.max()) + 1).index_add(0, number, targets[:, 0])
        self.grouped = bool(((odd == 0) | (odd == torch.bincount(number))).all())
        return torch.cat([targets, number[:, None]], 1) if self.grouped else targets

    def divide(self, targets: Tensor, parts: Parts, grouped: bool) -> Parts:
        """See `Task`."""
        odd = targets[:, 0] == 1
        train, val, test = (parts[name] for name in ("train", "val", "test"))
        if not grouped:
            val = torch.cat([val, train[odd[train]]])
        if not odd[val].any():
            # By kind, in an order that no seed changes: networks are compared on one test part.
            units = targets[test, 1] if self.grouped else torch.arange(len(test))
            names, number = torch.unique(units, return_inverse=True)
            kinds = torch.zeros(len(names), dtype=torch.bool).index_copy(0, number, odd[test])
            order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
            order = order[kinds[order].sort(stable=True).indices]
            held = torch.isin(number, order[1::2])
            val, test = torch.cat([val, test[held]]), test[~held]
        for part, own in (("validation", val), ("test", test)):
            for kind, count in (("anomalous", odd[own].sum()), ("normal", (~odd[own]).sum())):
                if not count:
                    raise UserError(
                        f"no sample of the {part} part is {kind}, of {len(own)}: task=anomaly "
                        "needs both kinds there, add some"
                    )
        return {"train": train[~odd[train]], "val": val.sort().values, "test": test.sort().values}

    def batch(self, inputs: Any, targets: Tensor) -> Tensor:
        """See `Task`: kind, group if there is one, and input ``(N, 1 + C * S)`` or one more."""
        return torch.cat([targets.to(inputs), inputs.flatten(1)], 1)

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """The inputs; of anomalous samples the outputs themselves, which leaves no error."""
        return torch.where(targets[:, :1] == 0, _inputs(outputs, targets), outputs.detach())

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """The mean squared error against the teacher's outputs; there is no temperature."""
        return F.mse_loss(outputs, teacher)

    def metrics(self) -> "MetricCollection":
        """``auroc``, and ``pauc``: that for false alarms up to 10 %, as in DCASE 2020's task 2.

        ``group_auroc`` is the former of groups, as MLPerf Tiny scores the files of a machine. NaN
        where all samples are of one kind, as in the train part.
        """
        from nas.tasks.metrics import AUROC, GroupAUROC, Of

        found = self.collected(auroc=AUROC(), pauc=AUROC(max_fpr=0.1))
        if self.grouped:
            found.add_metrics({"group_auroc": Of(GroupAUROC(), _grouped)})
        return found

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Scores s as ``s / (1 + s)``, in their order: the metrics take probabilities."""
        score = _scores(outputs, targets)
        return score / (1 + score), targets[:, 0].long()


def _inputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """What was to be rebuilt ``(N, C * S)``."""
    return targets[:, -outputs.shape[1] :].to(outputs)


def _scores(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.float() - _inputs(outputs.float(), targets)).square().mean(1)


def _grouped(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, kind and group of each sample."""
    return _scores(outputs, targets), targets[:, 0].long(), targets[:, 1].long()
