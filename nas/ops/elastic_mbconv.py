"""`ElasticMBConv`: an inverted bottleneck whose kernel, expansion and channels are searched."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.arch import Option
from nas.decision import Decision, Varying
from nas.ops.blocks import CONV, NORM, Residual, SqueezeExcitation, Stack, act
from nas.ops.elastic import (
    CONVOLVE,
    Convolution,
    ElasticDepthwise,
    Number,
    decided,
    options_of,
    plain_conv,
    plain_norm,
    prefix,
    sliced_norm,
    taken,
    tensors_of,
    theta_of,
    weighted,
)


def divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels` and not below 0.9 times it (MobileNetV3)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class ElasticMBConv(Varying):
    """MBConv of MobileNetV3 that runs a slice of its weights (Cai et al. 2020, Once-for-All).

    Expansion, BatchNorm, activation, depthwise convolution, BatchNorm, activation,
    squeeze-and-excitation if `se` (to a quarter of the expanded channels, as a multiple of 8; hard
    sigmoid), projection, BatchNorm; a residual where stride is 1 and the channels are equal. The
    channels used are the first ones, which `sort_channels` makes the most important ones.

    Args:
        in_channels, out_channels, kernel, expand: each a number, or an `Elastic` one. The input
            has as many channels as `in_channels` takes.

    Shape: ``(N, C_in, *S) -> (N, C_out, *S / stride)``.
    """

    def __init__(
        self,
        in_channels: Number,
        out_channels: Number,
        stride: int,
        ndim: int,
        activation: str | None,
        kernel: Number,
        expand: Number,
        se: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel, self.expand, self.ndim = kernel, expand, ndim
        same = in_channels is out_channels or (
            isinstance(in_channels, int) and in_channels == out_channels
        )
        self.residual = stride == 1 and same
        inputs, outputs = options_of(in_channels)[-1], options_of(out_channels)[-1]
        hidden = inputs * options_of(expand)[-1]
        self.expansion = CONV[ndim](inputs, hidden, 1, bias=False)
        self.expansion_norm = NORM[ndim](hidden)
        self.depthwise = ElasticDepthwise(hidden, kernel, stride, ndim)
        self.depthwise_norm = NORM[ndim](hidden)
        self.se = SqueezeExcitation(hidden, divisible(hidden // 4), ndim, True) if se else None
        self.projection = CONV[ndim](hidden, outputs, 1, bias=False)
        self.projection_norm = NORM[ndim](outputs)
        self.activation = act(activation, "relu6")

    def forward(self, x: Tensor) -> Tensor:
        theta, sizes = self._hidden()
        hidden, there = prefix(theta, sizes)
        outputs, kept = prefix(theta_of(self.out_channels, x), options_of(self.out_channels))
        y = self._conv(x, self.expansion.weight[:hidden, : x.shape[1]])
        y = self.activation(sliced_norm(self.expansion_norm, y))
        y = self.activation(sliced_norm(self.depthwise_norm, self.depthwise(y)))
        if self.se is not None:
            y = self._excited(self.se, y, theta, sizes, there)
        # Scaled weights give what scaled activations would, without a copy of those.
        y = self._conv(y, weighted(self.projection.weight[:outputs, :hidden], there, 1))
        y = sliced_norm(self.projection_norm, y, kept)
        return y + x if self.residual else y

    def _hidden(self) -> tuple[Tensor, list[int]]:
        """Theta of each expansion of each width the input may have, and the channels it makes."""
        like = self.expansion.weight
        width, expand = theta_of(self.in_channels, like), theta_of(self.expand, like)
        sizes = [w * e for w in options_of(self.in_channels) for e in options_of(self.expand)]
        return torch.outer(width, expand).flatten(), sizes

    def _excited(
        self,
        se: SqueezeExcitation,
        x: Tensor,
        theta: Tensor,
        sizes: Sequence[int],
        there: Tensor | None,
    ) -> Tensor:
        hidden = x.shape[1]
        squeezed, kept = prefix(theta, [divisible(size // 4) for size in sizes])
        reduce, expand = se.reduce, se.expand
        assert reduce.bias is not None
        assert expand.bias is not None
        weight = weighted(reduce.weight[:squeezed, :hidden], there, 1)
        y = self._conv(x.mean(se.dims, keepdim=True), weight, reduce.bias[:squeezed])
        weight = weighted(expand.weight[:hidden, :squeezed], kept, 1)
        return se.gated(x, self._conv(y.relu(), weight, expand.bias[:hidden]))

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = CONVOLVE[self.ndim](x, weight, bias)
        return y

    def decides(self) -> tuple[Decision, ...]:
        return decided(self.in_channels, self.out_channels, self.kernel, self.expand)

    def reads(self, options: Mapping[Decision, Option]) -> int | None:
        return taken(self.in_channels, options)

    def variant(self, options: Mapping[Decision, Option]) -> Residual:
        """The plain block, with copies of the weights it uses."""
        inputs, outputs = (taken(n, options) for n in (self.in_channels, self.out_channels))
        hidden = inputs * taken(self.expand, options)
        layers: list[nn.Module] = [
            plain_conv(self.expansion, self.expansion.weight[:hidden, :inputs]),
            plain_norm(self.expansion_norm, hidden),
            self.activation,
            self.depthwise.plain(taken(self.kernel, options), hidden),
            plain_norm(self.depthwise_norm, hidden),
            self.activation,
        ]
        if self.se is not None:
            layers.append(_plain_excitation(self.se, hidden))
        layers += [
            plain_conv(self.projection, self.projection.weight[:outputs, :hidden]),
            plain_norm(self.projection_norm, outputs),
        ]
        return Residual(Stack(*layers), self.residual).train(self.training)

    @torch.no_grad()
    def sort_hidden(self) -> None:
        """Put the expanded channels in order of importance, the function of all staying the same.

        Importance is ``sum |w|`` over the weights of the next pointwise convolution that read the
        channel; that of squeezed channels likewise.
        """
        order = importance(self.projection).argsort(descending=True, stable=True)
        for module in (self.expansion, self.expansion_norm, self.depthwise.conv):
            permute(module, order)
        permute(self.depthwise_norm, order)
        permute_inputs(self.projection, order)
        if self.se is not None:
            permute_inputs(self.se.reduce, order)
            permute(self.se.expand, order)
            order = importance(self.se.expand).argsort(descending=True, stable=True)
            permute(self.se.reduce, order)
            permute_inputs(self.se.expand, order)

    def importance(self) -> Tensor:
        """``sum |w|`` of what reads each input channel."""
        return importance(self.expansion)

    def permute_inputs(self, order: Tensor) -> None:
        permute_inputs(self.expansion, order)

    def permute_outputs(self, order: Tensor) -> None:
        permute(self.projection, order)
        permute(self.projection_norm, order)


def _plain_excitation(se: SqueezeExcitation, hidden: int) -> SqueezeExcitation:
    squeezed = divisible(hidden // 4)
    with torch.device("meta"):  # nothing is drawn for values that are not kept
        made = SqueezeExcitation(1, 1, len(se.dims), se.hard)
    for name, shape in (("reduce", (squeezed, hidden)), ("expand", (hidden, squeezed))):
        conv = getattr(se, name)
        weight, bias = conv.weight[: shape[0], : shape[1]], conv.bias[: shape[0]]
        setattr(made, name, plain_conv(conv, weight, bias))
    return made


def importance(conv: Convolution) -> Tensor:
    """``sum |w|`` over the weights that read each input channel: ``(C_in,)``."""
    return conv.weight.detach().abs().transpose(0, 1).flatten(1).sum(1)


@torch.no_grad()
def permute(module: Convolution | _BatchNorm, order: Tensor) -> None:
    """Reorder the output channels of a convolution, or the channels of a norm, in place."""
    for _, tensor in tensors_of(module):
        if tensor.ndim:
            tensor.copy_(tensor[order])


@torch.no_grad()
def permute_inputs(conv: Convolution, order: Tensor) -> None:
    """Reorder the input channels of a convolution in place."""
    conv.weight.copy_(conv.weight[:, order])
