"""Costs in closed form: parameters, multiply-accumulates, operations and bytes."""

import re
from dataclasses import dataclass
from math import prod

from nas.cost.layer import LayerSpec
from nas.errors import UserError
from nas.quantization import packing

_FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Params:
    """Stored parameters, biases and norms included, each tensor once: `sum(p.numel())`.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> int(nas.ExpectedCost(nn.Linear(4, 3), nas.Params(), (4,))())
        15
    """

    name: str = "params"
    unit: str = "parameters"

    def __call__(self, layer: LayerSpec) -> int:
        return layer.numel if layer.kind == "parameter" else 0


@dataclass(frozen=True)
class MACs:
    """Multiply-accumulates of convolutions and matrix products for one sample.

    Bias, norms, activations and pooling are left out: exactly half of what torch's
    `FlopCounterMode` counts, where that sees every product. It misses fused attention and LSTMs on
    a CPU, `nn.Bilinear`, weighted bags of embeddings and products of a matrix with a vector.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> int(nas.ExpectedCost(nn.Conv2d(3, 8, 3, padding=1), nas.MACs(), (3, 10, 10))())
        21600
    """

    name: str = "macs"
    unit: str = "MAC"

    def __call__(self, layer: LayerSpec) -> int:
        if not layer.is_call:
            return 0
        # A transposed convolution applies its kernel at every input position.
        places = layer.in_size if layer.kind == "conv_transpose" else layer.out_size
        taps = prod(layer.kernel) * prod(places) * layer.batch
        # Whole numbers stay whole: they are compared with an exact count.
        return layer.in_channels * layer.out_channels // layer.groups * taps


@dataclass(frozen=True)
class FLOPs:
    """Operations for one sample: two for each multiply-accumulate, as `MACs` counts them.

    What torch's `FlopCounterMode` counts, but for what it misses; see `MACs`.
    """

    name: str = "flops"
    unit: str = "FLOP"

    def __call__(self, layer: LayerSpec) -> int:
        return 2 * MACs()(layer)


def bits_of(dtype: str, key: str = "dtype") -> int:
    """Width of a number format, named "float32", "float16", "bfloat16" or "int2" ... "int16".

    Raises:
        UserError: an unknown format; `key` names what it was given for.
    """
    integer = re.fullmatch(r"int([2-9]|1[0-6])", dtype) if isinstance(dtype, str) else None
    if integer:
        return int(integer[1])
    if dtype not in _FLOATS:
        raise UserError(
            f"{key}={dtype!r} is not a number format known here: choose float32, float16, "
            "bfloat16, or int2 to int16, e.g. int8"
        )
    return _FLOATS[dtype]


def packed_bytes(layer: LayerSpec) -> int | None:
    """Bytes of a stored tensor that has bits of its own; None where it has none."""
    if layer.role == "RowQuantizer.channel_bits":
        return packing.bytes_of_bits(layer.numel)
    if not layer.rows or layer.is_call:
        return None
    fan_in = layer.numel // sum(count for _, count in layer.rows)
    return sum(packing.packed_bytes(count, count * fan_in, bits) for bits, count in layer.rows)


@dataclass(frozen=True)
class Size:
    """Bytes of all stored tensors, each once.

    For float formats every floating-point tensor counts in that format. For integer formats those
    of two or more dimensions do, and the others (biases, norms) count `bias_bits`, as the common
    int8 runtimes store them; scales and zero points are left out, but see `scale_bits`. Tensors
    that are not floating point, such as a norm's `num_batches_tracked` (8 bytes), keep their width,
    so that float32 without folding is exactly what a `state_dict` holds. Weights that are quantised
    to bits of their own count these, packed in rows of whole bytes, see `nas.quantization.packing`.

    Args:
        dtype: number format of the weights, see `bits_of`.
        fold_norm: a BatchNorm's tensors vanish, and the convolution (or linear layer) in front
            gains one bias per channel if it has none. A norm that cannot be folded, because
            something else stands in front or reads the same output, counts as it is.
        bias_bits: of what has fewer than two dimensions, in integer formats.
        scale_bits: of the scale of an output channel that is quantised to bits of its own, in
            integer formats. 16, and 16 for `bias_bits`, is what `nas.integer` stores.

    Raises:
        UserError: an unknown `dtype`, or bits below 0.
    """

    dtype: str = "float32"
    fold_norm: bool = False
    bias_bits: int = 32
    scale_bits: int = 0
    name: str = "size"
    unit: str = "B"

    def __post_init__(self) -> None:
        bits_of(self.dtype, "size.dtype")
        for key in ("bias_bits", "scale_bits"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"size.{key}={value!r} must be a whole number of bits, 0 or more")

    @property
    def extra_kinds(self) -> tuple[str, ...]:
        """What it must see besides stored tensors, see `LayerCost`."""
        return ("folded", "gained") if self.fold_norm else ()

    def __call__(self, layer: LayerSpec) -> float:
        sign = {"parameter": 1, "buffer": 1, "gained": 1, "folded": -1}
        if layer.kind not in sign:
            return 0
        own = packed_bytes(layer)
        return sign[layer.kind] * (layer.numel * self._bits(layer) / 8 if own is None else own)

    def _bits(self, layer: LayerSpec) -> int:
        if not layer.dtype.startswith(("float", "bfloat")):
            return int(re.sub(r"\D", "", layer.dtype) or 8)  # "int64", "bool"
        if self.dtype.startswith("int") and layer.ndim < 2:
            scales = dict.fromkeys(("WeightQuantizer", "RowQuantizer"), self.scale_bits)
            own = {**scales, "InputQuantizer": 0}
            return own.get(layer.role.partition(".")[0], self.bias_bits)
        return bits_of(self.dtype)
