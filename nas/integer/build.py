"""From a trained network and calibration data to a graph of integers."""

from collections.abc import Callable, Mapping
from math import ceil, inf, log2
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nas.errors import UserError
from nas.integer.capture import NetworkSteps, steps_of
from nas.integer.graph import IntegerGraph
from nas.integer.grids import Levels, levels_of
from nas.integer.operators import (
    HIGHEST,
    LOWEST,
    Add,
    Concat,
    Conv,
    Mean,
    Move,
    Mul,
    Operator,
    Pool,
    Table,
    Value,
    fixed_point,
)
from nas.integer.steps import Step
from nas.quantization.network import dequantized, quantized_layers
from nas.quantization.quantizers import check_bits

_BATCH = 16  # samples that go through the exported network in one step
_LEVELS = HIGHEST - LOWEST
_SHIFT, _MULTIPLIER = 40, 16  # most of a shift, and bits of a multiplier, in 64-bit arithmetic
_STEEPEST = 10  # log2 of the largest multiplier behind inputs of fewer than 8 bits
_POINT = (-5, 15)  # bits of a bias behind the point: 2^20 levels, shifted by 10, fit 32 bits
_BIAS = 2**20  # levels that a bias reaches
_ACCUMULATOR = 2**31 - 1
_BEYOND = 2**29  # levels that a convolution may reach before it is saturated

WeightBits = int | Mapping[str, int | Tensor]


def integer_graph(
    network: nn.Module,
    calibration: Tensor,
    bits: WeightBits = 8,
    weight_scales: Mapping[str, Tensor] | None = None,
) -> IntegerGraph:
    """The network in whole numbers: int8 activations, weights of 8 bits or fewer.

    Weights are symmetric with a scale for each output channel, activations have one scale and one
    zero point each, from the smallest and the largest value on the calibration data. BatchNorm is
    folded. See `nas.integer.operators` for the arithmetic. A network of `nas.quantization` has
    bits and steps of its own, which are kept: its weights are exactly those that it was trained to,
    and so are the inputs of its layers, see `nas.integer.grids`.

    Args:
        network: plain, in eval mode, on the CPU.
        calibration: inputs ``(M, ...)``.
        bits: of weights: 8, 4 or 2, for all layers, or by the path of a layer (others have 8), for
            the whole layer or for each of its output channels ``(C_out,)``; not for layers that
            have bits of their own.
        weight_scales: by the path of a layer, steps between its levels ``(C_out,)`` where training
            has learned them, before BatchNorm is folded; others follow from the largest weight.

    Raises:
        UserError: a layer that has no integer form; it is named. Data that are not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> images = torch.randn(32, 3, 8, 8)
        >>> graph = integer_graph(network.eval(), images)
        >>> error = (graph(images) - network(images)).abs().max()
        >>> bool(error < 0.1)
        True
    """
    if not len(calibration):
        raise UserError("an integer graph learns its ranges from data, and there are none")
    learned = quantized_layers(network)
    if learned:
        usual = {} if isinstance(bits, int) else bits
        rounding = {path: layer.weight_quantizer for path, layer in learned.items()}
        bits = {**usual, **{path: one.bits_of_rows for path, one in rounding.items()}}
        own = {path: one.size for path, one in rounding.items()}
        weight_scales = {**(weight_scales or {}), **own}
        network = dequantized(network, inputs=True)
    with torch.no_grad():
        steps = steps_of(network.eval(), calibration[:_BATCH])
        levels = levels_of(steps, steps.ranges(calibration))
        return _Build(steps, levels, bits, weight_scales or {}).graph()


class _Build:
    def __init__(
        self, found: NetworkSteps, levels: Levels, bits: WeightBits, scales: Mapping[str, Tensor]
    ) -> None:
        self.found, self.levels, self.bits, self.scales = found, levels, bits, scales
        self.values: dict[str, Value] = {}

    def graph(self) -> IntegerGraph:
        """All of it."""
        name, shape = self.found.start
        start = self.values[name] = self._value(name, shape)
        make: Mapping[str, Callable[[Step, Mapping[str, Any]], Operator]] = {
            "conv": self._conv,
            "add": self._add,
            "mul": self._mul,
            "concat": self._concat,
            "mean": self._mean,
            "pool": self._pool,
            "table": self._table,
            "move": self._move,
        }
        operators = []
        for step in self.levels.steps:
            inherits = step.kind in ("pool", "move")
            value = self._value(
                step.output,
                step.shape,
                self._input(step) if inherits else None,
                self._least_scale(step) if step.kind == "conv" else 0.0,
            )
            self.values[step.output] = value
            low, high = self._limits(step, value)
            common = {"path": step.path, "inputs": step.inputs, "output": value}
            operators.append(make[step.kind](step, {**common, "low": low, "high": high}))
        return IntegerGraph(start, tuple(operators), self.values[self.found.end])

    def _input(self, step: Step, number: int = 0) -> Value:
        return self.values[step.inputs[number]]

    def _value(
        self, name: str, shape: tuple[int, ...], like: Value | None = None, least: float = 0.0
    ) -> Value:
        if like is not None:
            return Value(name, shape, like.scale, like.zero)
        grid = self.levels.grids.get(name)
        if grid is not None and grid.scale >= least:
            return Value(name, shape, grid.scale, grid.zero)
        low, high = self.levels.ranges[name] if grid is None else grid.limits
        if not (-inf < low <= high < inf):
            raise UserError(
                f"the network gives numbers that are not finite on the calibration data, at {name}"
            )
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / _LEVELS, least) or 1.0
        return Value(name, shape, scale, _clamped(LOWEST - round(low / scale)))

    def _limits(self, step: Step, value: Value) -> tuple[int, int]:
        def level(real: float, default: int) -> int:
            if abs(real) == inf:
                return default
            return _clamped(value.zero + round(max(-1e6, min(1e6, real / value.scale))))

        low, high = level(step.low, LOWEST), level(step.high, HIGHEST)
        if (grid := self.levels.grids.get(step.output)) is None:
            return low, high
        # The levels of the grid, where the value could have its step and zero; else its limits.
        least, most = (level(limit, 0) for limit in grid.limits)
        return min(max(low, least), most), max(min(high, most), least)

    def _least_scale(self, step: Step) -> float:
        """Of a convolution's output: levels stay within 30 bits, biases within 20, factors below 2.

        Behind inputs of fewer bits factors may be larger: products are far apart there, and
        biases would be lost between them.
        """
        levels, scale = self._levels(step, self._bits(step.path, len(step.settings["weight"])))
        products = np.abs(levels.astype(np.float64)).sum(axis=(1, 2, 3)) * 256
        products *= self._input(step).scale * scale
        bias = step.settings["bias"].abs().numpy()
        largest = float((products + bias).max(initial=0))
        # A bias fits its bits, or is so far above all products that the output saturates anyway.
        shifting = float(np.minimum(bias, products).max(initial=0)) / (_BIAS - 512)
        steepest = self._input(step).scale * float(scale.max(initial=0))
        # Levels finer than the products are worth a dearer kernel where the products are few.
        narrow = step.grid is not None and not step.grid.wide
        return max(largest / _BEYOND, shifting, steepest * (2.0**-_STEEPEST if narrow else 0.501))

    def _conv(self, step: Step, common: Mapping[str, Any]) -> Conv:
        settings = step.settings
        weight = settings["weight"]
        bits = self._bits(step.path, len(weight))
        levels, scale = self._levels(step, bits)
        source, output = self._input(step), common["output"]
        _check_sums(step.path, levels)
        factors = source.scale * scale / output.scale
        multipliers, shift = fixed_point(factors.tolist(), _MULTIPLIER, _SHIFT)
        offsets = settings["bias"].numpy() / output.scale
        largest = float(np.abs(offsets).max(initial=0))
        whole = ceil(log2(largest)) if largest > 0 else -_POINT[1]
        point = min(max(15 - whole, _POINT[0]), _POINT[1], shift)
        bias = np.clip(np.round(offsets * 2.0**point), -(2**15), 2**15 - 1)
        return Conv(
            **common,
            weight=levels,
            bits=bits,
            multiplier=np.array(multipliers, dtype=np.uint16),
            shift=shift,
            bias=bias.astype(np.int16),
            point=point,
            zero_in=source.zero,
            **{k: v for k, v in settings.items() if k not in ("weight", "bias", "factor")},
        )

    def _bits(self, path: str, channels: int) -> NDArray[np.uint8]:
        given = self.bits if isinstance(self.bits, int) else self.bits.get(path, 8)
        bits = np.broadcast_to(np.asarray(given), (channels,))
        for width in np.unique(bits).tolist():
            check_bits(f"weights of {path!r}", width)
        return bits.astype(np.uint8)

    def _levels(
        self, step: Step, bits: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
        """Whole weights, and the step between two of them, for each output channel."""
        weight = step.settings["weight"].numpy()
        most = 2.0 ** (bits - 1.0) - 1
        if step.path in self.scales:
            learned = self.scales[step.path].double().reshape(-1)
            scale = (learned * step.settings["factor"].abs()).numpy()
        else:
            scale = np.abs(weight).max(axis=(1, 2, 3)) / most
        wide = (-1, 1, 1, 1)
        levels = np.round(weight / np.where(scale > 0, scale, 1.0).reshape(wide))
        levels = np.clip(levels, -most.reshape(wide), most.reshape(wide)).astype(np.int8)
        # A channel of zeros has no step: a large one would make the output's levels coarse.
        return levels, np.where(levels.any(axis=(1, 2, 3)), scale, 0.0)

    def _add(self, step: Step, common: Mapping[str, Any]) -> Add:
        output, sources = common["output"], [self.values[name] for name in step.inputs]
        factors = [
            sign * source.scale / output.scale
            for sign, source in zip(step.settings["signs"], sources, strict=True)
        ]
        multipliers, shift = fixed_point(factors, 21, 30)
        zeros = tuple(source.zero for source in sources)
        return Add(**common, zeros=zeros, multipliers=multipliers, shift=shift)

    def _mul(self, step: Step, common: Mapping[str, Any]) -> Mul:
        first, second = (self.values[name] for name in step.inputs)
        factor = first.scale * second.scale / common["output"].scale
        (multiplier,), shift = fixed_point([factor], 14, 30)
        return Mul(**common, zeros=(first.zero, second.zero), multiplier=multiplier, shift=shift)

    def _concat(self, step: Step, common: Mapping[str, Any]) -> Concat:
        output, sources = common["output"], [self.values[name] for name in step.inputs]
        found = []
        for source in sources:
            same = (source.scale, source.zero) == (output.scale, output.zero)
            found.append(((0,), 1) if same else fixed_point([source.scale / output.scale], 21, 30))
        return Concat(
            **common,
            zeros=tuple(source.zero for source in sources),
            multipliers=tuple(m for (m,), _ in found),
            shifts=tuple(shift for _, shift in found),
        )

    def _mean(self, step: Step, common: Mapping[str, Any]) -> Mean:
        source, output = self._input(step), common["output"]
        count = source.numel // source.shape[0]
        factor = source.scale / output.scale / count
        (multiplier,), shift = fixed_point([factor], _MULTIPLIER, _SHIFT)
        return Mean(**common, zero_in=source.zero, multiplier=multiplier, shift=shift)

    def _pool(self, step: Step, common: Mapping[str, Any]) -> Pool:
        return Pool(**common, **step.settings)

    def _table(self, step: Step, common: Mapping[str, Any]) -> Table:
        x = self._input(step).real(torch.arange(LOWEST, HIGHEST + 1)).double()
        for function in step.settings["functions"]:
            x = function(x)
        levels = common["output"].quantize(x).clamp(common["low"], common["high"])
        return Table(**common, levels=levels.numpy().astype(np.int8))

    def _move(self, step: Step, common: Mapping[str, Any]) -> Move:
        return Move(**common, index=step.settings["index"].numpy())


def _clamped(level: int) -> int:
    return max(LOWEST, min(HIGHEST, level))


def _check_sums(path: str, levels: NDArray[np.int8]) -> None:
    """A sum of products fits 32 bits, whatever the input."""
    if int(np.abs(levels.astype(np.int64)).sum(axis=(1, 2, 3)).max()) * 256 > _ACCUMULATOR:
        raise UserError(
            f"the layer {path!r} adds up {levels[0].size} products, more than 32 bits can "
            "hold: pool or stride before it, or use int8_onnx"
        )
