"""Names of candidate operations, and the functions that build them.

To add an op, write one function and one entry of `OPS`. The entry's key is the form of the op's
name; ``{kernel}`` in it is a number of the name and a keyword argument of the function. Numbers may
have any names:

.. code-block:: python

    def dilated_conv(site: Site[int], kernel: int, dilation: int) -> Stack:
        # dilated convolution, BatchNorm, activation
        inputs, outputs = site.in_channels, site.out_channels
        conv = site.conv(inputs, outputs, kernel, site.stride, dilation=dilation)
        return Stack(conv, site.norm(outputs), site.act())

    OPS["conv_k{kernel}_d{dilation}"] = Op(dilated_conv, usual={"dilation": (2, 4)})

A space may then name ``conv_k3_d2``. Where an op cannot stand everywhere, its entry has an
`exclusion_reason`. The tests of the catalogue and the contract suite of ops take every entry.

The ops of DARTS and NAS-Bench-201 are here too, under names of their own: `rconv_k3` (ReLU first),
`dil_k3` (dilated), `sep2_k3` (separable, twice), `avgpool_k3_norm`, `maxpool_k3_norm`, `skip`
(identity, or a factorized reduction at stride 2). The ops whose numbers are searched, `elastic_*`,
are in `nas.supernet.elastic_ops`, where `build_op` builds an op of any name.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from itertools import product

from torch import nn

from nas.errors import UserError
from nas.ops.blocks import (
    ACTIVATIONS,
    CONV,
    NORM,
    ChannelShuffle,
    FactorizedReduce,
    MBConv,
    Recurrent,
    ResidualBlock,
    ShuffleBlock,
    Site,
    SqueezeExcitation,
    Stack,
    Zero,
)


def conv(site: Site[int], kernel: int, se: bool = False) -> Stack:
    """Convolution, BatchNorm, ReLU; squeeze-and-excitation to a quarter of the input if `se`."""
    layers = site.conv_norm(site.in_channels, site.out_channels, kernel, site.stride)
    layers.append(site.act())
    if se:
        squeezed = max(1, site.in_channels // 4)
        layers.append(SqueezeExcitation(site.out_channels, squeezed, site.ndim))
    return Stack(*layers)


def separable(site: Site[int], kernel: int) -> Stack:
    """Depthwise convolution, BatchNorm, ReLU, pointwise convolution, BatchNorm, ReLU."""
    inputs = site.in_channels
    depthwise = site.conv_norm(inputs, inputs, kernel, site.stride, groups=inputs)
    pointwise = site.conv_norm(inputs, site.out_channels, 1)
    return Stack(*depthwise, site.act(), *pointwise, site.act())


def grouped(site: Site[int], kernel: int, groups: int) -> Stack:
    """Channel shuffle, grouped convolution, BatchNorm, ReLU.

    The shuffle comes first, so that each group sees channels of every group of a layer before it.
    """
    layers = site.conv_norm(site.in_channels, site.out_channels, kernel, site.stride, groups)
    return Stack(ChannelShuffle(groups), *layers, site.act())


def spatially_separable(site: Site[int], kernel: int) -> Stack:
    """(k, 1) convolution, BatchNorm, ReLU, (1, k) convolution, BatchNorm, ReLU; images only."""
    pad, stride, outputs = kernel // 2, site.stride, site.out_channels
    return Stack(
        nn.Conv2d(site.in_channels, outputs, (kernel, 1), (stride, 1), (pad, 0), bias=False),
        site.norm(outputs),
        site.act(),
        nn.Conv2d(outputs, outputs, (1, kernel), (1, stride), (0, pad), bias=False),
        site.norm(outputs),
        site.act(),
    )


def residual(site: Site[int], kernel: int) -> ResidualBlock:
    """Basic block of ResNet: two convolutions with BatchNorms, beside a shortcut."""
    inputs, outputs = site.in_channels, site.out_channels
    first = site.conv_norm(inputs, outputs, kernel, site.stride)
    branch = Stack(*first, site.act(), *site.conv_norm(outputs, outputs, kernel))
    return ResidualBlock(site, branch)


def temporal(site: Site[int], kernel: int, dilation: int) -> ResidualBlock:
    """Block of a TCN (Bai et al. 2018, Figure 1b): two causal convolutions, beside a shortcut.

    An output sees no input behind it: the padding is in front. BatchNorm in place of the paper's
    weight normalisation, and no dropout: it folds into the convolution on a device.
    """
    layers: list[nn.Module] = []
    channels, stride = site.in_channels, site.stride
    for _ in range(2):
        layers += [
            nn.ConstantPad1d(((kernel - 1) * dilation, 0), 0.0),
            nn.Conv1d(channels, site.out_channels, kernel, stride, dilation=dilation, bias=False),
            site.norm(site.out_channels),
            site.act(),
        ]
        channels, stride = site.out_channels, 1
    return ResidualBlock(site, Stack(*layers))


def average_pool(site: Site[int], kernel: int) -> nn.Module:
    """Mean over the window, without its padding."""
    pool = nn.AvgPool1d if site.ndim == 1 else nn.AvgPool2d
    return pool(kernel, site.stride, kernel // 2, count_include_pad=False)


def max_pool(site: Site[int], kernel: int) -> nn.Module:
    """Maximum over the window; padding never wins."""
    pool = nn.MaxPool1d if site.ndim == 1 else nn.MaxPool2d
    return pool(kernel, site.stride, kernel // 2)


# The ops of DARTS and NAS-Bench-201 begin with the activation and end in BatchNorm, so that what a
# node sums is not rectified.


def relu_conv(site: Site[int], kernel: int) -> Stack:
    """ReLU, convolution, BatchNorm."""
    return Stack(
        site.first_act(),
        *site.conv_norm(site.in_channels, site.out_channels, kernel, site.stride),
    )


def dilated(site: Site[int], kernel: int, dilation: int = 2) -> Stack:
    """ReLU, depthwise convolution of this dilation, pointwise convolution, BatchNorm."""
    inputs = site.in_channels
    depthwise = site.conv(inputs, inputs, kernel, site.stride, inputs, dilation)
    return Stack(site.first_act(), depthwise, *site.conv_norm(inputs, site.out_channels, 1))


def separable_twice(site: Site[int], kernel: int) -> Stack:
    """ReLU, depthwise, pointwise, BatchNorm, twice; stride in the first, channels in the second."""
    inputs = site.in_channels
    first, second = replace(site, out_channels=inputs), replace(site, stride=1)
    return Stack(*dilated(first, kernel, 1), *dilated(second, kernel, 1))


def skip(site: Site[int]) -> nn.Module:
    """Identity, or `FactorizedReduce` where the size must halve."""
    if site.stride == 1:
        return nn.Identity()
    return FactorizedReduce(site.in_channels, site.out_channels, site.affine)


def pool_norm(pool: Callable[[Site[int], int], nn.Module], site: Site[int], kernel: int) -> Stack:
    """Pooling and a BatchNorm without parameters: pooled values may be of any scale."""
    return Stack(pool(site, kernel), NORM[site.ndim](site.out_channels, affine=False))


def _same_shape(site: Site[int], **numbers: int) -> str | None:
    return None if site.keeps_shape else "it needs stride 1 and as many output as input channels"


def _same_channels(site: Site[int], **numbers: int) -> str | None:
    fits = site.in_channels == site.out_channels
    return None if fits else "it needs as many output as input channels"


def _skippable(site: Site[int], **numbers: int) -> str | None:
    fits = site.keeps_shape or (site.stride == 2 and site.ndim == 2)
    return None if fits else "it needs stride 2 and images, or the same shape"


def _divisible(site: Site[int], groups: int, **numbers: int) -> str | None:
    fits = site.in_channels % groups == 0 and site.out_channels % groups == 0
    return None if fits else f"it needs input and output channels divisible by {groups}"


def _growing(site: Site[int], **numbers: int) -> str | None:
    if site.keeps_shape:
        return None if site.in_channels % 2 == 0 else "it needs an even number of channels"
    fits = site.out_channels > site.in_channels
    return None if fits else "it needs more output than input channels, or the same at stride 1"


def _images(site: Site[int], **numbers: int) -> str | None:
    return None if site.ndim == 2 else "it needs images, not sequences"


def _sequences(site: Site[int], **numbers: int) -> str | None:
    return None if site.ndim == 1 else "it needs sequences, not images"


def _each_position(site: Site[int], **numbers: int) -> str | None:
    return _sequences(site) or (None if site.stride == 1 else "it needs stride 1")


@dataclass(frozen=True)
class Op:
    """One entry of the catalogue: what builds the op, and where it cannot stand.

    Args:
        build: ``(site, **numbers)`` -> module.
        exclusion_reason: ``(site, **numbers)`` -> why the op cannot stand there; None: it can.
        usual: number in the form -> values for `known_names`, instead of those in `USUAL`.
        nested: whether the op of fewer channels is the first channels of that of more, so that its
            channels may be searched.
    """

    build: Callable[..., nn.Module]
    exclusion_reason: Callable[..., str | None] = field(default=lambda site, **numbers: None)
    usual: Mapping[str, Sequence[int]] = field(default_factory=dict)
    nested: bool = True


Ops = Mapping[str, Op]  # form of a name -> op
OPS: dict[str, Op] = {
    "conv_k{kernel}": Op(conv),
    "sep_k{kernel}": Op(separable),
    "mb_k{kernel}_e{expand}": Op(MBConv),
    "mb_k{kernel}_e{expand}_se": Op(partial(MBConv, se=True)),
    "conv_k{kernel}_se": Op(partial(conv, se=True)),
    "grp_k{kernel}_g{groups}": Op(grouped, _divisible, nested=False),
    "ssep_k{kernel}": Op(spatially_separable, _images),
    "avgpool_k{kernel}": Op(average_pool, _same_channels),
    "maxpool_k{kernel}": Op(max_pool, _same_channels),
    "shuffle_k{kernel}": Op(ShuffleBlock, _growing, nested=False),
    "shuffle_x": Op(partial(ShuffleBlock, xception=True), _growing, nested=False),
    "res_k{kernel}": Op(residual),
    "tcn_k{kernel}_d{dilation}": Op(temporal, _sequences),
    "lstm": Op(partial(Recurrent, nn.LSTM), _each_position, nested=False),
    "gru": Op(partial(Recurrent, nn.GRU), _each_position, nested=False),
    "rconv_k{kernel}": Op(relu_conv),
    "dil_k{kernel}": Op(dilated),
    "sep2_k{kernel}": Op(separable_twice),
    "avgpool_k{kernel}_norm": Op(partial(pool_norm, average_pool), _same_channels),
    "maxpool_k{kernel}_norm": Op(partial(pool_norm, max_pool), _same_channels),
    "skip": Op(skip, _skippable, nested=False),
    "identity": Op(lambda site: nn.Identity(), _same_shape),
    "zero": Op(lambda site: Zero(site.out_channels, site.stride)),
}
# Numbers of the listed names; any other number works too, a kernel if it is odd.
USUAL = {"kernel": (3, 5, 7), "expand": (1, 3, 6), "groups": (2, 4)}
UNUSUAL = (1, 2)  # of a number that neither `USUAL` nor its op says anything about


def known_names(ops: Ops = OPS) -> list[str]:
    """The names that every form makes with its usual numbers."""
    names = []
    for form, op in ops.items():
        fields = list(dict.fromkeys(re.findall(r"{(\w+)}", form)))
        values = [op.usual.get(name, USUAL.get(name, UNUSUAL)) for name in fields]
        for numbers in product(*values):
            names.append(form.format(**dict(zip(fields, numbers, strict=True))))
    return names


def parse(name: str, ops: Ops = OPS) -> tuple[Op, dict[str, int]]:
    """The op that `name` means and the numbers in it.

    Raises:
        UserError: no such name, or an even kernel.
    """
    for form, op in ops.items():
        if match := re.fullmatch(_pattern(form), str(name)):
            numbers = {key: int(text) for key, text in match.groupdict().items()}
            if numbers.get("kernel", 1) % 2 == 0:
                raise UserError(f"op {name!r}: the kernel must be odd, got {numbers['kernel']}")
            return op, numbers
    close = get_close_matches(str(name), known_names(ops), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    forms = ", ".join(ops).replace("{", "<").replace("}", ">")
    raise UserError(f"no candidate op {name!r}{hint} Known: {forms}, e.g. conv_k3, mb_k5_e6_se")


def _pattern(form: str) -> str:
    """A regular expression of a form; a number that stands twice in it is the same."""
    pattern, seen = "", set()
    for text, key in re.findall(r"([^{]*)(?:{(\w+)}|$)", form):
        pattern += re.escape(text)
        if key:
            pattern += f"(?P={key})" if key in seen else f"(?P<{key}>[1-9][0-9]*)"
            seen.add(key)
    return pattern


def exclusion_reason(name: str, site: Site[int], ops: Ops = OPS) -> str | None:
    """Why the op of that name cannot stand at `site`, in words; None: it can.

    Raises:
        UserError: as `parse`.
    """
    op, numbers = parse(name, ops)
    reason = op.exclusion_reason(site, **numbers)
    return None if reason is None else f"op {name!r} does not fit {site}: {reason}"


def check(name: str, site: Site[int]) -> None:
    """Check the values of a site that an op of this name is to be built for.

    Raises:
        UserError: numbers below 1, another `ndim`, or an unknown activation.
    """
    channels = min(site.in_channels, site.out_channels)
    for what, value in (("channels", channels), ("stride", site.stride)):
        if value < 1:
            raise UserError(f"op {name!r}: {what} must be at least 1, got {value}")
    if site.ndim not in CONV:
        raise UserError(f"op {name!r}: ndim must be 1 (sequences) or 2 (images), got {site.ndim}")
    if site.activation is not None and site.activation not in ACTIVATIONS:
        raise UserError(f"no activation {site.activation!r}, only {', '.join(ACTIVATIONS)}")
