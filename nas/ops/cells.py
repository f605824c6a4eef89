"""The candidate operations of the cell spaces, as DARTS and NAS-Bench-201 define them.

Unlike the other ops they begin with the activation and end in BatchNorm, so that what a node sums
is not rectified. Several ops read one tensor: no activation works in place.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.ops.blocks import ACTIVATIONS, NORM, ChannelShuffle, Site, Stack


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


def relu_conv(site: Site[int], kernel: int) -> Stack:
    """ReLU, convolution, BatchNorm."""
    return Stack(
        _first(site),
        *site.conv_norm(site.in_channels, site.out_channels, kernel, site.stride),
    )


def dilated(site: Site[int], kernel: int, dilation: int = 2) -> Stack:
    """ReLU, depthwise convolution of this dilation, pointwise convolution, BatchNorm."""
    inputs = site.in_channels
    depthwise = site.conv(inputs, inputs, kernel, site.stride, inputs, dilation)
    return Stack(_first(site), depthwise, *site.conv_norm(inputs, site.out_channels, 1))


def separable_twice(site: Site[int], kernel: int) -> Stack:
    """ReLU, depthwise, pointwise, BatchNorm, twice; stride in the first, channels in the second."""
    inputs = site.in_channels
    first = Site(inputs, inputs, site.stride, site.ndim, site.activation, site.affine)
    second = Site(inputs, site.out_channels, 1, site.ndim, site.activation, site.affine)
    return Stack(*dilated(first, kernel, 1), *dilated(second, kernel, 1))


def skip(site: Site[int]) -> nn.Module:
    """The input itself; where the size must halve, `FactorizedReduce`."""
    if site.stride == 1:
        return nn.Identity()
    return FactorizedReduce(site.in_channels, site.out_channels, site.affine)


def pool_norm(site: Site[int], pool: nn.Module) -> Stack:
    """Pooling and a BatchNorm without parameters, as a pooled value may be of any scale."""
    return Stack(pool, NORM[site.ndim](site.out_channels, affine=False))


def _first(site: Site[int]) -> nn.Module:
    """The activation, never in place: the input is another op's too."""
    return ACTIVATIONS[site.activation or "relu"]()


class PartialChannels(nn.Module):
    """Sends the first 1/K of the channels through `op`, the others past it, and shuffles them.

    A K-th of the activations to keep, and less advantage for ops without weights (PC-DARTS, Xu et
    al. 2020, Eq. 3). The extracted network keeps the bypass, with one op in place of all. Its arch
    may be trained without, in the same space with `partial` at 1.

    Shape: ``(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, op: nn.Module, channels: int, partial: int, stride: int) -> None:
        super().__init__()
        self.op, self.channels = op, channels // partial
        self.bypass = nn.Identity() if stride == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)
        self.shuffle = ChannelShuffle(partial)

    def forward(self, x: Tensor) -> Tensor:
        through, past = x[:, : self.channels], x[:, self.channels :]
        y: Tensor = self.shuffle(torch.cat([self.op(through), self.bypass(past)], 1))
        return y
