"""Networks and supernets whose layers have few bits, fixed or searched."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from nas.copying import copied
from nas.decision import Decision, Searchable
from nas.errors import UserError
from nas.inputs import Inputs, run, samples_in
from nas.quantization.channels import ChannelBits
from nas.quantization.layers import (
    QUANTIZED,
    QuantizedLayer,
    SearchedBits,
    as_plain,
    as_quantized,
    plain_type,
)
from nas.quantization.quantizers import (
    InputQuantizer,
    Start,
    WeightQuantizer,
    calibrating,
    check_bits,
)
from nas.supernet.elastic import Number, elastic

M = TypeVar("M", bound=nn.Module)
Widths = int | Sequence[int]
FLOAT = "float"
FEWEST = 16  # samples to calibrate with: of fewer, the ranges are those of chance


@dataclass(frozen=True)
class Quantize:
    """Which layers have how many bits. Several widths are searched, one decision for each layer.

    Args:
        weights, inputs: bits, each one of 2, 4 and 8, or several. 0 among those of weights is for
            networks whose channels are searched: of 0 bits is a channel that is left out, of the
            layer and of all that read it, as its decision of a width says.
        first, last: bits of the weights of the first and of the last layer, which many keep at 8;
            None: as all others.
        layers: pattern of a path, as ``"blocks.*.shortcut"``, -> bits of the weights, or "float"
            for no quantisation. The first pattern that matches counts, before `first` and `last`.
        channels: parts that the output channels of a layer are split into, in the order of their
            importance, where several widths of weights are searched. Each part has bits of its own,
            see `nas.quantization.channels.ChannelBits`; 1: all channels have the same.
        share: "layer": each layer has bits of its own; "block": all layers of a choice block, of
            each of its candidates, have the same.
        start: of the steps, see `nas.quantization.quantizers.WeightQuantizer`.

    Raises:
        UserError: bits that no format holds.
    """

    weights: Widths = (2, 4, 8)
    inputs: Widths = 8
    first: Widths | None = None
    last: Widths | None = None
    layers: Mapping[str, Widths | str] = field(default_factory=dict)
    channels: int = 1
    share: Literal["layer", "block"] = "layer"
    start: Start = "mse"

    def __post_init__(self) -> None:
        given: dict[str, Any] = {key: getattr(self, key) for key in ("weights", "inputs")}
        given |= {k: getattr(self, k) for k in ("first", "last") if getattr(self, k) is not None}
        given |= {f"layers[{k!r}]": bits for k, bits in self.layers.items() if bits != FLOAT}
        given["weights"] = self.widths
        for key, bits in given.items():
            number_of(bits, f"quantize.{key}")
        if isinstance(self.channels, bool) or not isinstance(self.channels, int):
            raise UserError(f"quantize.channels={self.channels!r} must be a whole number of parts")
        if self.channels < 1:
            raise UserError(f"quantize.channels={self.channels} must be at least 1")
        for key, known in (("share", ("layer", "block")), ("start", ("mse", "minmax"))):
            if getattr(self, key) not in known:
                raise UserError(
                    f"quantize.{key}={getattr(self, key)!r} is not one of {list(known)}"
                )

    @property
    def leaves_out(self) -> bool:
        """Whether channels may have 0 bits."""
        several = isinstance(self.weights, Sequence) and len(self.weights) > 1
        return several and any(bits == 0 and bits is not False for bits in self.weights)  # type: ignore[union-attr]

    @property
    def widths(self) -> Widths:
        """`weights`, without 0 where it stands beside others."""
        if not self.leaves_out:
            return self.weights
        return [bits for bits in self.weights if bits is False or bits != 0]  # type: ignore[union-attr]

    def weights_of(self, path: str, first: bool, last: bool) -> Widths | None:
        """Widths of the weights of the layer at `path`; None: it stays as it is."""
        for pattern, bits in self.layers.items():
            if fnmatchcase(path, str(pattern)):
                return None if isinstance(bits, str) else bits
        if first and self.first is not None:
            return self.first
        return self.last if last and self.last is not None else self.widths


def number_of(bits: Widths, what: str) -> tuple[int, ...]:
    """The widths, in ascending order.

    Raises:
        UserError: none, or one that no format holds.
    """
    several = isinstance(bits, Sequence) and not isinstance(bits, str)
    found = [check_bits(what, b) for b in (bits if several else [bits])]  # type: ignore[union-attr]
    if not found:
        raise UserError(f"{what} is empty: give bits, e.g. [2, 4, 8]")
    return tuple(sorted(set(found)))


def quantized(
    network: M, how: Quantize | None = None, calibration: Iterable[Inputs] | None = None
) -> M:
    """A copy of a network, or of a supernet, whose convolutions and linear layers have few bits.

    Where several widths are given they are decisions, beside those that the network has, so that
    all that acts on decisions (costs, budgets, searches, `nas.discretize`) acts on them. With
    one width the copy is a plain network, to be trained with rounding.

    Args:
        network: trained or not; steps start from its weights.
        how: see `Quantize`; None: weights of 2, 4 or 8 bits, inputs of 8.
        calibration: batches from which the inputs' ranges are learned; None: they start as those
            of the first batch that each layer sees.

    Raises:
        UserError: no layer to quantise, a pattern that matches none, layers of searched width, or
            fewer than 16 samples to calibrate with.

    Example:
        >>> import nas
        >>> from nas.quantization.network import quantized
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> for name, decision in nas.decisions(quantized(network)):
        ...     print(name, decision.options)
        0.weight_bits (2, 4, 8)
        2.weight_bits (2, 4, 8)
    """
    made = copied(network)
    attach(made, how or Quantize())
    if calibration is not None:
        calibrate(made, calibration)
    return made


def attach(network: nn.Module, how: Quantize) -> None:
    """Quantise the layers of `network` in place, see `quantized`."""
    found = dict(_layers(network))
    paths = list(found)
    _check_named(paths, [layer for layer, _ in found.values()], how)
    made: dict[int, nn.Module] = {}
    shared: dict[Any, Any] = {}
    for place, path in enumerate(paths):
        bits = how.weights_of(path, place == 0, place == len(paths) - 1)
        if bits is not None:
            layer, block = found[path]
            key = path if block is None or how.share == "layer" else block
            widths = number_of(bits, "quantize.weights")
            _check_parts(path, layer, widths, how.channels)
            weights = _shared(shared, f"{key} weights", widths, how.channels)
            inputs = _shared(shared, f"{key} inputs", number_of(how.inputs, "quantize.inputs"))
            made[id(layer)] = _quantized(layer, weights, inputs, how.start)
    if not made:
        raise UserError(
            f"there is no layer to quantise in {type(network).__name__}: quantise convolutions of "
            "one or two dimensions and linear layers, of exactly PyTorch's classes"
        )
    if id(network) in made:
        raise UserError(
            f"the network is one {type(network).__name__}: put it into a module, "
            "torch.nn.Sequential(network), to quantise it"
        )
    for module in list(network.modules()):
        for name, child in list(module._modules.items()):
            if id(child) in made:
                module._modules[name] = made[id(child)]


def _check_named(paths: Sequence[str], layers: Sequence[nn.Module], how: Quantize) -> None:
    """What is asked for of layers is there."""
    for pattern in how.layers:
        if not any(fnmatchcase(path, str(pattern)) for path in paths):
            raise UserError(
                f"quantize.layers: no layer is called {pattern!r}; the layers are {_few(paths)}"
            )
    if how.leaves_out and all(type(layer) in QUANTIZED for layer in layers):
        raise UserError(
            "quantize.weights has 0 bits, which leave a channel out, and this network has no "
            "searched channels: give a network of your own, model=MODULE:FACTORY (in Python "
            "nas.compress.convert.searchable), or drop the 0"
        )


def _check_parts(path: str, layer: nn.Module, widths: Sequence[int], parts: int) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if len(widths) > 1 and len(weight) < parts:
        # The command line reads 0.10 as the number 0.1.
        name = path.replace(".", "?") if path.replace(".", "", 1).isdigit() else path
        raise UserError(
            f"quantize.channels={parts}: the layer {path!r} has fewer output channels "
            f"({len(weight)}): give fewer parts, or this layer one number of bits, "
            f"'++space.quantize.layers={{{name}: 8}}'"
        )


def _shared(known: dict[Any, Any], key: str, bits: tuple[int, ...], parts: int = 1) -> Any:
    if (key, bits) not in known:
        by_channel = parts > 1 and len(bits) > 1
        known[key, bits] = ChannelBits(bits, parts) if by_channel else elastic(bits)
    return known[key, bits]


def _quantized(
    layer: nn.Module, weights: Number | ChannelBits, inputs: Number, start: Start
) -> nn.Module:
    if type(layer) in QUANTIZED and isinstance(weights, int) and isinstance(inputs, int):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        quantizer = WeightQuantizer(weights, weight, start)
        return as_quantized(layer, quantizer, InputQuantizer(inputs))
    return SearchedBits(layer, weights, inputs, start)


def _layers(network: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str | None]]]:
    """Path of each layer that can be quantised -> the layer, and the path of its choice block."""
    blocks: list[str] = []
    for path, module in network.named_modules():
        if isinstance(module, SearchedBits | QuantizedLayer):
            raise UserError(f"{path} is quantised already")
        if isinstance(module, Searchable) and not module.keeps_parts:
            if hasattr(module, "kept_heads"):
                raise UserError(
                    f"{path} has searched heads, whose layers have no bits of their own: leave it "
                    f"out, exclude=[{path!r}], or quantise the network found"
                )
            if not hasattr(module, "plain"):
                raise UserError(
                    f"{path} has searched channels or kernels, whose slices have no steps of their "
                    "own: quantise a space of fixed widths, or the network found"
                )
        if isinstance(module, Decision) and module.active_if():
            blocks.append(path)
        if plain_type(module) in QUANTIZED:
            around = (block for block in blocks if path.startswith(f"{block}."))
            yield path, (module, next(around, None))


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:8]) + (f" and {len(paths) - 8} more" if len(paths) > 8 else "")


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Inputs]) -> None:
    """Learn the ranges of the inputs of all quantised layers from floating point activations.

    Raises:
        UserError: fewer than 16 samples.
    """
    training, seen = network.training, 0
    network.eval()
    with calibrating(network):
        for batch in batches:
            seen += samples_in(batch)
            run(network, batch)
    network.train(training)
    if seen < FEWEST:
        raise UserError(
            f"calibration has {seen} samples, too few to learn ranges from: give at least {FEWEST}"
        )


def dequantized(network: nn.Module, inputs: bool = False) -> nn.Module:
    """The network in floating point: weights are the rounded ones, inputs are not rounded.

    What a runtime without integers computes of it. A copy, or itself where nothing is quantised.

    Args:
        inputs: round them too, see `nas.quantization.layers.as_plain`.
    """
    layers = quantized_layers(network).values()
    memo: dict[int, Any] = {id(m): as_plain(m, inputs) for m in layers}
    return copied(network, memo) if memo else network


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Path of every quantised layer -> the layer."""
    found = network.named_modules()
    return {path: module for path, module in found if isinstance(module, QuantizedLayer)}
