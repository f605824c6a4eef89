"""Candidate operations of the cell spaces, as DARTS and NAS-Bench-201 define them; images only.

Unlike those of `nas.ops.blocks` they begin with the activation and end in BatchNorm, so that what a
node sums is not rectified. Several ops read one tensor: no activation works in place.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.blocks import Stack, Zero
from nas.ops.convolution import Conv2d

Factory = Callable[[int, int, bool], nn.Module]  # channels, stride, affine -> op


class FactorizedReduce(nn.Module):
    """Halves both sides without losing every other pixel (Liu et al. 2019, the DARTS code).

    ReLU, then two 1x1 convolutions of stride 2 side by side, the second on the input shifted by one
    pixel both ways, then BatchNorm.

    Shape: ``(N, C_in, H, W) -> (N, C_out, ceil(H / 2), ceil(W / 2))``.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.even = nn.Conv2d(in_channels, out_channels - half, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, half, 1, 2, bias=False) if half else None
        self.norm = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        halves = [self.even(x)]
        if self.odd is not None:
            h, w = x.shape[2:]
            # A side that is odd ends on a row of zeros, or the halves would differ in size.
            shifted = F.pad(x, (0, w % 2, 0, h % 2)) if h % 2 or w % 2 else x
            halves.append(self.odd(shifted[:, :, 1:, 1:]))
        y: Tensor = self.norm(torch.cat(halves, 1))
        return y


def relu_conv(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, affine: bool = True
) -> Stack:
    """ReLU, convolution, BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return Stack(nn.ReLU(), conv, nn.BatchNorm2d(out_channels, affine=affine))


def dilated(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> Stack:
    """ReLU, depthwise convolution, pointwise convolution, BatchNorm."""
    pad = dilation * (kernel // 2)
    depthwise = Conv2d(
        channels, channels, kernel, stride, pad, dilation, groups=channels, bias=False
    )
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return Stack(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine))


def separable_twice(channels: int, kernel: int, stride: int, affine: bool) -> Stack:
    """ReLU, depthwise, pointwise, BatchNorm, twice; the stride in the first."""
    first = dilated(channels, kernel, stride, 1, affine)
    return Stack(*first, *dilated(channels, kernel, 1, 1, affine))


def skip(channels: int, stride: int, affine: bool) -> nn.Module:
    """The input itself; where the size must halve, `FactorizedReduce`."""
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine)


def pooled(pool: nn.Module, channels: int) -> Stack:
    """Pooling and a BatchNorm without parameters, as a pooled value may be of any scale."""
    return Stack(pool, nn.BatchNorm2d(channels, affine=False))


NAS_BENCH_201: dict[str, Factory] = {
    "none": lambda c, stride, affine: Zero(c, stride),
    "skip_connect": skip,
    "nor_conv_1x1": lambda c, stride, affine: relu_conv(c, c, 1, stride, affine),
    "nor_conv_3x3": lambda c, stride, affine: relu_conv(c, c, 3, stride, affine),
    "avg_pool_3x3": lambda c, stride, affine: nn.AvgPool2d(3, stride, 1, count_include_pad=False),
}

DARTS: dict[str, Factory] = {
    "max_pool_3x3": lambda c, stride, affine: pooled(nn.MaxPool2d(3, stride, 1), c),
    "avg_pool_3x3": lambda c, stride, affine: pooled(
        nn.AvgPool2d(3, stride, 1, count_include_pad=False), c
    ),
    "skip_connect": skip,
    "sep_conv_3x3": lambda c, stride, affine: separable_twice(c, 3, stride, affine),
    "sep_conv_5x5": lambda c, stride, affine: separable_twice(c, 5, stride, affine),
    "dil_conv_3x3": lambda c, stride, affine: dilated(c, 3, stride, 2, affine),
    "dil_conv_5x5": lambda c, stride, affine: dilated(c, 5, stride, 2, affine),
}
