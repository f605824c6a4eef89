"""The text that says what is measured: equal for equal work, whatever module does it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from nas.cost.base import LayerSpec
from nas.errors import UserError

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Conditions:
    """How a unit is run, apart from the device and the runtime.

    Args:
        batch: samples of one call.
        dtype: number format of weights and activations.
        threads: of the runtime.

    Raises:
        UserError: not such a number, or another format.
    """

    batch: int = 1
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        for key in ("batch", "threads"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{key}={value!r} must be a whole number of at least 1")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")

    def __str__(self) -> str:
        return f"b{self.batch} {self.dtype} t{self.threads}"


def operator_text(func: Any, args: Sequence[Any], out: Any) -> str:
    """An operator with the shapes and whole numbers that go in, and the shapes that come out.

    Epsilons and the like are left out: they take no time.
    """
    given = ",".join(filter(None, map(_text, args)))
    made = ",".join(_shape(x) for x in tree_leaves(out) if isinstance(x, Tensor))
    return f"{func.overloadpacket.__name__}({given})->{made}"


def is_view(func: Any) -> bool:
    """Whether an operator computes nothing: its outputs are its inputs, looked at differently."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    return bool(returns) and all(a is not None and not a.is_write for a in aliases)


def key_of(
    layers: Iterable[LayerSpec],
    operators: Sequence[str],
    inputs: Sequence[tuple[int, ...]],
    conditions: Conditions,
) -> str:
    """E.g. ``conv3x3/2 16>32@8x8 | in 1x16x16x16 | b1 float32 t1 | 3f2a90c1``.

    The last part is a hash of every operator: it tells units apart whose layers are the same, by
    an activation, a residual or the padding.
    """
    work = " + ".join(_layer_text(layer) for layer in layers if layer.is_call)
    if not work:
        work = "+".join(dict.fromkeys(text.partition("(")[0] for text in operators)) or "nothing"
    shapes = ", ".join("x".join(map(str, shape)) for shape in inputs)
    digest = hashlib.sha256("\n".join([shapes, *operators]).encode()).hexdigest()[:8]
    return f"{work} | in {shapes} | {conditions} | {digest}"


def _layer_text(layer: LayerSpec) -> str:
    kernel = "x".join(map(str, layer.kernel))
    strides = [-(-i // o) for i, o in zip(layer.in_size, layer.out_size, strict=True) if o]
    stride = f"/{max(strides)}" if max(strides, default=1) > 1 else ""
    groups = f"g{layer.groups}" if layer.groups > 1 else ""
    size = "x".join(map(str, layer.out_size)) if prod(layer.out_size) > 1 else "1"
    channels = f"{layer.in_channels}>{layer.out_channels}"
    return f"{layer.kind}{kernel}{stride}{groups} {channels}@{size}"


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _shape(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(filter(None, map(_text, value)))}]"
    return "" if isinstance(value, float) else str(value)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"
