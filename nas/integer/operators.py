"""The operators of an integer graph, and their exact arithmetic.

A value is int8 and stands for ``scale * (q - zero)``. Every operator is defined by whole numbers
alone, so that a C compiler, a simulator and a microcontroller must agree to the bit. All of them
round once, half up: ``floor(v + 1/2)``, as ``(v * 2^s + 2^(s-1)) >> s`` with an arithmetic shift,
but for the mean of `Pool`, half away from zero. Then they add the zero point and saturate to
``[low, high]``. Tables and inputs, which are made of real numbers, are rounded half to even.

Arguments and results of the functions here are int64 tensors ``(N, C, *S)`` of such levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.quantization.packing import bytes_of_bits

LOWEST, HIGHEST = -128, 127  # of int8
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """An int8 tensor of a graph: ``real = scale * (level - zero)``.

    Args:
        name: unique in the graph, an identifier.
        shape: of one sample, ``(C, *S)``.
        scale: positive.
        zero: the level of the number 0, -128 to 127.
    """

    name: str
    shape: Shape
    scale: float
    zero: int

    @property
    def numel(self) -> int:
        """Elements, and bytes, of one sample."""
        return prod(self.shape)

    def quantize(self, x: Tensor) -> Tensor:
        """Levels of real numbers ``(N, *shape)``: rounded half to even, saturated."""
        levels = torch.round(x.double() / self.scale) + self.zero
        return levels.clamp(LOWEST, HIGHEST).to(torch.int64)

    def real(self, levels: Tensor) -> Tensor:
        """The numbers that levels stand for, float32."""
        return ((levels - self.zero).double() * self.scale).float()


@dataclass(frozen=True, kw_only=True)
class Operator:
    """What all operators have.

    Args:
        path: of the layer in the network, for messages and tables.
        inputs: names of values.
        output: what it makes.
        low, high: levels between which the result is kept; an activation such as ReLU is in them.
    """

    path: str
    inputs: tuple[str, ...]
    output: Value
    low: int = LOWEST
    high: int = HIGHEST

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the inputs."""
        raise NotImplementedError

    def saturated(self, levels: Tensor) -> Tensor:
        """Levels within ``[low, high]``."""
        return levels.clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Conv(Operator):
    """Convolution over images; over sequences with sides of 1; a linear layer with all sides 1.

    ``q_c = zero + round((M_c * sum (q_x - zero_x) w_c + b_c * 2^(shift - point)) / 2^shift)``,
    one rounding for all of it. The sum fits 32 bits, its product 64.

    Args:
        weight: levels ``(C_out, C_in / groups, kh, kw)``.
        bits: of the weights of each output channel ``(C_out,)``; packed so in files.
        multiplier: ``(C_out,)``, 0 to 2^16 - 1.
        shift: of all channels, 1 to 40, below 15 only behind inputs of fewer than 8 bits; no level
            is beyond 30 bits before it is saturated.
        bias: ``(C_out,)`` in units of ``2^-point`` output levels, 16 bits.
        point: bits of the bias behind the point, -5 to 15, at most `shift`.
        padding: rows above and columns before; those on the other side follow from the shape.
        zero_in: level of 0 of the input, which is what padding has.
    """

    weight: NDArray[np.int8]
    bits: NDArray[np.uint8]
    multiplier: NDArray[np.uint16]
    shift: int
    bias: NDArray[np.int16]
    point: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    zero_in: int
    sides_in: tuple[int, int]

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the input."""
        centred = (x[0] - self.zero_in).double().reshape(len(x[0]), -1, *self.sides_in)
        sides = self.sides_out
        for dim in (1, 0):
            reach = (sides[dim] - 1) * self.stride[dim]
            reach += self.dilation[dim] * (self.weight.shape[2 + dim] - 1) + 1
            after = reach - self.padding[dim] - self.sides_in[dim]
            pads = [self.padding[dim], after]
            centred = F.pad(centred, pads if dim else [0, 0, *pads])
        # Whole numbers below 2^53 in float64: exact in any order of the sums.
        weight = torch.from_numpy(self.weight.astype(np.float64))
        sums = F.conv2d(centred, weight, None, self.stride, 0, self.dilation, self.groups)
        levels = self.rescaled(sums.to(torch.int64))
        return levels.reshape(len(levels), *self.output.shape)

    @property
    def fan_in(self) -> int:
        """Weights of one output channel."""
        return prod(self.weight.shape[1:])

    @property
    def stored(self) -> int:
        """Bytes of the weights, each channel packed on its own, of biases, multipliers and bits."""
        rows = -(-self.fan_in * self.bits.astype(np.int64) // 8)
        own = bytes_of_bits(len(self.bits)) if self.is_mixed else 0
        return int(rows.sum()) + self.bias.nbytes + self.multiplier.nbytes + own

    @property
    def is_mixed(self) -> bool:
        """Whether output channels have different bits, which a file says in a byte for four."""
        return bool((self.bits != self.bits[:1]).any())

    @property
    def sides_out(self) -> tuple[int, int]:
        """Height and width of the output."""
        return sides_of(self.output.shape)

    def rescaled(self, sums: Tensor) -> Tensor:
        """Levels ``(N, C_out, H, W)`` from the sums of products."""
        channels = (-1, 1, 1)
        multiplier = torch.from_numpy(self.multiplier.astype(np.int64)).reshape(channels)
        bias = torch.from_numpy(self.bias.astype(np.int64)).reshape(channels)
        exact = sums * multiplier + (bias << (self.shift - self.point))
        return self.saturated(rounded(exact, self.shift) + self.output.zero)


def sides_of(shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of ``(C, *S)``; 1 for a side that is not there."""
    sides = (1, 1, *shape[1:])
    return sides[-2], sides[-1]


def rounded(value: Tensor, shift: int) -> Tensor:
    """``floor(value / 2^shift + 1/2)``."""
    return (value + (1 << (shift - 1))) >> shift


@dataclass(frozen=True, kw_only=True)
class Add(Operator):
    """``zero + round(sum_i (q_i - zero_i) M_i / 2^shift)``; all of it fits 32 bits.

    With one input it brings a value to another scale.

    Args:
        zeros: levels of 0 of the inputs.
        multipliers: below 2^21 in magnitude.
        shift: 1 to 30.
    """

    zeros: tuple[int, ...]
    multipliers: tuple[int, ...]
    shift: int

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the inputs."""
        terms = zip(x, self.zeros, self.multipliers, strict=True)
        total = sum((levels - zero) * m for levels, zero, m in terms)
        return self.saturated(rounded(torch.as_tensor(total), self.shift) + self.output.zero)


@dataclass(frozen=True, kw_only=True)
class Mul(Operator):
    """``zero + round((q_0 - zero_0) (q_1 - zero_1) M / 2^shift)``; all of it fits 32 bits.

    The second input has the shape of the first, or one number a channel.

    Args:
        zeros: levels of 0 of both inputs.
        multiplier: below 2^14.
        shift: 1 to 30.
    """

    zeros: tuple[int, int]
    multiplier: int
    shift: int

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of both inputs."""
        first, second = (levels - zero for levels, zero in zip(x, self.zeros, strict=True))
        if second.shape != first.shape:
            second = second.reshape(*second.shape[:2], *[1] * (first.ndim - 2))
        product = rounded(first * second * self.multiplier, self.shift)
        return self.saturated(product + self.output.zero)


@dataclass(frozen=True, kw_only=True)
class Concat(Operator):
    """Channels one after the other, each input brought to the scale of the output as by `Add`.

    Args:
        zeros, multipliers, shifts: of each input; a multiplier of 0: the levels as they are.
    """

    zeros: tuple[int, ...]
    multipliers: tuple[int, ...]
    shifts: tuple[int, ...]

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the inputs."""
        parts = []
        for levels, zero, m, shift in zip(
            x, self.zeros, self.multipliers, self.shifts, strict=True
        ):
            scaled = rounded((levels - zero) * m, shift) + self.output.zero
            parts.append(self.saturated(scaled) if m else levels)
        return torch.cat(parts, 1)


@dataclass(frozen=True, kw_only=True)
class Mean(Operator):
    """Mean over all positions: ``zero + round(M sum (q - zero_in) / 2^shift)``, 64 bits inside.

    Args:
        multiplier: below 2^16, the number of positions in it.
        shift: 1 to 40.
    """

    zero_in: int
    multiplier: int
    shift: int

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the input."""
        sums = (x[0] - self.zero_in).flatten(2).sum(2).reshape(len(x[0]), *self.output.shape)
        levels = rounded(sums * self.multiplier, self.shift) + self.output.zero
        return self.saturated(levels)


@dataclass(frozen=True, kw_only=True)
class Pool(Operator):
    """Maximum, or mean rounded half away from zero, of a window; the scale stays.

    Args:
        largest: the maximum, else the mean.
        whole: the mean is over the whole kernel, padding included; else over what is inside.
    """

    largest: bool
    whole: bool
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    sides_in: tuple[int, int]

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the input."""
        maps = x[0].double().reshape(len(x[0]), -1, *self.sides_in)
        window = (self.kernel, self.stride, self.padding)
        if self.largest:
            levels = F.max_pool2d(maps, *window, self.dilation, self._beyond)
            return levels.to(torch.int64).reshape(len(x[0]), *self.output.shape)

        def sums(of: Tensor) -> Tensor:
            total = F.avg_pool2d(of, *window, self._beyond, divisor_override=1)
            return torch.round(total).to(torch.int64)

        inside = sums(torch.ones_like(maps[:1, :1]))
        over = torch.full_like(inside, prod(self.kernel)) if self.whole else inside
        total = sums(maps - self.output.zero)
        mean = total.sign() * ((total.abs() + over // 2) // over)
        return self.saturated(mean + self.output.zero).reshape(len(x[0]), *self.output.shape)

    @property
    def _beyond(self) -> bool:
        """Whether the last windows reach over the padding."""
        last = zip(
            self.sides_in, self.padding, self.dilation, self.kernel, self.stride, strict=True
        )
        floors = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in last)
        return floors != sides_of(self.output.shape)


@dataclass(frozen=True, kw_only=True)
class Table(Operator):
    """A function of one number, looked up.

    Args:
        levels: of the output for the levels -128, ..., 127 of the input.
    """

    levels: NDArray[np.int8]

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the input."""
        return torch.from_numpy(self.levels.astype(np.int64))[x[0] - LOWEST]


@dataclass(frozen=True, kw_only=True)
class Move(Operator):
    """Elements of the input in another order, or some of them, or zeros between them.

    Args:
        index: of the element of the input for each of the output, both flat in the order
            ``(C, *S)``; -1: zero.
    """

    index: NDArray[np.int64]

    def __call__(self, *x: Tensor) -> Tensor:
        """Levels of the output from those of the input."""
        flat = F.pad(x[0].flatten(1), (0, 1), value=self.output.zero)  # -1 is the last
        return flat[:, torch.from_numpy(self.index)].reshape(len(flat), *self.output.shape)


def fixed_point(factors: Sequence[float], bits: int, most: int) -> tuple[tuple[int, ...], int]:
    """Whole multipliers and one shift: ``factor = multiplier / 2^shift``, as exact as it can be.

    Args:
        factors: of any sign.
        bits: the largest multiplier is below ``2^bits`` in magnitude.
        most: the largest shift; the least is 1.
    """
    largest = max(map(abs, factors), default=0.0)
    shift = most
    if largest > 0:
        shift = min(most, bits - int(np.ceil(np.log2(largest))))
    shift = max(shift, 1)
    limit = (1 << bits) - 1
    return tuple(max(-limit, min(limit, round(factor * 2.0**shift))) for factor in factors), shift
