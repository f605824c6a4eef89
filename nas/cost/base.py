"""What a cost model sees of a layer or of a whole network, and what it must answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor, nn

if TYPE_CHECKING:
    from nas.cost.trace import Example, Trace

Scalar = int | float | Tensor
Choice = tuple[str, int]  # decision name and the index of the option taken
Condition = frozenset[Choice]  # holds in the architectures that make all of these choices
AnyOf = frozenset[Condition]  # holds where any of these conditions does
Term = Condition  # a product of thetas, at most one of each decision
Polynomial = Mapping[Term, float]  # in thetas: term -> coefficient

CALLS = frozenset({"conv", "conv_transpose", "linear", "matmul"})


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """All a cost model may know of one layer, for one input sample.

    Two sorts of entries describe a network. A *call* (`conv`, `conv_transpose`, `linear`,
    `matmul`) stands for one execution, so a module called twice has two. A `parameter` or a
    `buffer` stands for one stored tensor, however often it is used; `folded` and `gained` for one
    that goes, or comes, when norms are folded into the convolutions in front of them.

    Under a channel mask the counts are 0-dim tensors: plain arithmetic on them is differentiable.
    """

    kind: str  # one of CALLS | "parameter" | "buffer" | "folded" | "gained"
    module: str  # path of the module it was found in, for messages and tables
    in_channels: Scalar = 0
    out_channels: Scalar = 0
    groups: int = 1
    kernel: tuple[int, ...] = ()  # (k_h, k_w) or (k,)
    in_size: tuple[int, ...] = ()  # (H, W) or (L,)
    out_size: tuple[int, ...] = ()
    batch: int = 1  # independent products, e.g. attention heads
    numel: Scalar = 0  # stored tensor: number of its elements
    role: str = ""  # stored tensor: its owner's class and its name there, "BatchNorm2d.weight"
    ndim: int = 0  # stored tensor: number of its dimensions
    dtype: str = ""  # stored tensor: type of its elements, e.g. "float32"

    @property
    def is_call(self) -> bool:
        """Whether this is work to be done, not a tensor to be stored."""
        return self.kind in CALLS


def stored(kind: str, path: str, owner: nn.Module, name: str, tensor: Tensor) -> LayerSpec:
    """The entry of a tensor that `owner`, the module at `path`, holds as `name`."""
    return LayerSpec(
        kind,
        path,
        numel=tensor.numel(),
        role=f"{type(owner).__name__}.{name}",
        ndim=tensor.ndim,
        dtype=str(tensor.dtype).removeprefix("torch."),
    )


class LayerCost(Protocol):
    """A cost that adds up over layers."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def __call__(self, layer: LayerSpec) -> Scalar: ...


class Expected(Protocol):
    """A cost of one supernet, under the thetas its decisions have at the time of a call."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    @property
    def options(self) -> Mapping[str, int]:
        """Decision name -> number of its options."""
        ...

    @property
    def constraints(self) -> tuple[Polynomial, ...]:
        """Polynomials whose largest is the cost, exactly, where thetas are one-hot.

        Thus the cost is at most a budget where each of them is.
        """
        ...

    def __call__(self) -> Tensor:
        """A float64 scalar, differentiable in the alphas; exact where thetas are one-hot."""
        ...

    def mean(self) -> Tensor:
        """Mean over all architectures."""
        ...

    def of(self, choices: Mapping[str, object]) -> float:
        """Exact cost of the architecture that takes `choices` (decision name -> option)."""
        ...


@runtime_checkable
class NetworkCost(Protocol):
    """A cost that is no sum over layers: it takes the whole trace."""

    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def expected(self, model: nn.Module, example: "Example | Trace") -> Expected:
        """The cost of the supernet `model`, as the sum over layers has its `ExpectedCost`."""
        ...
