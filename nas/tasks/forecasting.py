"""Forecasting: the next steps of some channels of a window."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from nas.config.schema import Whole, checked
from nas.errors import UserError
from nas.tasks import Names, check_finite_targets, one_input
from nas.tasks.regression import Regression

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection


@checked("task")
class Forecasting(Regression):
    """The next H steps of K channels, learned in units of each channel's standard deviation.

    Outputs are ``(N, H * K)``, all channels of the first step first. Times `std` plus `mean` they
    are in the units of the targets, and so are the metrics.

    Args:
        channels: of the window, which are forecast, in the order of the targets; None: the first
            K. Their last value in the window is the naive forecast that networks are held against.
        loss, metric: see `Regression`.
    """

    name = "forecasting"
    meaning = "steps (N, H * K), step by step; times std plus mean gives the units of the targets"

    def __init__(
        self,
        channels: Sequence[Whole] | None = None,
        loss: Literal["mse", "l1", "huber"] | Callable[[Tensor, Tensor], Tensor] = "l1",
        metric: "Metric | None" = None,
    ) -> None:
        super().__init__(loss, metric)
        self.channels = channels
        if metric is None:
            self.primary = "mae"

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """See `Task`: of ``(N, H)`` or ``(N, H, K)``, ``(N, 1 + H, K)`` with the last step seen."""
        inputs = one_input(inputs, "forecasting")
        if targets.ndim not in (2, 3) or targets.is_complex() or inputs.ndim != 3:
            raise UserError(
                f"targets {tuple(targets.shape)} of {targets.dtype} for samples "
                f"{tuple(inputs.shape[1:])} are no forecast: task=forecasting needs windows (C, L) "
                "and their next steps, (N, horizon) or (N, horizon, channels)"
            )
        check_finite_targets(targets)
        steps = targets.float().reshape(*targets.shape[:2], -1)
        _, horizon, count = steps.shape
        channels = range(count) if self.channels is None else self.channels
        if len(channels) != count or max(channels) >= inputs.shape[1]:
            raise UserError(
                f"task.channels={list(channels)} for targets of {count} channel(s) and windows of "
                f"{inputs.shape[1]}: name one channel of the window, from 0 to "
                f"{inputs.shape[1] - 1}, for each channel of the targets"
            )
        last = inputs[:, list(channels), -1].float()
        self.outputs = horizon * count
        every = [f"channel {c} step {s + 1}" for s in range(horizon) for c in channels]
        return torch.cat([last[:, None], steps], 1), tuple(every)

    def fit(self, targets: Tensor) -> None:
        """See `Task`."""
        super().fit(targets.flatten(0, 1))
        horizon = targets.shape[1] - 1
        self.mean, self.std = self.mean.repeat(horizon), self.std.repeat(horizon)

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """The steps to come, in standard deviations; nothing is smoothed."""
        return super().prepared(targets[:, 1:], outputs, smoothing)

    def metrics(self) -> "MetricCollection":
        """``mae``, ``rmse``, and ``skill``: how far below the naive forecast's mae, as a share.

        ``skill = 1 - mae / mae of the last value seen``, over the same samples: 0 is no better
        than repeating the last value, 1 is perfect.
        """
        from torchmetrics import MeanAbsoluteError, MeanSquaredError

        from nas.tasks.metrics import Of

        found = self.collected(mae=MeanAbsoluteError(), rmse=MeanSquaredError(squared=False))
        own, naive = (Of(MeanAbsoluteError(), of) for of in (self.for_metrics, _naive))
        found.add_metrics({"skill": 1 - own / naive})
        return found

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """In the units of the targets, the steps to come alone."""
        return super().for_metrics(outputs, targets[:, 1:].flatten(1).contiguous())


def _naive(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The last value seen, repeated, and the steps to come ``(N, H, K)``."""
    steps = targets[:, 1:].contiguous()
    return targets[:, :1].expand_as(steps).contiguous(), steps
