"""`ElasticConv`: convolution, BatchNorm and activation between searched numbers of channels."""

from collections.abc import Mapping

from torch import Tensor

from nas.arch import Option
from nas.decision import Decision, Varying
from nas.ops.blocks import CONV, NORM, Stack, act
from nas.ops.elastic import (
    CONVOLVE,
    Number,
    decided,
    options_of,
    plain_conv,
    plain_norm,
    prefix,
    sliced_norm,
    taken,
    theta_of,
)
from nas.ops.elastic_mbconv import importance, permute, permute_inputs


class ElasticConv(Varying):
    """As `nas.ops.blocks.conv`, of the first channels; see `nas.ops.elastic`.

    Args:
        in_channels, out_channels: each a number, or an `Elastic` one.
    """

    def __init__(
        self,
        in_channels: Number,
        out_channels: Number,
        stride: int,
        ndim: int,
        activation: str | None,
        kernel: int,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.ndim = in_channels, out_channels, ndim
        inputs, outputs = options_of(in_channels)[-1], options_of(out_channels)[-1]
        self.conv = CONV[ndim](inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm, self.activation = NORM[ndim](outputs), act(activation)

    def forward(self, x: Tensor) -> Tensor:
        outputs, kept = prefix(theta_of(self.out_channels, x), options_of(self.out_channels))
        weight = self.conv.weight[:outputs, : x.shape[1]]
        y = CONVOLVE[self.ndim](x, weight, None, self.conv.stride, self.conv.padding)
        # Activations that a space offers are 0 at 0, so that a channel that is not there stays so.
        out: Tensor = self.activation(sliced_norm(self.norm, y, kept))
        return out

    def decides(self) -> tuple[Decision, ...]:
        return decided(self.in_channels, self.out_channels)

    def reads(self, options: Mapping[Decision, Option]) -> int | None:
        return taken(self.in_channels, options)

    def variant(self, options: Mapping[Decision, Option]) -> Stack:
        """The plain layers, with copies of the weights they use."""
        inputs, outputs = (taken(n, options) for n in (self.in_channels, self.out_channels))
        conv = plain_conv(self.conv, self.conv.weight[:outputs, :inputs])
        norm = plain_norm(self.norm, outputs)
        return Stack(conv, norm, self.activation).train(self.training)

    def importance(self) -> Tensor:
        """``sum |w|`` of what reads each input channel."""
        return importance(self.conv)

    def permute_inputs(self, order: Tensor) -> None:
        permute_inputs(self.conv, order)

    def permute_outputs(self, order: Tensor) -> None:
        permute(self.conv, order)
        permute(self.norm, order)
