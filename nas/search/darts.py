"""DARTS: bilevel search of first and second order, and single-level search."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from nas.epochs import plain
from nas.errors import UserError
from nas.ranks import averaged
from nas.recalibrate import kept_statistics
from nas.search.differentiable import DifferentiableSearch
from nas.tasks import check_finite
from nas.train import Batch, frozen


class BilevelSearch(DifferentiableSearch):
    """First-order DARTS: alphas on validation batches, weights on training batches, in turn.

    Per step ``alpha <- alpha - xi * grad_alpha [L_val(w, alpha) + penalty]``, then
    ``w <- w - eta * grad_w L_train(w, alpha)`` (Liu et al. 2019, Algorithm 1 with xi = 0 in the
    virtual step). `SecondOrderSearch` looks one step ahead.
    """

    def loaders(self, data: Any) -> dict[str, Any]:
        return {"train": data.weight_loader(), "val": data.alpha_loader()}

    def step(self, batch: dict[str, Batch], index: int) -> None:
        if not self.warming_up:
            self.step_alphas(batch)
        self.step_weights(batch["train"])

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        """Move the alphas on the validation batch; weights stay."""
        _, alpha_optimizer = self.moving()
        with frozen(self.parameters_of.weights):
            self._descend(alpha_optimizer, lambda: self.val_loss(batch))

    def val_loss(self, batch: dict[str, Batch]) -> Tensor:
        """The loss ``()`` that alphas descend."""
        return self.alpha_loss(self.task_loss(batch["val"], "alpha"))


class SingleLevelSearch(DifferentiableSearch):
    """Weights and alphas descend the same objective on the same training batch, at once."""

    def loaders(self, data: Any) -> dict[str, Any]:
        return {"train": data.weight_loader()}

    def step(self, batch: dict[str, Batch], index: int) -> None:
        if self.warming_up:
            self.step_weights(batch["train"])
            return
        moving = self.moving()[int(self.freeze_weights) :]
        self.draw()
        for optimizer in moving:
            optimizer.zero_grad()
        with frozen(self.parameters_of.weights if self.freeze_weights else []):
            loss = self.alpha_loss(self.task_loss(batch["train"], "train"))
            self.back(check_finite(loss, self.current_epoch))
        for optimizer in moving:
            self._clip(optimizer)
            optimizer.step()


Loss = Callable[[], Tensor]

RADIUS = 0.01  # norm of the change of the weights in the finite difference


class _Virtual(NamedTuple):
    """The step of one weight, and its derivative: ``slope = d step / d gradient``."""

    step: Tensor
    slope: float


class SecondOrderSearch(BilevelSearch):
    """Second-order DARTS: alphas descend the loss after one more step of the weights.

    See `unrolled_gradient` (Liu et al. 2019, Eq. 6 to 8).

    Raises:
        UserError: the optimizer of the weights is not SGD, the step that is computed here, or the
            weights are frozen.
    """

    def configure_optimizers(self) -> Any:
        optimizers, schedules = super().configure_optimizers()
        if not isinstance(optimizers[0], SGD):
            raise UserError(
                f"second-order search looks a step of SGD ahead, and search.weight_optimizer is "
                f"{type(optimizers[0]).__name__}: use torch.optim.SGD, or search=darts"
            )
        if self.freeze_weights:
            raise UserError(
                "second-order search looks at the weights' next step, and they are frozen: take "
                "search=bilevel, or search.freeze_weights=false"
            )
        return optimizers, schedules

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        weight_optimizer, alpha_optimizer = self.moving()
        self.draw()  # the same paths in all of the passes
        with kept_statistics(self.supernet):  # at weights that it never has
            gradients = unrolled_gradient(
                lambda: self.unlogged_loss(batch["train"]),
                lambda: check_finite(self.val_loss(batch), self.current_epoch),
                plain(weight_optimizer),
                self.parameters_of.alphas,
            )
        for alpha, gradient in zip(self.parameters_of.alphas, gradients, strict=True):
            alpha.grad = gradient
        alpha_optimizer.step()


def unrolled_gradient(
    train_loss: Loss, val_loss: Loss, optimizer: Optimizer, alphas: Sequence[nn.Parameter]
) -> list[Tensor]:
    """The gradient of ``L_val(w'(alpha), alpha)`` for each of `alphas` (Liu et al. 2019, Eq. 7, 8).

    ``d_alpha L_val(w', alpha) - [d_alpha L_train(w + e u) - d_alpha L_train(w - e u)] / (2 e)``
    with ``u = (d step / d gradient) * grad_w' L_val`` and ``e = 0.01 / |u|``. Weights are the same
    afterwards, to the bit; no ``.grad`` is touched.

    Args:
        train_loss, val_loss: the losses at the present weights and alphas. Both are called several
            times, and must be the same functions each time.
        optimizer: SGD over the weights, whose momentum is read and left alone.
    """
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    with _kept(weights):
        gradients = _averaged(torch.autograd.grad(train_loss(), weights, allow_unused=True))
        virtual = list(_steps(optimizer, gradients))
        _move(weights, [v.step for v in virtual], -1.0)
        found = averaged(
            torch.autograd.grad(
                val_loss(), [*alphas, *weights], allow_unused=True, materialize_grads=True
            )
        )
    direct, ahead = found[: len(alphas)], found[len(alphas) :]
    u = [v.slope * g for v, g in zip(virtual, ahead, strict=True)]
    norm = float(torch.linalg.vector_norm(torch.stack([part.norm() for part in u])))
    if norm == 0:
        return list(direct)
    sides = []
    for sign in (1.0, -1.0):
        with _kept(weights):
            _move(weights, u, sign * RADIUS / norm)
            slopes = torch.autograd.grad(train_loss(), alphas, materialize_grads=True)
            sides.append(averaged(slopes))
    return [
        d - (above - below) * (norm / (2 * RADIUS))
        for d, above, below in zip(direct, *sides, strict=True)
    ]


def _averaged(gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients averaged over the ranks; None, for a weight off the path, is None on every rank."""
    found = iter(averaged([g for g in gradients if g is not None]))
    return [None if g is None else next(found) for g in gradients]


def _steps(optimizer: Optimizer, gradients: Sequence[Tensor | None]) -> Iterator[_Virtual]:
    """The step that SGD would subtract from each weight, in the order of its groups."""
    remaining = iter(gradients)
    for group in optimizer.param_groups:
        rate, momentum = float(group["lr"]), group["momentum"]
        for w in group["params"]:
            gradient = next(remaining)
            if gradient is None:  # not on the path: SGD leaves it alone
                yield _Virtual(torch.zeros_like(w), 0.0)
                continue
            step = gradient + group["weight_decay"] * w.detach()
            slope = 1.0
            buffer = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
            if momentum:
                fresh = 1.0 if buffer is None else 1.0 - group["dampening"]
                moving = fresh * step if buffer is None else momentum * buffer + fresh * step
                nesterov = group["nesterov"]
                step = step + momentum * moving if nesterov else moving
                slope = 1 + momentum * fresh if nesterov else fresh
            yield _Virtual(rate * step, rate * slope)


@contextmanager
def _kept(weights: Sequence[Tensor]) -> Iterator[None]:
    # Copies, and copied back in place: a difference added and taken away again would round.
    before = [w.detach().clone() for w in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights, before, strict=True):
                w.copy_(value)


def _move(weights: Sequence[Tensor], directions: Sequence[Tensor], factor: float) -> None:
    with torch.no_grad():
        for w, direction in zip(weights, directions, strict=True):
            w.add_(direction, alpha=factor)
