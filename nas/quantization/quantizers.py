"""Fake quantisation with learned step sizes: weights per output channel, inputs per tensor.

``q(v) = s * (clamp(round(v / s) + z, low, high) - z)`` (LSQ, Esser et al. 2020, Eq. 1 and 2; with a
learned zero point z, LSQ+, Bhalgat et al. 2020). Rounding has the gradient of the identity inside
the range; the step has that of LSQ's Eq. 3, scaled by ``1 / sqrt(n * high)``. Both are what
``torch._fake_quantize_learnable_per_tensor_affine`` gives, in a third of its time on a CPU.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nas.copying import copied
from nas.errors import UserError

BITS = (2, 4, 8)  # widths that a packed row holds without a value across two bytes
Start = Literal["mse", "minmax"]

_SMALLEST = 1e-12  # step: at 0 its reciprocal would be infinite
_FRACTIONS = 40  # steps that the start "mse" tries, evenly spread up to that of "minmax"


def check_bits(what: str, bits: object) -> int:
    """`bits` itself.

    Raises:
        UserError: no format holds so many; `what` begins the message.
    """
    if isinstance(bits, bool) or bits not in BITS:
        raise UserError(
            f"{what}: bits={bits!r} is not one of {list(BITS)}, which integer formats hold"
        )
    return int(str(bits))


def levels(bits: int) -> int:
    """The largest weight in steps. The range is symmetric: 2 bits are -1, 0 and 1."""
    return int(2 ** (bits - 1) - 1)


def fake_quantize(
    x: Tensor, step: Tensor, zero: Tensor, low: Any, high: Any, scale: float | Tensor
) -> Tensor:
    """`x` in whole steps: ``step * (clamp(round(x / step) + zero, low, high) - zero)``.

    Args:
        step: above 0, of a shape that broadcasts to that of `x`.
        zero: level of 0 ``()``; it is rounded, and 0 where the limits are tensors.
        low, high: whole numbers; tensors, of the shape of `step`, where rows have limits of their
            own.
        scale: of the gradients of `step` and `zero`.
    """
    y: Tensor = _FakeQuantize.apply(x, step, zero, low, high, scale)
    return y


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        zero: Tensor,
        low: Any,  # as of `clamp`, which has one signature for numbers and one for tensors
        high: Any,
        scale: float | Tensor,
    ) -> Tensor:
        least, most = low, high
        if not isinstance(low, Tensor):
            level = float(zero.detach().round().clamp(low, high))
            least, most = low - level, high - level
        step = step.to(x.dtype)
        value = x * step.reciprocal()
        rounded = value.round().clamp_(least, most)
        ctx.save_for_backward(value, rounded, step)
        ctx.limits, ctx.scale = (least - 0.5, most + 0.5), scale
        return rounded * step

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, rounded, step = ctx.saved_tensors
        grad, (least, most) = grads[0], ctx.limits
        if isinstance(least, Tensor):
            inside = grad * ((value > least) & (value < most))
        else:
            inside = torch.ops.aten.hardtanh_backward(grad, value, least, most)
        by_step = by_zero = None
        if ctx.needs_input_grad[1]:
            # Of values that cancel: their sums apart from each other would be off by a percent.
            terms = (grad * rounded).addcmul_(inside, value, value=-1)
            by_step = ctx.scale * terms.sum_to_size(step.shape)
        if ctx.needs_input_grad[2]:
            beyond = grad.sum_to_size(step.shape) - inside.sum_to_size(step.shape)
            by_zero = -ctx.scale * (step * beyond).sum()
        return inside, by_step, by_zero, None, None, None


class WeightQuantizer(nn.Module):
    """Rounds a weight to ``-levels(bits) ... levels(bits)`` steps, one step per output channel.

    The range is symmetric, so that the sign of a folded BatchNorm's scale changes no level.

    Args:
        bits: one of `BITS`.
        weight: ``(C_out, ...)``, from which the steps start.
        start: "minmax": the largest weight of a channel is the largest level; "mse": of 40
            steps up to that one, each channel takes that of the least squared error.

    Shapes: step ``(C_out,)``; ``(C_out, ...) -> (C_out, ...)``.
    """

    def __init__(self, bits: int, weight: Tensor, start: Start = "mse") -> None:
        super().__init__()
        self.bits, self.calibrating = bits, False
        self.step = nn.Parameter(first_step(weight.detach(), bits, start))

    def forward(self, weight: Tensor) -> Tensor:
        # Costs are read on tensors without memory: runtimes round where they write, at no cost.
        if self.calibrating or weight.is_meta:
            return weight
        top, size = self.top(weight), by_row(positive(self.step), weight)
        # One gradient per step: LSQ's n is the number of weights that it rounds.
        count = max(1, weight[0].numel()) * top
        scale = count.rsqrt() if isinstance(count, Tensor) else 1 / sqrt(count)
        return fake_quantize(weight, size, torch.zeros(()), -top, top, scale)

    def of_rows(self, kept: Tensor) -> "WeightQuantizer":
        """A copy for some of the output channels."""
        made = copied(self)
        made.step = nn.Parameter(self.step.detach()[kept], self.step.requires_grad)
        return made

    def top(self, weight: Tensor) -> Any:
        """The largest level; of a shape that broadcasts to `weight` where channels differ."""
        return levels(self.bits)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """Numbers of bits, ascending, and how many output channels have so many."""
        return ((self.bits, len(self.step)),)

    @property
    def bits_of_rows(self) -> Tensor:
        """Bits of each output channel, uint8 ``(C_out,)``."""
        return torch.full((len(self.step),), self.bits, dtype=torch.uint8)

    @property
    def size(self) -> Tensor:
        """The steps ``(C_out,)`` as they are used, without a gradient."""
        return positive(self.step.detach())

    @torch.no_grad()
    def integers(self, weight: Tensor) -> Tensor:
        """The levels that `weight` is rounded to, int8 ``(C_out, ...)``."""
        top = self.top(weight)
        # The kernel multiplies by the reciprocal, which rounds otherwise than a division.
        inverse = by_row(positive(self.step).reciprocal(), weight)
        return (weight * inverse).round().clamp(-top, top).to(torch.int8)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class RowQuantizer(WeightQuantizer):
    """As `WeightQuantizer`, with bits of its own for each output channel.

    Args:
        steps: ``(C_out,)`` by their bits; each channel takes that of its own.
        bits: of each output channel, uint8 ``(C_out,)``.
        rows: see `WeightQuantizer.rows`; `bits` may be without values, as costs are read.
    """

    channel_bits: Tensor  # a buffer: a file of weights says which channel has which bits

    def __init__(
        self,
        steps: Mapping[int, Tensor],
        bits: Tensor,
        rows: tuple[tuple[int, int], ...],
    ) -> None:
        nn.Module.__init__(self)
        self.calibrating, self._rows = False, rows
        self.register_buffer("channel_bits", bits)
        step = next(iter(steps.values())).detach().clone()
        for width, own in steps.items() if not bits.is_meta else ():
            step = torch.where(bits == width, own.detach(), step)
        self.step = nn.Parameter(step)

    def top(self, weight: Tensor) -> Any:
        return by_row(2.0 ** (self.channel_bits - 1.0) - 1, weight)

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        return self._rows

    @property
    def bits_of_rows(self) -> Tensor:
        return self.channel_bits

    def extra_repr(self) -> str:
        return f"channels of each number of bits: {dict(self.rows)}"


def by_row(values: Tensor, weight: Tensor) -> Tensor:
    """``(C_out,)`` in a shape that broadcasts to ``(C_out, ...)``."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class InputQuantizer(nn.Module):
    """Rounds an activation to ``2 ** bits`` levels between a smallest and a largest value.

    The range holds 0 exactly, which padding needs. It starts as that of the first batch seen, or
    of several, see `calibrating`.

    Args:
        bits: one of `BITS`.

    Shapes: step ``()``, 0 until a batch was seen; zero ``()``, the level of 0.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.calibrating = bits, False
        self.step, self.zero = (nn.Parameter(torch.zeros(())) for _ in range(2))

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest level."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x
        if self.calibrating or not bool(self.step):
            self.observe(x.detach())
        if self.calibrating:
            return x
        low, high = self.range
        scale = 1 / sqrt(max(1, x[:1].numel()) * high)
        return fake_quantize(x, positive(self.step), self.zero, low, high, scale)

    @property
    def numbers(self) -> tuple[float, int, int, int]:
        """Step, level of 0, smallest and largest level, as they are used."""
        low, high = self.range
        step, zero = positive(self.step.detach()), self.zero.detach().round().clamp(low, high)
        return float(step), int(zero), low, high

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen the range to that of `x`."""
        low, high = self.range
        least, most = (low - self.zero) * self.step, (high - self.zero) * self.step
        least, most = torch.minimum(least, x.amin().to(least)), torch.maximum(most, x.amax())
        step, zero = step_and_zero(least, most, low, high)
        self.step.copy_(step)
        self.zero.copy_(zero)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def step_and_zero(least: Tensor, most: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """Of the levels `low` to `high` over a range that holds 0, which is a level exactly."""
    step = ((most - least) / (high - low)).clamp_min(_SMALLEST)
    return step, (low - least / step).round().clamp(low, high)


def positive(step: Tensor) -> Tensor:
    """The step as it is used: training may carry it across 0."""
    return step.abs().clamp_min(_SMALLEST)


def first_step(weight: Tensor, bits: int, start: Start) -> Tensor:
    """Steps ``(C_out,)`` to start with, see `WeightQuantizer`."""
    top, rows = levels(bits), weight.flatten(1).float()
    most = (rows.abs().amax(1) / top).clamp_min(_SMALLEST)
    if start == "minmax":
        return most
    tried = torch.arange(1, _FRACTIONS + 1, device=weight.device) / _FRACTIONS
    errors = []
    for fraction in tried:
        step = (most * fraction)[:, None]
        errors.append(((rows / step).round().clamp(-top, top) * step - rows).square().sum(1))
    return most * tried[torch.stack(errors).argmin(0)]


@contextmanager
def calibrating(network: nn.Module) -> Iterator[None]:
    """Learn the ranges of all inputs anew from what runs inside, in floating point."""
    found = [m for m in network.modules() if isinstance(m, InputQuantizer | WeightQuantizer)]
    for module in found:
        module.calibrating = True
        if isinstance(module, InputQuantizer):
            nn.init.zeros_(module.step)
            nn.init.zeros_(module.zero)
    try:
        yield
    finally:
        for module in found:
            module.calibrating = False
