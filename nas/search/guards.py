"""Callbacks that end a search early: its architecture is stable, or about to collapse.

A search collapses when cheap operations, mostly skips, take over. ``guard=[eigenvalue]`` or
``guard=[skips]`` watches for it, and goes back to the alphas of an epoch before the collapse.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from pydantic import Field
from torch import Tensor, nn

from nas.arch import Option
from nas.config.schema import Count, Whole, checked
from nas.decision import Decision, decisions, free, split_parameters
from nas.errors import UserError
from nas.inputs import moved, run, some
from nas.ranks import broadcast, each_rank_alone
from nas.recalibrate import kept_modes, kept_statistics


class EarlyStop(pl.Callback):
    """Base: a search that has been ended does not go on when it is resumed."""

    def __init__(self) -> None:
        self.stopped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop |= self.stopped  # the state is loaded by now

    def end(self, trainer: pl.Trainer, reason: str) -> None:
        """End the search after this epoch, and say why."""
        self.stopped = trainer.should_stop = True
        trainer.print(f"search ends after epoch {trainer.current_epoch}: {reason}")

    def state_dict(self) -> dict[str, Any]:
        return {"stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stopped = state_dict["stopped"]


class StopWhenStable(EarlyStop):
    """Ends a search whose best architecture has not changed for `patience` epochs in a row.

    Epochs of warm-up do not count.

    Args:
        patience: epochs without a change of the best option of any decision; None never stops.

    Raises:
        UserError: patience below 1.
    """

    def __init__(self, patience: int | None) -> None:
        super().__init__()
        if patience is not None and patience < 1:
            raise UserError(
                f"stable_epochs={patience} must be at least 1, or null to never stop early"
            )
        self.patience = patience
        self.best: dict[str, Option] = {}
        self.unchanged = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.patience is None or pl_module.warming_up:
            return
        best = {name: decision.best() for name, decision in decisions(pl_module.supernet)}
        self.unchanged = self.unchanged + 1 if best == self.best else 0
        self.best = best
        stable = self.unchanged >= self.patience
        if broadcast(lambda: stable):
            self.end(trainer, f"the architecture has not changed for {self.unchanged} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best, "unchanged": self.unchanged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.best, self.unchanged = state_dict["best"], state_dict["unchanged"]


class CollapseGuard(EarlyStop):
    """Base of the guards: keeps the alphas of each alpha epoch, and goes back to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []  # per epoch all alphas, (sum of K,)

    def collapsed(self, trainer: pl.Trainer, pl_module: Any) -> tuple[int, str] | None:
        """The alpha epoch to go back to, and why; None: the search goes on."""
        raise NotImplementedError

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if pl_module.warming_up or self.stopped:
            return
        _, alphas = split_parameters(pl_module.supernet)
        self.history.append(torch.cat([alpha.detach().cpu().flatten() for alpha in alphas]))
        collapsed = self.collapsed(trainer, pl_module)
        if (found := broadcast(lambda: collapsed)) is None:
            return
        epoch, reason = found
        parts = torch.split_with_sizes(self.history[epoch], [alpha.numel() for alpha in alphas])
        for alpha, part in zip(alphas, parts, strict=True):
            alpha.data.copy_(part.view_as(alpha))
        epoch += pl_module.warmup_epochs
        self.end(trainer, f"{reason}; the architecture is that of epoch {epoch}")

    def state_dict(self) -> dict[str, Any]:
        history = torch.stack(self.history) if self.history else torch.empty(0)
        return {**super().state_dict(), "history": history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.history = list(state_dict["history"].cpu())


@checked("guard.eigenvalue")
class EigenvalueStop(CollapseGuard):
    """Stops when the validation loss grows too curved in alpha (R-DARTS, Zela et al. 2020).

    The size of the dominant eigenvalue of ``d2 L_val / d alpha2`` on one validation batch, every
    `every` epochs, averaged over the `window` measurements around each. When an average exceeds
    `ratio` times the one `delta` measurements before it, which must lie at epoch `first` or later,
    the architecture is that of the earlier one.

    Args:
        samples: largest number of samples, of the first validation batch.

    Raises:
        UserError: a number that makes no sense.
    """

    def __init__(
        self,
        every: Count = 2,
        window: Count = 5,
        delta: Count = 4,
        ratio: Annotated[float, Field(gt=1)] = 1.3,
        first: Whole = 10,
        samples: Count = 256,
    ) -> None:
        super().__init__()
        if window % 2 == 0:
            raise UserError(f"guard.eigenvalue.window={window} must be odd: it is centred")
        self.every, self.window, self.delta = every, window, delta
        self.ratio, self.first, self.samples = ratio, first, samples
        self.eigenvalues: list[float] = []  # one every `every` alpha epochs, the first at epoch 0

    def collapsed(self, trainer: pl.Trainer, pl_module: Any) -> tuple[int, str] | None:
        if (len(self.history) - 1) % self.every:
            return None
        self.eigenvalues.append(self._measure(trainer, pl_module))
        pl_module.record({"eigenvalue": self.eigenvalues[-1]})
        return self._verdict()

    def _verdict(self) -> tuple[int, str] | None:
        side = self.window // 2
        sizes = torch.tensor(self.eigenvalues).abs()
        # Averages [j] are around measurement j + side.
        enough = len(sizes) >= self.window
        averages = sizes.unfold(0, self.window, 1).mean(1).tolist() if enough else []
        if len(averages) <= self.delta:
            return None
        now, then = averages[-1], averages[-1 - self.delta]
        epoch = (len(averages) - 1 - self.delta + side) * self.every
        if epoch < self.first or now <= self.ratio * then:
            return None
        return epoch, f"the largest eigenvalue rose from {then:.3g} to {now:.3g}"

    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> float:
        loaders: Any = trainer.val_dataloaders
        with each_rank_alone():  # the same images on every rank
            x, labels = next(iter(loaders[0] if isinstance(loaders, list) else loaders))
        x = moved(some(x, slice(self.samples)), pl_module.device)
        labels = labels[: self.samples].to(pl_module.device)
        supernet = pl_module.supernet
        free(supernet)
        _, alphas = split_parameters(supernet)
        with torch.enable_grad(), kept_modes(supernet), kept_statistics(supernet):
            return dominant_eigenvalue(
                lambda: pl_module.task.loss(run(supernet.train(), x), labels),
                alphas,
                generator=torch.Generator().manual_seed(pl_module.seed),
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "eigenvalues": self.eigenvalues}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.eigenvalues = list(state_dict["eigenvalues"])


@checked("guard.skips")
class SkipCount(CollapseGuard):
    """Stops when the best architecture has more than `most` skips (DARTS+, Liang et al. 2019).

    The architecture is that of the last epoch with no more. A decision that several cells share
    counts once; one inside an option that is not taken does not count.

    Args:
        most: largest number of skips that does not stop the search.
        options: names of the options that count as skips.
        prefix: count only decisions whose names begin so.
        first: alpha epochs at the beginning that do not count, since alphas tell little then.

    Raises:
        UserError: a negative number.
    """

    def __init__(
        self,
        most: Whole = 1,
        options: Sequence[str] = ("skip_connect", "identity"),
        prefix: str = "",
        first: Whole = 1,
    ) -> None:
        super().__init__()
        self.most, self.options, self.prefix, self.first = most, tuple(options), prefix, first

    def collapsed(self, trainer: pl.Trainer, pl_module: Any) -> tuple[int, str] | None:
        found = count_taken(pl_module.supernet, self.options, self.prefix)
        pl_module.record({"skips": float(found)})
        epoch = len(self.history) - 1
        if epoch < self.first or found <= self.most:
            return None
        return max(epoch - 1, 0), f"the best architecture has {found} skips, more than {self.most}"


def count_taken(model: nn.Module, options: Sequence[str], prefix: str = "") -> int:
    """How many decisions of the best architecture take one of `options`."""
    names = {decision: name for name, decision in decisions(model)}
    taken = {site.tied_to for site in _taken_sites(model)}
    return sum(d.best() in options for d in taken if names[d].startswith(prefix))


def _taken_sites(module: nn.Module) -> list[Decision]:
    if isinstance(module, Decision):
        return [module, *_taken_sites(module.discretize())]
    return [site for child in module.children() for site in _taken_sites(child)]


def dominant_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    steps: int = 20,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:
    """The eigenvalue of largest magnitude of the Hessian of ``loss()``, by power iteration.

    ``v <- Hv / |Hv|``, ``lambda = v^T H v``; ``Hv`` is the gradient of ``grad^T v`` (R-DARTS, Zela
    et al. 2020, Section 4.3).

    Args:
        loss: a scalar, twice differentiable in `parameters`.
        steps: largest number of products ``Hv``.
        tolerance: relative change of lambda at which to stop.
        generator: of the first v.
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    gradient = torch.cat([g.flatten() for g in gradients])
    v = torch.randn(gradient.shape, generator=generator).to(gradient)
    v /= v.norm()
    value = 0.0
    for _ in range(steps):
        products = torch.autograd.grad(
            gradient @ v, parameters, retain_graph=True, materialize_grads=True
        )
        product = torch.cat([p.flatten() for p in products])
        before, value = value, float(v @ product)
        size = float(product.norm())
        if size == 0 or abs(value - before) <= tolerance * abs(value):
            break
        v = product / size
    return value
