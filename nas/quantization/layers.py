"""Convolutions and linear layers of few bits: plain ones, and one whose bits are searched."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nas.arch import Option
from nas.copying import copied
from nas.decision import Decision, Searchable
from nas.ops.convolution import Conv2d
from nas.quantization.channels import ChannelBits, widths_of
from nas.quantization.quantizers import (
    InputQuantizer,
    RowQuantizer,
    Start,
    WeightQuantizer,
    by_row,
)
from nas.supernet.elastic import Elastic, Number, options_of, taken

Layer = nn.Conv1d | nn.Conv2d | nn.Linear


class QuantizedLayer(nn.Module):
    """Base of layers that round their input and their weight, see `nas.quantization.quantizers`.

    ``y = layer(q_x(x); q_w(weight), bias)``. A BatchNorm behind folds exactly, as each output
    channel has a step of its own.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer
    input_quantizer: InputQuantizer

    @property
    def weight_bits(self) -> int | float:
        """Of one weight; the mean where output channels have different bits."""
        (bits, _), *others = self.weight_rows
        return sum(b * n for b, n in self.weight_rows) / len(self.weight) if others else bits

    @property
    def weight_rows(self) -> tuple[tuple[int, int], ...]:
        """Numbers of bits, ascending, and how many output channels have so many."""
        return self.weight_quantizer.rows

    @property
    def input_bits(self) -> int:
        """Of one input."""
        return self.input_quantizer.bits

    def forward(self, x: Tensor) -> Tensor:
        return run_layer(self, self.input_quantizer(x), self.weight_quantizer(self.weight))


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """`nn.Conv1d` of few bits."""


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` of few bits."""


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` of few bits."""


# Exactly these: a class of a user's own may do something else with its weight.
QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    QuantizedConv1d: nn.Conv1d,
    QuantizedConv2d: nn.Conv2d,
    QuantizedLinear: nn.Linear,
}


class CutLayer(Protocol):
    """A layer whose channels are searched, see `nas.compress.layer`."""

    plain: type[nn.Module]

    def decisions(self) -> Sequence[Decision]:
        """See `Searchable`."""
        ...

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """See `Searchable`."""
        ...

    def in_channels_used(self, options: Mapping[Decision, Option]) -> int | None:
        """See `Searchable`."""
        ...

    def kept(
        self, tensor: str, dim: int, options: Mapping[Decision, Option] | None = None
    ) -> Tensor | None:
        """The indices of a dimension of a tensor that stay; None: all."""
        ...


def plain_type(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, or the one that it has once its channels are decided."""
    plain: type[nn.Module] = getattr(layer, "plain", type(layer))
    return plain


def run_layer(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What `layer` computes, with another weight."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        y: Tensor = layer._conv_forward(x, weight, layer.bias)
        return y
    assert isinstance(layer, nn.Linear)
    return F.linear(x, weight, layer.bias)


def as_quantized(
    layer: nn.Module, weights: WeightQuantizer, inputs: InputQuantizer
) -> QuantizedLayer:
    """A copy of `layer`, one of `QUANTIZED`, with copies of the quantizers."""
    made: Any = copied(layer)
    made.__class__ = QUANTIZED[type(layer)]
    vars(made).pop("quick", None)  # of the project's own convolution
    made.weight_quantizer, made.input_quantizer = copied(weights), copied(inputs)
    quantized: QuantizedLayer = made.train(layer.training)
    return quantized


def as_plain(layer: QuantizedLayer, inputs: bool = False) -> nn.Module:
    """A copy of `layer` in floating point whose weight is the rounded one.

    Args:
        inputs: round the input too, in a hook; not one whose steps were never learned.
    """
    made: Any = copied(layer)
    made.__class__ = PLAIN[type(layer)]
    made.weight.data = layer.weight_quantizer(layer.weight).detach().clone()
    del made.weight_quantizer, made.input_quantizer
    plain: nn.Module = made
    if inputs and bool(layer.input_quantizer.step):
        numbers = layer.input_quantizer.numbers
        # One operator, which exported programs keep.
        rounded = torch.fake_quantize_per_tensor_affine
        plain.register_forward_pre_hook(lambda _, given: (rounded(given[0], *numbers),))
    return plain


class SearchedBits(Searchable):
    """A layer whose bits are searched: mixtures of roundings of one weight, and of one input.

    ``y = layer(sum_b theta_b q_b(x); sum_b phi_b q_b(weight))`` (one weight for all widths as in
    Risso et al. 2022, Channel-wise mixed-precision; thetas as in Wu et al. 2018, Mixed precision
    quantization by DNAS). Each width has steps of its own. One convolution runs, however many
    widths there are, and all open widths learn, also where one is sampled.

    Args:
        layer: of a type in `QUANTIZED`, or one whose channels are searched, see `CutLayer`: its
            weight is rounded before it is cut, which is the same, as rows have steps of their own.
        weight_bits, input_bits: each a number, or an `Elastic` one; several layers may share it.
            Bits of weights may be `ChannelBits`.
        start: of the weights' steps, see `WeightQuantizer`.

    Shape: that of `layer`.

    Example:
        >>> import nas, torch
        >>> from nas.quantization.layers import SearchedBits
        >>> from nas.supernet.elastic import Elastic
        >>> from torch import nn
        >>> layer = SearchedBits(nn.Linear(4, 2), Elastic([2, 4, 8]))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
        >>> nas.discretize(layer, nas.Arch("mine", {"weight_bits": 4})).weight_bits
        4
    """

    rank: Tensor  # of each output channel, 0: the most important; a buffer, for checkpoints

    def __init__(
        self,
        layer: nn.Module,
        weight_bits: Number | ChannelBits,
        input_bits: Number = 8,
        start: Start = "mse",
    ) -> None:
        super().__init__()
        assert plain_type(layer) in QUANTIZED
        self.channel_dim = getattr(layer, "channel_dim", 1)
        self.layer, self.weight_bits, self.input_bits = layer, weight_bits, input_bits
        widths = {str(b): WeightQuantizer(b, self.weight, start) for b in widths_of(weight_bits)}
        self.weights = nn.ModuleDict(widths)
        self.inputs = nn.ModuleDict({str(b): InputQuantizer(b) for b in options_of(input_bits)})
        if isinstance(weight_bits, ChannelBits):
            self.register_buffer("rank", torch.zeros(len(self.weight), dtype=torch.long))
            size = self.weight.detach().square().flatten(1).sum(1)
            self.order(self.rounding_error.square().sum(1) / size.clamp_min(1e-12))

    @property
    def weight(self) -> Tensor:
        """Of the layer ``(C_out, ...)``."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def ranks_channels(self) -> bool:
        """Whether the bits of its channels may differ."""
        return isinstance(self.weight_bits, ChannelBits)

    @property
    def rounding_error(self) -> Tensor:
        """What the fewest bits add to the weights ``(C_out, fan in)``."""
        with torch.no_grad():
            rounded: Tensor = next(iter(self.weights.values()))(self.weight)
            return (rounded - self.weight).flatten(1)

    def order(self, importance: Tensor) -> None:
        """Give the most bits to the channels of the largest `importance` ``(C_out,)``."""
        order = importance.argsort(descending=True, stable=True)
        self.rank[order] = torch.arange(len(order), device=order.device)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = _mixed(self.input_bits, self.inputs, x), self._rounded()
        if self._cut is None:
            return run_layer(self.layer, x, weight)
        y: Tensor = functional_call(self.layer, {"weight": weight}, (x,))
        return y

    def _rounded(self) -> Tensor:
        bits, weight = self.weight_bits, self.weight
        if not isinstance(bits, ChannelBits):
            return _mixed(bits, self.weights, weight)
        theta, total, kept = bits.theta, torch.zeros_like(weight), self._kept(None)
        for width, quantizer in zip(bits.widths, self.weights.values(), strict=True):
            share = bits.shares(theta, width, self._ranks(kept)).to(weight)
            if kept is not None:  # what is cut has no bits
                share = share.new_zeros(len(weight)).index_copy(0, kept, share)
            # As in `_mixed`: a width of share 0 gives its alphas a gradient.
            if bits.may_have(width) if theta.requires_grad else bool(share.any()):
                total = total + by_row(share, weight) * quantizer(weight)
        return total

    def decisions(self) -> tuple[Decision, ...]:
        cut = () if self._cut is None else self._cut.decisions()
        own = (*cut, self.weight_bits, self.input_bits)
        return tuple(dict.fromkeys(bits for bits in own if isinstance(bits, Decision)))

    def in_channels_used(self, options: Mapping[Decision, Option]) -> int | None:
        return None if self._cut is None else self._cut.in_channels_used(options)

    def materialize(self, options: Mapping[Decision, Option]) -> QuantizedLayer:
        """The plain layer of these bits, with copies of its tensors."""
        inputs = self.inputs[str(taken(self.input_bits, options))]
        assert isinstance(inputs, InputQuantizer)
        layer = self.layer if self._cut is None else self._cut.materialize(options)
        return as_quantized(layer, self._quantizer(options), inputs)

    def _quantizer(self, options: Mapping[Decision, Option]) -> WeightQuantizer:
        decision, kept = self.weight_bits, self._kept(options)
        if not isinstance(decision, ChannelBits):
            return self._of_width(taken(decision, options), kept)
        rank = self._ranks(kept)
        by_rank = decision.by_rank(options[decision], len(rank))
        rows = tuple(sorted(Counter(by_rank).items()))
        if len(rows) == 1:
            return self._of_width(by_rank[0], kept)
        bits = torch.tensor(by_rank, dtype=torch.uint8, device=rank.device)[rank]
        steps: dict[int, Tensor] = {width: self._of_width(width, None).step for width, _ in rows}
        if kept is not None:
            steps = {width: step[kept] for width, step in steps.items()}
        return RowQuantizer(steps, bits, rows)

    @property
    def _cut(self) -> CutLayer | None:
        """The layer, where its channels are searched."""
        return cast(CutLayer, self.layer) if isinstance(self.layer, Searchable) else None

    def _kept(self, options: Mapping[Decision, Option] | None) -> Tensor | None:
        """The output channels that stay; None: all."""
        return None if self._cut is None else self._cut.kept("weight", 0, options)

    def _ranks(self, kept: Tensor | None) -> Tensor:
        """Ranks among the channels that stay, in their order."""
        return self.rank if kept is None else self.rank[kept].argsort().argsort()

    def _of_width(self, width: int, kept: Tensor | None) -> WeightQuantizer:
        found = self.weights[str(width)]
        assert isinstance(found, WeightQuantizer)
        return found if kept is None else found.of_rows(kept)


def _mixed(bits: Number, quantizers: nn.ModuleDict, value: Tensor) -> Tensor:
    """``sum_b theta_b q_b(value)``; closed widths do not run."""
    if not isinstance(bits, Elastic):
        only: Tensor = quantizers[str(bits)](value)
        return only
    theta, total = bits.theta, None
    shares = zip(bits.options, theta.tolist(), bits.open.tolist(), theta, strict=True)
    for option, known, is_open, share in shares:
        # A width of theta 0 adds exactly 0 and gives its alpha a gradient, at the price of rounding
        # a weight once more.
        if known == 0 and not (is_open and theta.requires_grad and int(bits.open.sum()) > 1):
            continue
        term = quantizers[str(option)](value)
        term = term if known == 1 and not share.requires_grad else share * term
        total = term if total is None else total + term
    assert isinstance(total, Tensor)  # relaxations never close every option
    return total
