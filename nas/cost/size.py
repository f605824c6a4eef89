"""Bytes of the stored network at a given number format."""

import re
from dataclasses import dataclass

from nas.cost.base import LayerSpec, Scalar
from nas.errors import UserError

_FLOATS = {"float32": 32, "float16": 16, "bfloat16": 16}


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


@dataclass(frozen=True)
class Size:
    """Bytes of all stored tensors, each once.

    For float formats every floating-point tensor counts in that format. For integer formats those
    of two or more dimensions do, and the others (biases, norms) count 32 bits, as the common
    int8 runtimes store them; scales and zero points are left out. Tensors that are not floating
    point, such as a norm's `num_batches_tracked` (8 bytes), keep their width, so that float32
    without folding is exactly what a `state_dict` holds.

    Args:
        dtype: number format of the weights, see `bits_of`.
        fold_norm: a BatchNorm's tensors vanish, and the convolution (or linear layer) in front
            gains one bias per channel if it has none. A norm that cannot be folded, because
            something else stands in front or reads the same output, counts as it is.

    Raises:
        UserError: an unknown `dtype`.
    """

    dtype: str = "float32"
    fold_norm: bool = False
    name: str = "size"
    unit: str = "B"

    def __post_init__(self) -> None:
        bits_of(self.dtype, "size.dtype")

    def __call__(self, layer: LayerSpec) -> Scalar:
        sign = {"parameter": 1, "buffer": 1}
        if self.fold_norm:
            sign |= {"gained": 1, "folded": -1}
        return sign.get(layer.kind, 0) * layer.numel * self._bits(layer) / 8

    def _bits(self, layer: LayerSpec) -> int:
        if not layer.dtype.startswith(("float", "bfloat")):
            return int(re.sub(r"\D", "", layer.dtype) or 8)  # "int64", "bool"
        if self.dtype.startswith("int") and layer.ndim < 2:
            return 32
        return bits_of(self.dtype)
