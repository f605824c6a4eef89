"""The ops whose numbers are searched, by the names that a space gives them."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.errors import UserError
from nas.ops import catalogue
from nas.ops.blocks import (
    CONV,
    NORM,
    Residual,
    Site,
    SqueezeExcitation,
    Stack,
    Zero,
    sliced_norm,
)
from nas.supernet.elastic import (
    Elastic,
    ElasticChannels,
    ElasticWidth,
    Number,
    decided,
    elastic,
    options_of,
    prefix,
    taken,
    theta_of,
    weighted,
)
from nas.supernet.elastic_layers import (
    CONVOLVE,
    Convolution,
    ElasticConv,
    ElasticDepthwise,
    importance,
    permute,
    permute_inputs,
    plain_conv,
    plain_norm,
)


def divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels` and not below 0.9 times it (MobileNetV3)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class ElasticMBConv(ElasticChannels):
    """MBConv of MobileNetV3 that runs a slice of its weights (Cai et al. 2020, Once-for-All).

    Expansion, BatchNorm, activation, depthwise convolution, BatchNorm, activation,
    squeeze-and-excitation if `se` (to a quarter of the expanded channels, as a multiple of 8; hard
    sigmoid), projection, BatchNorm; a residual where stride is 1 and the channels are equal. The
    channels used are the first ones, which `sort_channels` makes the most important ones.

    Args:
        site: its input has as many channels as its `in_channels` takes.
        kernel, expand: each a number, or an `Elastic` one.

    Shape: ``(N, C_in, *S) -> (N, C_out, *S / stride)``.
    """

    def __init__(
        self, site: Site[Number], kernel: Number, expand: Number, se: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = site.in_channels, site.out_channels
        self.kernel, self.expand, self.ndim = kernel, expand, site.ndim
        self.residual = site.keeps_shape
        inputs, outputs = options_of(site.in_channels)[-1], options_of(site.out_channels)[-1]
        hidden, norm = inputs * options_of(expand)[-1], NORM[site.ndim]
        self.expansion = CONV[site.ndim](inputs, hidden, 1, bias=False)
        self.expansion_norm = norm(hidden)
        self.depthwise = ElasticDepthwise(hidden, kernel, site.stride, site.ndim)
        self.depthwise_norm = norm(hidden)
        squeezed = divisible(hidden // 4)
        self.se = SqueezeExcitation(hidden, squeezed, site.ndim, True) if se else None
        self.projection = CONV[site.ndim](hidden, outputs, 1, bias=False)
        self.projection_norm = norm(outputs)
        self.activation = site.act("relu6")

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

    def decisions(self) -> tuple[Decision, ...]:
        return decided(self.in_channels, self.out_channels, self.kernel, self.expand)

    def materialize(self, options: Mapping[Decision, Option]) -> Residual:
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
        """Put expanded and squeezed channels in order of importance; the output stays the same.

        Importance is ``sum |w|`` over the weights of the next pointwise convolution that read the
        channel.
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

    @property
    def first(self) -> Convolution:
        """The convolution that reads the input."""
        return self.expansion

    @property
    def last(self) -> tuple[nn.Module, ...]:
        """The layers of as many channels as the output has."""
        return self.projection, self.projection_norm


def _plain_excitation(se: SqueezeExcitation, hidden: int) -> SqueezeExcitation:
    squeezed = divisible(hidden // 4)
    with torch.device("meta"):  # nothing is drawn for values that are not kept
        made = SqueezeExcitation(1, 1, len(se.dims), se.hard)
    for name, shape in (("reduce", (squeezed, hidden)), ("expand", (hidden, squeezed))):
        conv = getattr(se, name)
        weight, bias = conv.weight[: shape[0], : shape[1]], conv.bias[: shape[0]]
        setattr(made, name, plain_conv(conv, weight, bias))
    return made


@torch.no_grad()
def sort_channels(model: nn.Module) -> None:
    """Reorder all elastic channels of `model` by falling importance, in place.

    Importance is ``sum |w|`` over the weights of the next pointwise convolutions that read the
    channel (Cai et al. 2020, Section 3.3). The network of all channels computes what it did before.
    """
    layers = [m for m in model.modules() if isinstance(m, ElasticConv | ElasticMBConv)]
    for layer in layers:
        if isinstance(layer, ElasticMBConv):
            layer.sort_hidden()
    for width in dict.fromkeys(layer.in_channels for layer in layers):
        if isinstance(width, Elastic):
            readers = [layer.first for layer in layers if layer.in_channels is width]
            total = torch.stack([importance(reader) for reader in readers]).sum(0)
            order = total.argsort(descending=True, stable=True)
            # All layers that write or read these channels are permuted alike: residuals add them.
            for writer in [layer for layer in layers if layer.out_channels is width]:
                for module in writer.last:
                    permute(module, order)
            for reader in readers:
                permute_inputs(reader, order)


def _mbconv(site: Site[Number], kernel: int, expand: int, se: bool = False) -> ElasticMBConv:
    """Searched kernels 3, 5, ... `kernel`, and expansions 3, 4, 6 below `expand`, then `expand`."""
    kernels = [*range(3, kernel, 2), kernel]
    expansions = [*(e for e in (3, 4, 6) if e < expand), expand]
    return ElasticMBConv(site, elastic(kernels), elastic(expansions), se)


_USUAL = {"kernel": (5, 7), "expand": (6,)}
ELASTIC_OPS = {
    "elastic_k{kernel}_e{expand}": catalogue.Op(_mbconv, usual=_USUAL),
    "elastic_k{kernel}_e{expand}_se": catalogue.Op(partial(_mbconv, se=True), usual=_USUAL),
}
# Every op that a space may name: a view of both tables.
ALL_OPS: catalogue.Ops = ChainMap(ELASTIC_OPS, catalogue.OPS)


def op_exclusion_reason(
    name: str, in_channels: Number, out_channels: Number, stride: int = 1, ndim: int = 2
) -> str | None:
    """As `catalogue.exclusion_reason`, for all ops and for searched numbers of channels."""
    site = _largest(Site(in_channels, out_channels, stride, ndim))
    reason = catalogue.exclusion_reason(name, site, ALL_OPS)
    if reason or not decided(in_channels, out_channels):
        return reason
    op, numbers = catalogue.parse(name, ALL_OPS)
    # Those of two decisions may differ, though the largest agree.
    other = replace(site, out_channels=site.out_channels + 1)
    if not op.nested:
        reason = "its channels cannot be searched"
    elif in_channels is not out_channels and op.exclusion_reason(other, **numbers):
        reason = "it needs the same decision for its input and output channels"
    return None if reason is None else f"op {name!r} does not fit {site}: {reason}"


def build_op(
    name: str,
    in_channels: Number,
    out_channels: Number,
    stride: int = 1,
    ndim: int = 2,
    activation: str | None = None,
    affine: bool = True,
    bare: bool = False,
) -> nn.Module:
    """Build the op of that name; the other arguments are those of `Site`.

    `affine` is not for elastic ops, whose norms always scale and shift. Where `bare`, an op that
    adds its input to what it makes does not.

    Raises:
        UserError: unknown name or activation, an even kernel, numbers below 1, or an op that
            cannot change the channels or the size as asked.

    Example:
        >>> import nas, torch
        >>> op = nas.build_op("mb_k5_e6_se", 16, 24, stride=2)  # MBConv, kernel 5, expansion 6
        >>> op(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 24, 4, 4])
    """
    site = Site(in_channels, out_channels, stride, ndim, activation, affine)
    catalogue.check(name, _largest(site))
    if reason := op_exclusion_reason(name, in_channels, out_channels, stride, ndim):
        raise UserError(reason)
    plain = catalogue.parse(name, ALL_OPS)[0] in catalogue.OPS.values()
    if not plain or not decided(in_channels, out_channels):
        return _built(name, site, bare)
    # A name, not the op: other processes can be told it.
    own = replace(_largest(site), projects=in_channels is not out_channels)
    made = ElasticWidth(partial(_sized, name, own, bare), in_channels, out_channels)
    # Pooling and the identity are the same for any number of channels.
    return made if isinstance(made.op, Zero) or made.op.state_dict() else made.op


def _built(name: str, site: Site[Number] | Site[int], bare: bool) -> nn.Module:
    op, numbers = catalogue.parse(name, ALL_OPS)
    made = op.build(site, **numbers)
    return made.branch if bare and isinstance(made, Residual) else made


def _sized(name: str, site: Site[int], bare: bool, inputs: int, outputs: int) -> nn.Module:
    return _built(name, replace(site, in_channels=inputs, out_channels=outputs), bare)


def _largest(site: Site[Number]) -> Site[int]:
    inputs, outputs = options_of(site.in_channels)[-1], options_of(site.out_channels)[-1]
    return Site(inputs, outputs, site.stride, site.ndim, site.activation, site.affine)
