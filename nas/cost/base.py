"""What a cost model sees of a layer, and what it must answer."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Scalar = int | float | Tensor


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """All a cost model may know of one layer, for one input sample.

    Two kinds of entries describe a network. A *call* (`conv`, `conv_transpose`, `linear`,
    `matmul`) stands for one execution, so a module called twice has two. A `parameter` stands for
    one stored tensor, however often it is used.

    Under a channel mask the counts are 0-dim tensors: plain arithmetic on them is differentiable.
    """

    kind: str  # "conv" | "conv_transpose" | "linear" | "matmul" | "parameter"
    module: str  # path of the module it was found in, for messages and tables
    in_channels: Scalar = 0
    out_channels: Scalar = 0
    groups: int = 1
    kernel: tuple[int, ...] = ()  # (k_h, k_w) or (k,)
    in_size: tuple[int, ...] = ()  # (H, W) or (L,)
    out_size: tuple[int, ...] = ()
    batch: int = 1  # independent products, e.g. attention heads
    numel: Scalar = 0  # parameter: number of its elements
    role: str = ""  # parameter: its owner's class and its name there, e.g. "BatchNorm2d.weight"


class LayerCost(Protocol):
    """A cost that adds up over layers."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def __call__(self, layer: LayerSpec) -> Scalar: ...
