"""Convolutions of searched kernel and channels, and the plain layers that they become."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.arch import Option
from nas.decision import Decision
from nas.ops.blocks import CONV, NORM, Site, Stack, sliced_norm, tensors_of
from nas.supernet.elastic import (
    ElasticChannels,
    Number,
    options_of,
    prefix,
    taken,
    theta_of,
)

Convolution = nn.Conv1d | nn.Conv2d
CONVOLVE = {1: F.conv1d, 2: F.conv2d}


def plain_conv(conv: Convolution, weight: Tensor, bias: Tensor | None = None) -> Convolution:
    """A convolution like `conv` with a copy of `weight`; grouped if `conv` is depthwise."""
    out_channels, fan_in, *kernel = weight.shape
    groups = out_channels if conv.groups > 1 else 1
    padding = [size // 2 for size in kernel]
    made = CONV[len(kernel)](
        fan_in * groups,
        out_channels,
        kernel,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        padding,  # type: ignore[arg-type]
        groups=groups,
        bias=bias is not None,
        device="meta",  # no time for values that are not kept
    )
    made.weight = _owned(weight, conv.weight)
    if bias is not None:
        assert conv.bias is not None
        made.bias = _owned(bias, conv.bias)
    return made


def plain_norm(norm: _BatchNorm, channels: int) -> _BatchNorm:
    """A norm like `norm` of its first channels."""
    ndim = 1 if isinstance(norm, nn.BatchNorm1d) else 2
    made = NORM[ndim](channels, norm.eps, norm.momentum, device="meta")
    made.weight = _owned(norm.weight[:channels], norm.weight)
    made.bias = _owned(norm.bias[:channels], norm.bias)
    for name, buffer in norm.named_buffers():
        made.register_buffer(name, (buffer[:channels] if buffer.ndim else buffer).clone())
    return made


def _owned(part: Tensor, whole: Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), requires_grad=whole.requires_grad)


class ElasticDepthwise(nn.Module):
    """Depthwise convolution of elastic kernel and channels (Cai et al. 2020, Section 3.3).

    The filter of a smaller kernel is the centre of that one size up, times a matrix that all
    channels share and that starts as the identity: 25 x 25 and 9 x 9 for kernels 7, 5, 3.

    Args:
        kernel: odd.

    Shape: ``(N, C, *S_in) -> (N, C, *S_out)`` for any C up to `channels`.
    """

    def __init__(self, channels: int, kernel: Number, stride: int, ndim: int) -> None:
        super().__init__()
        self.kernel, self.ndim = kernel, ndim
        self.sizes = options_of(kernel)
        largest = self.sizes[-1]
        self.conv = CONV[ndim](
            channels, channels, largest, stride, largest // 2, groups=channels, bias=False
        )
        self.transforms = nn.ParameterDict(
            {f"to{size}": nn.Parameter(torch.eye(size**ndim)) for size in self.sizes[-2::-1]}
        )

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = self._mixed(channels)
        y: Tensor = CONVOLVE[self.ndim](
            x, weight, None, self.conv.stride, weight.shape[-1] // 2, groups=channels
        )
        return y

    def plain(self, kernel: int, channels: int) -> Convolution:
        """The convolution of that kernel on the first channels."""
        return plain_conv(self.conv, dict(self._filters(channels))[kernel])

    def _mixed(self, channels: int) -> Tensor:
        theta = theta_of(self.kernel, self.conv.weight)
        shares = dict(zip(self.sizes, zip(theta.tolist(), theta, strict=True), strict=True))
        total: Tensor | None = None
        for size, weight in self._filters(channels):
            value, share = shares.pop(size)
            if value != 0:
                term = weight if value == 1 and not share.requires_grad else weight * share
                grown = 0 if total is None else (total.shape[-1] - size) // 2
                term = F.pad(term, [grown] * 2 * self.ndim) if grown else term
                total = term if total is None else total + term
            if not any(value for value, _ in shares.values()):
                break  # nothing smaller has a part
        assert total is not None
        return total

    def _filters(self, channels: int) -> Iterator[tuple[int, Tensor]]:
        """Every kernel size with its filter ``(C, 1, *K)``, the largest first."""
        weight = self.conv.weight[:channels]
        for size in reversed(self.sizes):
            crop = (weight.shape[-1] - size) // 2
            if crop:
                window = (slice(None), slice(None), *[slice(crop, -crop)] * self.ndim)
                flat = weight[window].reshape(channels, -1)
                weight = F.linear(flat, self.transforms[f"to{size}"])
                weight = weight.view(channels, 1, *[size] * self.ndim)
            yield size, weight


class ElasticConv(ElasticChannels):
    """`nas.ops.catalogue.conv` with searched channels; see `nas.supernet.elastic`."""

    def __init__(self, site: Site[Number], kernel: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = site.in_channels, site.out_channels
        self.ndim = site.ndim
        inputs, outputs = options_of(self.in_channels)[-1], options_of(self.out_channels)[-1]
        make = CONV[site.ndim]
        self.conv = make(inputs, outputs, kernel, site.stride, kernel // 2, bias=False)
        self.norm, self.activation = NORM[site.ndim](outputs), site.act()

    def forward(self, x: Tensor) -> Tensor:
        outputs, kept = prefix(theta_of(self.out_channels, x), options_of(self.out_channels))
        weight = self.conv.weight[:outputs, : x.shape[1]]
        y = CONVOLVE[self.ndim](x, weight, None, self.conv.stride, self.conv.padding)
        # Activations that a space offers are 0 at 0, so that a channel that is not there stays so.
        out: Tensor = self.activation(sliced_norm(self.norm, y, kept))
        return out

    def materialize(self, options: Mapping[Decision, Option]) -> Stack:
        """The plain layers, with copies of the weights they use."""
        inputs, outputs = (taken(n, options) for n in (self.in_channels, self.out_channels))
        conv = plain_conv(self.conv, self.conv.weight[:outputs, :inputs])
        norm = plain_norm(self.norm, outputs)
        return Stack(conv, norm, self.activation).train(self.training)

    @property
    def first(self) -> Convolution:
        """The convolution that reads the input."""
        return self.conv

    @property
    def last(self) -> tuple[nn.Module, ...]:
        """The layers of as many channels as the output has."""
        return self.conv, self.norm


def importance(conv: Convolution) -> Tensor:
    """``sum |w|`` over the weights that read each input channel: ``(C_in,)``."""
    return conv.weight.detach().abs().transpose(0, 1).flatten(1).sum(1)


@torch.no_grad()
def permute(module: nn.Module, order: Tensor) -> None:
    """Reorder the output channels of a convolution, or the channels of a norm, in place."""
    for _, tensor in tensors_of(module):
        if tensor.ndim:
            tensor.copy_(tensor[order])


@torch.no_grad()
def permute_inputs(conv: Convolution, order: Tensor) -> None:
    """Reorder the input channels of a convolution in place."""
    conv.weight.copy_(conv.weight[:, order])
