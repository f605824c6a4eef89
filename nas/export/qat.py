"""Quantization-aware fine-tuning: train on with int8 rounding in the forward pass.

Rounding is as XNNPACK's and onnxruntime's int8: weights symmetric per output channel, inputs of
convolutions and linear layers per tensor. BatchNorm keeps its statistics, as it will be folded: a
scale per output channel, which the weight's own scale takes up, so that nothing is folded here.
The result is a float network of the same layers, for any format's own int8 conversion.
"""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nas.copying import copied
from nas.train import check_finite

QUANTIZED = (nn.Conv1d, nn.Conv2d, nn.Linear)
_LEVELS = 255  # steps between the smallest and the largest of 256 values


def rounded_weight(weight: Tensor) -> Tensor:
    """Weights ``(C_out, ...)`` as int8 gives them back: symmetric, one scale a channel.

    The gradient goes through as if nothing had been rounded.
    """
    largest = weight.detach().abs().flatten(1).amax(1).clamp(min=1e-12)
    scale = (largest / 127).reshape(-1, *[1] * (weight.dim() - 1))
    return weight + (torch.round(weight / scale) * scale - weight).detach()


def rounded_input(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Activations as int8 over ``[low, high]``, which holds 0, gives them back.

    Outside the range there is no gradient.
    """
    scale = ((high - low) / _LEVELS).clamp(min=1e-12)
    zero = torch.round(-low / scale)
    inside = x.clamp(float(low), float(high))
    level = (torch.round(inside / scale) + zero).clamp(0, _LEVELS)
    return inside + ((level - zero) * scale - inside).detach()


class _Weight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return rounded_weight(weight)


class _Input:
    """A forward pre-hook that follows the range of a layer's input and rounds to it."""

    def __init__(self, momentum: float = 0.1) -> None:
        self.momentum = momentum
        self.range: tuple[Tensor, Tensor] | None = None

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0]
        now = (x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0))
        low, high = self.range or now
        self.range = (low.lerp(now[0], self.momentum), high.lerp(now[1], self.momentum))
        return (rounded_input(x, *self.range), *inputs[1:])


def fine_tune(
    network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], epochs: int, lr: float, seed: int
) -> nn.Module:
    """A copy of `network` trained on with rounding; in eval mode, of the same layers.

    Args:
        loader: batches of one epoch, anew at each iteration.
        lr: of SGD with momentum, falling to 0 along a cosine.
        seed: of random draws in the network (dropout).
    """
    trained = copied(network).eval()  # eval: BatchNorm keeps its statistics
    layers = [m for m in trained.modules() if isinstance(m, QUANTIZED)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _Weight())
    hooks = [layer.register_forward_pre_hook(_Input()) for layer in layers]
    torch.manual_seed(seed)
    _train(trained, loader, epochs, lr)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    return trained


def _train(
    network: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], epochs: int, lr: float
) -> None:
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 + cos(pi * epoch / epochs)) / 2
        for x, labels in loader:
            loss = check_finite(F.cross_entropy(network(x), labels), epoch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
