"""Regression: one number or several for each sample."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.config.schema import checked
from nas.errors import UserError
from nas.tasks import Names, Supervised, check_finite_targets, numbered

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


@checked("task")
class Regression(Supervised):
    """Numbers ``(N, K)``, learned in units of their mean and standard deviation per output.

    The network's output times `std` plus `mean` is in the units of the targets, and so are the
    metrics; the loss is in standard deviations.

    Args:
        loss: mse (mean square) | l1 (mean absolute) | huber (square below one standard deviation,
            absolute beyond; Huber 1964), or see `Supervised`.
        metric: see `Supervised`.
    """

    name = "regression"
    meaning = "numbers (N, K); times std plus mean gives the units of the targets"

    def __init__(
        self,
        loss: Literal["mse", "l1", "huber"] | Callable[[Tensor, Tensor], Tensor] = "mse",
        metric: "Metric | None" = None,
    ) -> None:
        own = _LOSSES.get(loss) if isinstance(loss, str) else loss
        if own is None:
            raise UserError(f"task.loss={loss} is not known: choose one of {', '.join(_LOSSES)}")
        super().__init__("rmse", own, metric)
        self.mean, self.std = torch.zeros(1), torch.ones(1)

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """See `Task`."""
        if targets.ndim not in (1, 2) or targets.is_complex():
            raise UserError(
                f"targets {tuple(targets.shape)} of {targets.dtype} are no numbers to predict: "
                "task=regression needs (N,) or (N, K)"
            )
        check_finite_targets(targets)
        targets = targets.float().reshape(len(targets), -1)
        self.outputs = targets.shape[1]
        return targets, numbered("value", self.outputs, names)

    def fit(self, targets: Tensor) -> None:
        """See `Task`."""
        std, mean = torch.std_mean(targets.double(), 0, correction=0)
        if bool((std <= 1e-6 * mean.abs()).any()):
            raise UserError(
                f"target {int(std.argmin())} is {float(mean[std.argmin()]):g} in all samples of "
                "the train part: there is nothing to learn"
            )
        self.mean, self.std = mean.float(), std.float()

    def described(self) -> dict[str, Any]:
        """See `Task`."""
        return {**super().described(), "mean": self.mean.tolist(), "std": self.std.tolist()}

    def restore(self, described: Mapping[str, Any]) -> None:
        """See `Task`."""
        self.mean, self.std = (torch.tensor(described[name]) for name in ("mean", "std"))

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """In standard deviations; nothing is smoothed."""
        return (targets.reshape(outputs.shape) - self.mean.to(outputs)) / self.std.to(outputs)

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """The loss against the teacher's outputs; there is no temperature."""
        assert self.own_loss is not None
        return self.own_loss(outputs, teacher)

    def metrics(self) -> "MetricCollection":
        """``rmse``, ``mae`` in the units of the targets, and ``r2``; means over the outputs."""
        from torchmetrics import MeanAbsoluteError, MeanSquaredError, R2Score

        return self.collected(
            rmse=MeanSquaredError(squared=False), mae=MeanAbsoluteError(), r2=R2Score()
        )

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """In the units of the targets."""
        return outputs * self.std.to(outputs) + self.mean.to(outputs), targets
