"""What networks are trained for: a `Task` gives the loss, the metrics and the number of outputs."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor

from nas.errors import NotFiniteError, UserError
from nas.quantities import lower_is_better
from nas.ranks import each_rank_alone

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

Names = tuple[str, ...]
Parts = Mapping[Any, Tensor]  # "train", "val" and "test" -> indices of samples
Reduction = Literal["mean", "sum"]


class Task(Protocol):
    """What a network is for: the only thing that training, searches and ranking know of it.

    Attributes:
        primary: name of the metric that networks are compared by, one of `metrics`. Names tell
            the direction, see `nas.quantities.lower_is_better`.
        outputs: outputs of a network for one sample; None: any number.
    """

    primary: str
    outputs: int | None

    def read(self, targets: Tensor, names: Names, inputs: Any) -> tuple[Tensor, Names]:
        """Targets as the data module keeps them, and their names; sets `outputs`.

        Args:
            targets: of all samples, as the source has them ``(N, ...)``.
            names: of the classes, where the source knows them; else ().
            inputs: all samples, as the source has them ``(N, C, *S)``; or several inputs, or
                samples that are not in memory: see `nas.data.splits.Arrays`.

        Returns:
            int64 ``(N,)``, the classes, by which data are split; or float32 ``(N, ...)``.

        Raises:
            UserError: they do not suit the task.
        """
        ...

    def divide(self, targets: Tensor, parts: Parts, grouped: bool) -> Parts:
        """The train, val and test part as the task needs them.

        Args:
            targets: of all samples, as from `read`.
            parts: indices of the samples of each.
            grouped: samples of a group must stay in one part.

        Raises:
            UserError: a part lacks what the task needs in it.
        """
        ...

    def fit(self, targets: Tensor) -> None:
        """Measure what the loss needs to know of the targets of the train part."""
        ...

    def batch(self, inputs: Any, targets: Tensor) -> Tensor:
        """The targets of a batch as loss and metrics take them; they may hold the inputs.

        Args:
            inputs: as the network takes them ``(N, C, *S)``.
            targets: as from `read` ``(N, ...)``.
        """
        ...

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The loss that training minimises, over the samples of a batch.

        Args:
            outputs: of the network ``(N, ...)``.
            targets: as from `batch` ``(N, ...)``.
            smoothing: of the targets, in [0, 1], where the task knows such a thing.
            reduction: over samples.
        """
        ...

    def distillation(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """The loss of `outputs` against the outputs of a teacher, mean over samples.

        Args:
            temperature: of both, where outputs are logits.
        """
        ...

    def metrics(self) -> "MetricCollection":
        """Fresh metrics by name, updated with ``(outputs, targets)``; files have ``val_<name>``."""
        ...

    def described(self) -> dict[str, Any]:
        """For result.json: its ``name``, ``primary``, how to read an ``output``, and more."""
        ...

    def restore(self, described: Mapping[str, Any]) -> None:
        """Take what was measured for a network from its result.json, instead of these data."""
        ...


class Supervised:
    """What the tasks of this package share.

    Args:
        loss: ``(outputs, targets) -> mean over the batch``, instead of the task's own.
        metric: instead of the task's own primary one; it is named after its class.
    """

    name: ClassVar[str]
    meaning: ClassVar[str]  # of the outputs
    metrics_count: ClassVar[bool] = False  # samples, so that batches can be joined without rounding
    outputs: int | None = None

    def __init__(
        self,
        primary: str,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: "Metric | None" = None,
    ) -> None:
        for key, value in (("loss", loss), ("metric", metric)):
            if value is not None and not callable(value):
                raise UserError(f"task.{key}={value!r} must be an object with _target_, or null")
        self.own_loss, self.own_metric = loss, metric
        self.primary = primary if metric is None else name_of(metric)

    def with_groups(self, targets: Tensor, groups: Tensor) -> Tensor:
        """Targets as from `read`, with what a metric must know of the group of each sample.

        Args:
            groups: int64 ``(N,)``.
        """
        return targets

    def divide(self, targets: Tensor, parts: Parts, grouped: bool) -> Parts:
        """See `Task`; as they are."""
        return parts

    def fit(self, targets: Tensor) -> None:
        """See `Task`."""

    def batch(self, inputs: Any, targets: Tensor) -> Tensor:
        """See `Task`; as they are."""
        return targets

    def restore(self, described: Mapping[str, Any]) -> None:
        """See `Task`."""

    def described(self) -> dict[str, Any]:
        """See `Task`."""
        return {"name": self.name, "primary": self.primary, "output": self.meaning}

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """See `Task`: `own_loss` of the targets as they are `prepared`."""
        assert self.own_loss is not None
        mean = self.own_loss(outputs, self.prepared(targets, outputs, smoothing))
        return mean * len(targets) if reduction == "sum" else mean

    def prepared(self, targets: Tensor, outputs: Tensor, smoothing: float) -> Tensor:
        """The targets as `own_loss` takes them beside these outputs."""
        return targets

    def collected(self, **metrics: "Metric") -> "MetricCollection":
        """These metrics, and the user's own."""
        from nas.tasks.metrics import collection

        if self.own_metric is not None:
            metrics = {**metrics, self.primary: self.own_metric.clone()}
        changed = type(self).for_metrics is not Supervised.for_metrics
        joined = self.metrics_count and self.own_metric is None
        return collection(metrics, self.for_metrics if changed else None, joined)

    def for_metrics(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets as the metrics take them."""
        return outputs, targets


def name_of(metric: object) -> str:
    """`MeanAbsoluteError()` -> "mean_absolute_error": a name that tells the direction.

    Raises:
        UserError: it is no metric that knows its direction.
    """
    from torchmetrics import Metric

    if not isinstance(metric, Metric) or metric.higher_is_better is None:
        raise UserError(
            f"task.metric: {type(metric).__name__} is no torchmetrics.Metric whose "
            "higher_is_better is set: networks cannot be compared by it"
        )
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(metric).__name__).lower()
    if metric.higher_is_better:
        return f"{name}_score" if lower_is_better(name) else name
    return name if lower_is_better(name) else f"{name}_error"


def check_judged(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Try the loss and the metrics of a task on a batch, before anything is trained.

    Args:
        outputs: as a network may give them ``(N, outputs)``, with a gradient.
        targets: as from `Task.batch`.

    Raises:
        UserError: one fails; a loss that is no number to descend, or a metric that is no number.
    """
    of = f"for outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} of {targets.dtype}"
    with _trying(f"task.loss fails {of}"):
        loss = task.loss(outputs, targets)
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise UserError(
            f"task.loss gives {_kind(loss)} {of}: it must give one number with a gradient, the "
            "mean over the batch, computed with torch"
        )
    with _trying(f"a metric of the task fails {of}"), warnings.catch_warnings(), each_rank_alone():
        warnings.simplefilter("ignore")
        metrics = task.metrics()
        metrics.update(outputs.detach(), targets)
        found = metrics.compute()
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.shape != ():
            raise UserError(
                f"the metric {name} of the task gives {_kind(value)}: it must give one number, "
                "e.g. a mean over the classes"
            )
    if task.primary not in found:
        raise UserError(f"task.primary={task.primary} is none of the metrics {', '.join(found)}")


@contextmanager
def _trying(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise UserError(f"{what}: {said[:300]}") from error


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.shape == ():
        return "a number without a gradient"
    return f"a tensor {tuple(value.shape)}"


def one_input(inputs: Any, task: str) -> Tensor:
    """All samples ``(N, C, *S)``.

    Raises:
        UserError: they are of several inputs, or not in memory.
    """
    if not isinstance(inputs, Tensor):
        raise UserError(
            f"task={task} looks at all samples, and needs one input that is kept in memory: give "
            "one tensor for each sample, and pass data.in_memory=true"
        )
    return inputs


def check_finite_targets(targets: Tensor) -> None:
    """Raises UserError where a target is NaN or infinite."""
    if targets.is_floating_point() and not bool(targets.isfinite().all()):
        bad = int((~targets.isfinite()).reshape(len(targets), -1).any(1).nonzero()[0])
        raise UserError(f"the target of sample {bad} is no finite number: leave such samples out")


def check_finite(loss: Tensor, epoch: int) -> Tensor:
    """The loss itself.

    Raises:
        NotFiniteError: it is NaN or infinite.
    """
    if not isfinite(value := loss.item()):
        raise NotFiniteError(f"the loss became {value} in epoch {epoch}")
    return loss


def numbered(name: str, count: int, names: Sequence[str]) -> Names:
    """The names of `count` outputs: those given, or `name` with numbers."""
    if len(names) == count:
        return tuple(names)
    return (name,) if count == 1 else tuple(f"{name} {i}" for i in range(count))
