"""The candidate operations, over images (``ndim=2``) or sequences (``ndim=1``).

Padding is "same": an op of stride s maps a side of n to ``ceil(n / s)``, so that all candidates of
one layer agree in shape. Convolutions before a BatchNorm have no bias. Every factory takes
``(in_channels, out_channels, stride, ndim, activation, **what its name says)``.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.ops.convolution import Conv2d

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: Conv2d}
NORM: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
}
# In place where autograd allows it: the BatchNorm before it keeps only its own input.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}


def scaled_norm(norm: _BatchNorm, x: Tensor, scale: Tensor) -> Tensor:
    """``scale * norm(x)`` for the price of ``norm(x)``: the scale goes into its weight and bias.

    Statistics are used and updated as in any forward pass, since it is one.
    """
    # Attributes of the instance hide its parameters of the same name while it runs. That is what
    # `torch.func.functional_call` comes to, at a fraction of its 100 us.
    vars(norm).update(weight=norm.weight * scale, bias=norm.bias * scale)
    try:
        scaled: Tensor = norm(x)
    finally:
        del vars(norm)["weight"], vars(norm)["bias"]
    return scaled


class Stack(nn.Sequential):
    """Layers in a row that end in a BatchNorm, or in a BatchNorm and an activation.

    `scaled` costs no extra pass over the output where it can be folded into that BatchNorm: with
    no activation or ReLU after it, as ``relu(s * z) = s * relu(z)``; ReLU6 has no such identity.
    """

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if scale is None:
            return self._run(x, len(self))
        relu = isinstance(self[-1], nn.ReLU)
        last = len(self) - 1 - relu
        norm = self[last]
        if not (isinstance(norm, _BatchNorm) and norm.affine):
            return scale * self._run(x, len(self))
        y = scaled_norm(norm, self._run(x, last), scale)
        return self[-1](y) if relu else y

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale * self(x)`` for a 0-dim scale >= 0; at exactly 0 it has no gradient.

        Equal to ``self(x)`` to the bit at ``scale = 1``.
        """
        # Through __call__: hooks on the op see this call like any other.
        y: Tensor = self(x, scale)
        return y

    def _run(self, x: Tensor, n_layers: int) -> Tensor:
        for i, layer in enumerate(self):
            if i < n_layers:
                x = layer(x)
        return x


def conv_norm(
    ndim: int, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """Convolution without bias, and its BatchNorm."""
    conv = CONV[ndim](
        in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return [conv, NORM[ndim](out_channels)]


def act(name: str | None, default: str = "relu") -> nn.Module:
    """The activation of that name, by default `default`."""
    return ACTIVATIONS[name or default]()


def conv(
    in_channels: int,
    out_channels: int,
    stride: int,
    ndim: int,
    activation: str | None,
    kernel: int,
    se: bool = False,
) -> Stack:
    """Convolution, BatchNorm, ReLU; squeeze-and-excitation to a quarter of the input if `se`."""
    layers = [*conv_norm(ndim, in_channels, out_channels, kernel, stride), act(activation)]
    if se:
        layers.append(SqueezeExcitation(out_channels, max(1, in_channels // 4), ndim))
    return Stack(*layers)


def separable(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None, kernel: int
) -> Stack:
    """Depthwise convolution, BatchNorm, ReLU, pointwise convolution, BatchNorm, ReLU."""
    return Stack(
        *conv_norm(ndim, in_channels, in_channels, kernel, stride, groups=in_channels),
        act(activation),
        *conv_norm(ndim, in_channels, out_channels, 1),
        act(activation),
    )


def grouped(
    in_channels: int,
    out_channels: int,
    stride: int,
    ndim: int,
    activation: str | None,
    kernel: int,
    groups: int,
) -> Stack:
    """Channel shuffle, grouped convolution, BatchNorm, ReLU.

    The shuffle comes first, so that each group sees channels of every group of a layer before it.
    """
    return Stack(
        ChannelShuffle(groups),
        *conv_norm(ndim, in_channels, out_channels, kernel, stride, groups),
        act(activation),
    )


def spatially_separable(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None, kernel: int
) -> Stack:
    """(k, 1) convolution, BatchNorm, ReLU, (1, k) convolution, BatchNorm, ReLU; images only."""
    pad = kernel // 2
    return Stack(
        nn.Conv2d(in_channels, out_channels, (kernel, 1), (stride, 1), (pad, 0), bias=False),
        nn.BatchNorm2d(out_channels),
        act(activation),
        nn.Conv2d(out_channels, out_channels, (1, kernel), (1, stride), (0, pad), bias=False),
        nn.BatchNorm2d(out_channels),
        act(activation),
    )


class Residual(nn.Module):
    """A branch of layers, and the input added to what it gives where `residual`."""

    def __init__(self, branch: Stack, residual: bool) -> None:
        super().__init__()
        self.branch, self.residual = branch, residual

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y: Tensor = self.branch(x, scale)
        if not self.residual:
            return y
        return y + x if scale is None else y + scale * x

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """As `Stack.scaled`."""
        y: Tensor = self(x, scale)
        return y


class MBConv(Residual):
    """Inverted bottleneck of MobileNetV2 (Sandler et al., 2018, Table 1), ReLU6 by default.

    Pointwise expansion (none at ``expand=1``), depthwise convolution, squeeze-and-excitation if
    `se`, linear pointwise projection; a residual where stride is 1 and the channels are equal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        ndim: int,
        activation: str | None,
        kernel: int,
        expand: int,
        se: bool = False,
    ) -> None:
        hidden = in_channels * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [*conv_norm(ndim, in_channels, hidden, 1), act(activation, "relu6")]
        layers += conv_norm(ndim, hidden, hidden, kernel, stride, groups=hidden)
        layers += [act(activation, "relu6")]
        if se:
            layers += [SqueezeExcitation(hidden, max(1, in_channels // 4), ndim)]
        layers += conv_norm(ndim, hidden, out_channels, 1)
        super().__init__(Stack(*layers), stride == 1 and in_channels == out_channels)


class SqueezeExcitation(nn.Module):
    """Channel gate ``x * sigmoid(W2 relu(W1 mean(x)))`` (Hu et al., 2018, Eq. 3).

    `squeezed` is a quarter of the channels *before* the expansion in MnasNet and EfficientNet, and
    of those after it in MobileNetV3, whose sigmoid is `hard`: ``relu6(x + 3) / 6``.
    """

    def __init__(self, channels: int, squeezed: int, ndim: int, hard: bool = False) -> None:
        super().__init__()
        self.reduce = CONV[ndim](channels, squeezed, 1)
        self.expand = CONV[ndim](squeezed, channels, 1)
        self.dims, self.hard = tuple(range(2, 2 + ndim)), hard

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.expand(self.reduce(x.mean(self.dims, keepdim=True)).relu())
        return self.gated(x, gate)

    def gated(self, x: Tensor, gate: Tensor) -> Tensor:
        """x times the sigmoid of `gate`."""
        return x * (F.hardsigmoid(gate) if self.hard else gate.sigmoid())


class ChannelShuffle(nn.Module):
    """Channel c of group g becomes channel g of group c (ShuffleNet, Zhang et al., 2018)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        # nn.ChannelShuffle is an operator that exporters do not all know; these three they do.
        split = x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:])
        return split.transpose(1, 2).flatten(1, 2)


class GlobalPool(nn.Module):
    """Mean over all places: ``(N, C, *S) -> (N, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).mean(-1)


class Zero(nn.Module):
    """Zeros of the shape that any other op of this stride and width gives: no path.

    Without `out_channels`, as many as the input has.
    """

    def __init__(self, out_channels: int | None, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        # Not 0 * x, which would pass on a NaN or an infinity.
        sides = [(side - 1) // self.stride + 1 for side in x.shape[2:]]
        return x.new_zeros(x.shape[0], self.out_channels or x.shape[1], *sides)


def zero(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None
) -> Zero:
    """No path: zeros, for any channels and stride."""
    return Zero(out_channels, stride)


def identity(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None
) -> nn.Identity:
    """The input itself: as a candidate, it removes the layer."""
    return nn.Identity()


def average_pool(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None, kernel: int
) -> nn.Module:
    """Mean over the values that are there: padding is not counted."""
    pool = nn.AvgPool1d if ndim == 1 else nn.AvgPool2d
    return pool(kernel, stride, kernel // 2, count_include_pad=False)


def max_pool(
    in_channels: int, out_channels: int, stride: int, ndim: int, activation: str | None, kernel: int
) -> nn.Module:
    """Maximum over the window; padding never wins."""
    pool = nn.MaxPool1d if ndim == 1 else nn.MaxPool2d
    return pool(kernel, stride, kernel // 2)
