"""Blocks of ShuffleNetV2 (Ma et al. 2018), as the choices of SPOS (Guo et al. 2020, Appendix)."""

import torch
from torch import Tensor, nn

from nas.ops.blocks import Stack, act, conv_norm


class ShuffleBlock(nn.Module):
    """A branch beside a path that keeps what came in, concatenated.

    At stride 1 with equal channels, every other channel goes through the branch and the rest are
    kept: split and shuffle in one. Otherwise both paths see all channels: the branch makes
    ``out - in`` of them, a depthwise and a pointwise convolution the other ``in``.

    The branch is pointwise, depthwise, pointwise; or, as `xception`, three pairs of depthwise
    kernel 3 and pointwise. Its middle channels are half of `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        ndim: int,
        activation: str | None,
        kernel: int = 3,
        xception: bool = False,
    ) -> None:
        super().__init__()
        self.splits = stride == 1 and in_channels == out_channels
        kept = in_channels // 2 if self.splits else in_channels
        made, middle = out_channels - kept, out_channels // 2

        def depthwise(channels: int, stride: int) -> list[nn.Module]:
            return conv_norm(ndim, channels, channels, kernel, stride, groups=channels)

        def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
            return [*conv_norm(ndim, inputs, outputs, 1), act(activation)]

        if xception:
            layers = [*depthwise(kept, stride), *pointwise(kept, middle)]
            layers += [*depthwise(middle, 1), *pointwise(middle, middle)]
            layers += [*depthwise(middle, 1), *pointwise(middle, made)]
        else:
            layers = [*pointwise(kept, middle), *depthwise(middle, stride)]
            layers += pointwise(middle, made)
        self.branch = Stack(*layers)
        shortcut = [] if self.splits else [*depthwise(kept, stride), *pointwise(kept, kept)]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        if self.splits:
            pairs = torch.unflatten(x, 1, (-1, 2))
            kept, x = pairs[:, :, 0], pairs[:, :, 1]
        return torch.cat([self.shortcut(kept), self.branch(x)], 1)
