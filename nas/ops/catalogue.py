"""Names of candidate operations, and what each of them builds.

``OPS`` maps a name's form to the factory that builds it; ``{kernel}`` in a form is a number of the
name and a keyword argument of the factory. A new op is one factory and one line here.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import product

from torch import nn

from nas.errors import UserError
from nas.ops import blocks
from nas.ops.elastic import Number, elastic, options_of
from nas.ops.elastic_mbconv import ElasticMBConv
from nas.ops.shuffle import ShuffleBlock


@dataclass(frozen=True)
class Site:
    """Where an op is to stand."""

    in_channels: int
    out_channels: int
    stride: int = 1
    ndim: int = 2

    def __str__(self) -> str:
        return f"{self.in_channels} -> {self.out_channels} channels, stride {self.stride}"


def _anywhere(site: Site, **numbers: int) -> str | None:
    return None


def _same_shape(site: Site, **numbers: int) -> str | None:
    fits = site.stride == 1 and site.in_channels == site.out_channels
    return None if fits else "it needs stride 1 and as many output as input channels"


def _same_channels(site: Site, **numbers: int) -> str | None:
    fits = site.in_channels == site.out_channels
    return None if fits else "it needs as many output as input channels"


def _divisible(site: Site, groups: int, **numbers: int) -> str | None:
    fits = site.in_channels % groups == 0 and site.out_channels % groups == 0
    return None if fits else f"it needs input and output channels divisible by {groups}"


def _growing(site: Site, **numbers: int) -> str | None:
    if site.stride == 1 and site.in_channels == site.out_channels:
        return None if site.in_channels % 2 == 0 else "it needs an even number of channels"
    fits = site.out_channels > site.in_channels
    return None if fits else "it needs more output than input channels, or the same at stride 1"


def _images(site: Site, **numbers: int) -> str | None:
    return None if site.ndim == 2 else "it needs images, not sequences"


@dataclass(frozen=True)
class Op:
    """A factory, and what stands against building it at a site (None: nothing).

    `elastic`: the factory takes searched numbers of channels too.
    """

    factory: Callable[..., nn.Module]
    obstacle: Callable[..., str | None] = field(default=_anywhere)
    elastic: bool = False


def _elastic_mbconv(
    in_channels: Number,
    out_channels: Number,
    stride: int,
    ndim: int,
    activation: str | None,
    largest: int,
    widest: int,
    se: bool = False,
) -> nn.Module:
    """Kernels 3, 5, ... up to `largest`; expansions of 3, 4, 6 up to, and with, `widest`."""
    kernels = [*range(3, largest, 2), largest]
    expansions = [*(e for e in (3, 4, 6) if e < widest), widest]
    numbers = (elastic(kernels), elastic(expansions))
    return ElasticMBConv(in_channels, out_channels, stride, ndim, activation, *numbers, se)


OPS: dict[str, Op] = {
    "conv_k{kernel}": Op(blocks.conv),
    "sep_k{kernel}": Op(blocks.separable),
    "mb_k{kernel}_e{expand}": Op(blocks.MBConv),
    "mb_k{kernel}_e{expand}_se": Op(partial(blocks.MBConv, se=True)),
    "conv_k{kernel}_se": Op(partial(blocks.conv, se=True)),
    "grp_k{kernel}_g{groups}": Op(blocks.grouped, _divisible),
    "ssep_k{kernel}": Op(blocks.spatially_separable, _images),
    "avgpool_k{kernel}": Op(blocks.average_pool, _same_channels),
    "maxpool_k{kernel}": Op(blocks.max_pool, _same_channels),
    "elastic_k{largest}_e{widest}": Op(_elastic_mbconv, elastic=True),
    "elastic_k{largest}_e{widest}_se": Op(partial(_elastic_mbconv, se=True), elastic=True),
    "shuffle_k{kernel}": Op(ShuffleBlock, _growing),
    "shuffle_x": Op(partial(ShuffleBlock, xception=True), _growing),
    "identity": Op(blocks.identity, _same_shape, elastic=True),
    "zero": Op(blocks.zero),
}
# What the listed names are made of; any other number works too, a kernel if it is odd.
USUAL = {
    "kernel": (3, 5, 7),
    "expand": (1, 3, 6),
    "groups": (2, 4),
    "largest": (5, 7),
    "widest": (6,),
}


def known_names() -> list[str]:
    """Every form with the usual numbers in it."""
    return [
        form.format(**dict(zip(_fields(form), numbers, strict=True)))
        for form in OPS
        for numbers in product(*(USUAL[name] for name in _fields(form)))
    ]


def parse(name: str) -> tuple[Op, dict[str, int]]:
    """The op that `name` means and the numbers in it.

    Raises:
        UserError: no such name, or an even kernel.
    """
    for form, op in OPS.items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[1-9][0-9]*)", form), str(name))
        if match:
            numbers = {key: int(text) for key, text in match.groupdict().items()}
            kernel = numbers.get("kernel", numbers.get("largest", 1))
            if kernel % 2 == 0:
                raise UserError(f"op {name!r}: the kernel must be odd, got {kernel}")
            return op, numbers
    close = get_close_matches(str(name), known_names(), n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    forms = ", ".join(OPS).replace("{", "<").replace("}", ">")
    raise UserError(f"no candidate op {name!r}{hint} Known: {forms}, e.g. conv_k3, mb_k5_e6_se")


def obstacle(
    name: str, in_channels: Number, out_channels: Number, stride: int = 1, ndim: int = 2
) -> str | None:
    """Why the op cannot stand there, in words; None where it can."""
    op, numbers = parse(name)
    site = Site(options_of(in_channels)[-1], options_of(out_channels)[-1], stride, ndim)
    reason = op.obstacle(site, **numbers)
    searched = not (isinstance(in_channels, int) and isinstance(out_channels, int))
    if reason is None and searched:
        if not op.elastic:
            reason = "its channels cannot be searched; only those of elastic_* can"
        elif name == "identity" and in_channels is not out_channels:
            reason = "it needs the same decision for its input and output channels"
    return None if reason is None else f"op {name!r} does not fit {site}: {reason}"


def allowed(
    name: str, in_channels: Number, out_channels: Number, stride: int = 1, ndim: int = 2
) -> bool:
    """Whether `build` takes these arguments; identity and pooling keep the number of channels."""
    return obstacle(name, in_channels, out_channels, stride, ndim) is None


def build(
    name: str,
    in_channels: Number,
    out_channels: Number,
    stride: int = 1,
    ndim: int = 2,
    activation: str | None = None,
) -> nn.Module:
    """The op of that name, with new weights.

    Args:
        in_channels, out_channels: for elastic ops also an `Elastic` number.
        ndim: 2 for images ``(N, C, H, W)``, 1 for sequences ``(N, C, L)``.
        activation: instead of the op's own (ReLU; ReLU6 in `mb_*`); see `blocks.ACTIVATIONS`.

    Raises:
        UserError: unknown name or activation, an even kernel, numbers below 1, or an op that
            cannot change the channels or the size as asked.
    """
    channels = (options_of(in_channels)[0], options_of(out_channels)[0])
    for what, value in (*(("channels", c) for c in channels), ("stride", stride)):
        if value < 1:
            raise UserError(f"op {name!r}: {what} must be at least 1, got {value}")
    if ndim not in blocks.CONV:
        raise UserError(f"op {name!r}: ndim must be 1 (sequences) or 2 (images), got {ndim}")
    if activation is not None and activation not in blocks.ACTIVATIONS:
        allowed_names = ", ".join(blocks.ACTIVATIONS)
        raise UserError(f"no activation {activation!r}, only {allowed_names}")
    reason = obstacle(name, in_channels, out_channels, stride, ndim)
    if reason is not None:
        raise UserError(reason)
    op, numbers = parse(name)
    return op.factory(in_channels, out_channels, stride, ndim, activation, **numbers)


def _fields(form: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", form)
