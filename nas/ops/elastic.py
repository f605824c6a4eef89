"""Numbers that are searched, and weights of which an architecture uses a part (Once-for-All).

A soft theta means a mixture of architectures where that is linear, and costs one forward pass:

- kernel: the filter is ``sum_k theta_k * filter_k``, smaller ones padded with zeros to the largest;
- width: channel c is multiplied by ``sum_{k: width_k > c} theta_k``, the probability that it is
  there, so that alphas of nested widths compare what each adds to the one below;
- depth and input size: the theta-weighted sum of what each option gives.

Under a one-hot theta only the slice runs, and equals the extracted layer to the bit. A hard sample
of the least width tells the loss nothing about wider ones, which all hold it: then costs alone move
those alphas.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.arch import Option
from nas.decision import Decision
from nas.errors import UserError
from nas.ops.blocks import CONV, NORM
from nas.supernet.relax import Relaxation, softmax
from nas.supernet.relaxed import RelaxedDecision

Convolution = nn.Conv1d | nn.Conv2d
CONVOLVE = {1: F.conv1d, 2: F.conv2d}


class Elastic(RelaxedDecision):
    """A number that is searched: a kernel, an expansion, channels, a depth, an input size.

    `options` ascend: the first makes the smallest network, the last the largest.

    Raises:
        UserError: fewer than two numbers, one below 1, or they do not ascend.
    """

    ordered = True
    options: tuple[int, ...]

    def __init__(
        self, options: Sequence[int], relax: Relaxation = softmax, gumbel: bool = False
    ) -> None:
        numbers = tuple(options)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
        if len(numbers) < 2 or not whole or list(numbers) != sorted(set(numbers)):
            raise UserError(
                f"an elastic number needs at least two whole numbers in ascending order, "
                f"e.g. [3, 5, 7], got {list(options)}"
            )
        super().__init__(numbers, relax, gumbel)

    def gated(self) -> Mapping[Option, nn.Module]:
        return {}

    def variant(self, options: Mapping[Decision, Option]) -> nn.Module:
        """Nothing where it stands: it is read by the modules that it makes differ."""
        return nn.Identity()


Number = int | Elastic


def elastic(options: int | Sequence[int]) -> Number:
    """`Elastic`, or the number itself where there is nothing to choose."""
    if isinstance(options, int):
        return options
    return options[0] if len(options) == 1 else Elastic(options)


def options_of(number: Number) -> tuple[int, ...]:
    """What it may be, in ascending order."""
    return (number,) if isinstance(number, int) else number.options


def theta_of(number: Number, like: Tensor) -> Tensor:
    """Its theta; ``(1,)`` on the device of `like` for a number that is not searched."""
    return torch.ones(1, device=like.device) if isinstance(number, int) else number.theta


def taken(number: Number, options: Mapping[Decision, Option]) -> int:
    """The number that an architecture takes."""
    return number if isinstance(number, int) else int(str(options[number]))


def decided(*numbers: Number) -> tuple[Decision, ...]:
    """Those that are searched, each once."""
    return tuple(dict.fromkeys(n for n in numbers if isinstance(n, Elastic)))


def prefix(theta: Tensor, sizes: Sequence[int]) -> tuple[int, Tensor | None]:
    """How many of the first channels run, and the probability that each is there.

    The latter ``(channels,)``, or None where it is 1 for all and alphas want no gradient.

    Shape: theta ``(K,)``, one size for each of its entries.
    """
    values = theta.tolist()
    channels = max(size for size, value in zip(sizes, values, strict=True) if value)
    if not theta.requires_grad and all(value in (0.0, 1.0) for value in values):
        return channels, None
    places = torch.arange(channels, device=theta.device)
    there = places < torch.tensor(sizes, device=theta.device)[:, None]
    return channels, theta @ there.to(theta)


def weighted(weight: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """`weight` times `mask` along `dim`."""
    if mask is None:
        return weight
    shape = [-1 if d == dim else 1 for d in range(weight.ndim)]
    return weight * mask.to(weight).view(shape)


def sliced_norm(norm: _BatchNorm, x: Tensor, scale: Tensor | None = None) -> Tensor:
    """The first channels of `norm`, as many as x has, times `scale` ``(C,)``.

    Statistics are used and updated as in any forward pass, since it is one.
    """
    channels = x.shape[1]
    if channels == norm.num_features and scale is None:
        whole: Tensor = norm(x)
        return whole
    parts = {name: tensor[:channels] for name, tensor in tensors_of(norm) if tensor.ndim}
    if scale is not None:
        parts |= {name: weighted(parts[name], scale, 0) for name in ("weight", "bias")}
    # As in `nas.ops.blocks.scaled_norm`: attributes of the instance hide what it registers.
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
