"""What candidate operations are made of, over images (``ndim=2``) or sequences (``ndim=1``).

Padding is "same": a layer of stride s maps a side of n to ``ceil(n / s)``, so that all candidates
of one layer agree in shape. Convolutions before a BatchNorm have no bias.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.ops.convolution import Conv2d

CONV: dict[int, type[nn.Conv1d] | type[nn.Conv2d]] = {1: nn.Conv1d, 2: Conv2d}
NORM: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
}

Channels = TypeVar("Channels")


@dataclass(frozen=True)
class Site(Generic[Channels]):
    """Where an op stands in a network. `Channels` is int, or a number that is searched.

    Args:
        ndim: 2 for images ``(N, C, H, W)``, 1 for sequences ``(N, C, L)``.
        activation: instead of the op's own; one of `ACTIVATIONS`.
        affine: whether BatchNorms scale and shift.
        projects: whether a shortcut needs weights though the shapes agree, as the channels of input
            and output are two decisions.
    """

    in_channels: Channels
    out_channels: Channels
    stride: int = 1
    ndim: int = 2
    activation: str | None = None
    affine: bool = True
    projects: bool = False

    def __str__(self) -> str:
        return f"{self.in_channels} -> {self.out_channels} channels, stride {self.stride}"

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> nn.Module:
        """Convolution without bias."""
        pad = dilation * (kernel // 2)
        make = CONV[self.ndim]
        return make(inputs, outputs, kernel, stride, pad, dilation, groups, bias=False)

    def conv_norm(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        """Convolution without bias, and its BatchNorm."""
        return [self.conv(inputs, outputs, kernel, stride, groups), self.norm(outputs)]

    def norm(self, channels: int) -> nn.Module:
        """A BatchNorm."""
        return NORM[self.ndim](channels, affine=self.affine)

    def act(self, default: str = "relu") -> nn.Module:
        """The activation of the site, `default` where it has none; see `act`."""
        return act(self.activation or default)

    def first_act(self) -> nn.Module:
        """The activation that an op begins with: not in place, as others read the same input."""
        return ACTIVATIONS[self.activation or "relu"]()


def act(name: str) -> nn.Module:
    """An activation by name, to follow a BatchNorm: it works in place where autograd allows it."""
    made = ACTIVATIONS[name]()
    if isinstance(made, nn.ReLU | nn.ReLU6):  # BatchNorm keeps only its own input
        made.inplace = True
    return made


def sliced_norm(norm: _BatchNorm, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """The first channels of `norm`, as many as x has, times `scale` ``()`` or ``(C,)``.

    It costs what ``norm(x)`` does: the scale goes into weight and bias. Statistics are used and
    updated as in any forward pass.
    """
    parts: dict[str, Tensor] = {}
    if x.shape[1] < norm.num_features:
        parts = {name: tensor[: x.shape[1]] for name, tensor in tensors_of(norm) if tensor.ndim}
    if scale is not None:
        scale = scale.to(norm.weight) if scale.ndim else scale
        parts |= {n: parts.get(n, getattr(norm, n)) * scale for n in ("weight", "bias")}
    # Attributes of the instance hide its parameters of the same name while it runs. The effect is
    # that of `torch.func.functional_call`, at a fraction of its 100 us.
    vars(norm).update(parts)
    try:
        y: Tensor = norm(x)
    finally:
        for name in parts:
            del vars(norm)[name]
    return y


def tensors_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    """A module's own parameters and buffers, by name."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


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
        y = sliced_norm(norm, self._run(x, last), scale)
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


class Residual(nn.Module):
    """A branch of layers; where `residual`, the input is added to its output.

    `mask` ``(C_out,)`` multiplies the channels that the block makes, and not the input that is
    added, which has been multiplied where it was made.
    """

    def __init__(self, branch: Stack, residual: bool) -> None:
        super().__init__()
        self.branch, self.residual = branch, residual

    def forward(self, x: Tensor, scale: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        y: Tensor = self.branch(x, scale if mask is None else mask)
        if not self.residual:
            return y
        return y + x if scale is None else y + scale * x

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """As `Stack.scaled`."""
        y: Tensor = self(x, scale)
        return y


class ResidualBlock(Residual):
    """``relu(branch(x) + shortcut(x))`` (He et al. 2016, Figure 2).

    The shortcut is the input where it may be added, else a pointwise convolution of the stride.
    """

    def __init__(self, site: Site[int], branch: Stack) -> None:
        super().__init__(branch, True)
        kept = site.keeps_shape and not site.projects
        inputs, outputs = site.in_channels, site.out_channels
        self.shortcut = nn.Identity() if kept else site.conv(inputs, outputs, 1, site.stride)
        self.activation = site.act()

    def forward(self, x: Tensor, scale: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        added: Tensor = self.shortcut(x)
        if mask is not None and added is not x:
            added = added * mask.to(x).view(-1, *[1] * (x.ndim - 2))
        y: Tensor = self.activation(self.branch(x, mask) + added)
        return y if scale is None else scale * y


class Recurrent(nn.Module):
    """A recurrent layer over the positions of a sequence, and its output at each of them.

    Shape: ``(N, C_in, L) -> (N, C_out, L)``.
    """

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], site: Site[int]) -> None:
        super().__init__()
        self.layer = kind(site.in_channels, site.out_channels, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.transpose(1, 2))[0].transpose(1, 2)
        return y


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


class InOrder(nn.Module):
    """Runs its parts one after the other, as `nn.Sequential`; a subclass says which these are.

    What looks at the parts one by one, as `nas.search.prefix_tree`, may do so.
    """

    def in_order(self) -> Sequence[nn.Module]:
        """The parts, in the order in which they run."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        for part in self.in_order():
            x = part(x)
        return x


class ChannelShuffle(nn.Module):
    """Channel c of group g becomes channel g of group c (ShuffleNet, Zhang et al., 2018)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        # nn.ChannelShuffle is an operator that not all exporters know; they know these three.
        split = x.reshape(x.shape[0], self.groups, x.shape[1] // self.groups, *x.shape[2:])
        return split.transpose(1, 2).flatten(1, 2)


class GlobalPool(nn.Module):
    """Mean over all positions, or the last position if `last`: ``(N, C, *S) -> (N, C)``."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2)[..., -1] if self.last else x.flatten(2).mean(-1)


class Zero(nn.Module):
    """No path: zeros of the shape that any other op of this stride and width gives.

    Without `out_channels`, as many as the input has.
    """

    def __init__(self, out_channels: int | None, stride: int) -> None:
        super().__init__()
        self.out_channels, self.stride = out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        # Not 0 * x, which would pass on a NaN or an infinity.
        sides = [(side - 1) // self.stride + 1 for side in x.shape[2:]]
        return x.new_zeros(x.shape[0], self.out_channels or x.shape[1], *sides)


class MBConv(Residual):
    """Inverted bottleneck of MobileNetV2 (Sandler et al., 2018, Table 1), ReLU6 by default.

    Pointwise expansion (none at ``expand=1``), depthwise convolution, squeeze-and-excitation if
    `se`, linear pointwise projection; a residual where stride is 1 and the channels are equal.
    """

    def __init__(self, site: Site[int], kernel: int, expand: int, se: bool = False) -> None:
        hidden = site.in_channels * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [*site.conv_norm(site.in_channels, hidden, 1), site.act("relu6")]
        layers += site.conv_norm(hidden, hidden, kernel, site.stride, groups=hidden)
        layers += [site.act("relu6")]
        if se:
            layers += [SqueezeExcitation(hidden, max(1, site.in_channels // 4), site.ndim)]
        layers += site.conv_norm(hidden, site.out_channels, 1)
        super().__init__(Stack(*layers), site.keeps_shape)


class ShuffleBlock(nn.Module):
    """ShuffleNetV2 (Ma et al. 2018) as in SPOS (Guo et al. 2020, Appendix): branch and bypass.

    At stride 1 with equal channels, every other channel goes through the branch and the rest are
    kept: split and shuffle in one. Otherwise both paths see all channels: the branch makes
    ``out - in`` of them, a depthwise and a pointwise convolution the other ``in``.

    The branch is pointwise, depthwise, pointwise; or, as `xception`, three pairs of depthwise
    kernel 3 and pointwise. Its middle channels are half of the output's.
    """

    def __init__(self, site: Site[int], kernel: int = 3, xception: bool = False) -> None:
        super().__init__()
        self.splits, stride = site.keeps_shape, site.stride
        kept = site.in_channels // 2 if self.splits else site.in_channels
        made, middle = site.out_channels - kept, site.out_channels // 2

        def depthwise(channels: int, stride: int) -> list[nn.Module]:
            return site.conv_norm(channels, channels, kernel, stride, groups=channels)

        def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
            return [*site.conv_norm(inputs, outputs, 1), site.act()]

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
