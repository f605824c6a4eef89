"""What a cost sees of one layer, and what it must answer."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

CALLS = frozenset({"conv", "conv_transpose", "linear", "matmul"})


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """All that a cost may know of one layer, for one input sample.

    Entries of two sorts describe a network. A *call* (`conv`, `conv_transpose`, `linear`,
    `matmul`) is one execution, so a module called twice has two. A `parameter` or a `buffer` is
    one stored tensor, however often it is used.

    Other entries are shown to costs that ask for them, see `LayerCost`: `folded` and `gained`, a
    stored tensor that goes, or comes, when norms are folded into the layers in front of them;
    `read` and `write`, an operator that reads an activation from memory, or writes it there.

    Attributes:
        kind: one of `CALLS`, or "parameter", "buffer", "folded", "gained", "read", "write".
        module: path of the module it was found in, for messages and tables.
        in_channels, out_channels: of a call.
        groups: of a convolution.
        kernel, stride, padding, dilation: of a convolution, one number for each dimension,
            ``(h, w)`` or ``(l,)``; () for others.
        in_size, out_size: of a call's input and output, ``(H, W)`` or ``(L,)``.
        batch: independent products, e.g. attention heads.
        numel: elements of a tensor.
        role: of a stored tensor, its owner's class and its name there, "BatchNorm2d.weight"; of an
            activation, the operator, "convolution".
        ndim: dimensions of a stored tensor.
        dtype: type of a tensor's elements, e.g. "float32".
        bits_weight: of one weight of a call, or of one element of a stored tensor, where it is
            quantised to fewer than its `dtype` has, the mean where rows differ; 0: as the cost's
            own format says.
        bits_in: of one input of a call, alike.
        rows: numbers of bits of a quantised weight, of a call or stored, and how many rows (output
            channels) have so many; each row is packed into whole bytes.
    """

    kind: str
    module: str
    in_channels: int = 0
    out_channels: int = 0
    groups: int = 1
    kernel: tuple[int, ...] = ()
    in_size: tuple[int, ...] = ()
    out_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    batch: int = 1
    numel: int = 0
    role: str = ""
    ndim: int = 0
    dtype: str = ""
    bits_weight: float = 0
    bits_in: int = 0
    rows: tuple[tuple[int, int], ...] = ()

    @property
    def is_call(self) -> bool:
        """Whether this is work to be done, not a tensor."""
        return self.kind in CALLS


def bits_of_call(module: nn.Module | None) -> dict[str, Any]:
    """The bits of what a module computes with, as fields of `LayerSpec`.

    It says them by attributes `weight_bits`, `weight_rows` and `input_bits`, as
    `nas.quantization.layers` does.
    """
    given = {"bits_weight": "weight_bits", "bits_in": "input_bits", "rows": "weight_rows"}
    found = {field: getattr(module, name, 0) for field, name in given.items()}
    return {field: x for field, x in found.items() if x and isinstance(x, int | float | tuple)}


def stored(kind: str, path: str, owner: nn.Module, name: str, tensor: Tensor) -> LayerSpec:
    """The entry of a tensor that `owner`, the module at `path`, holds as `name`."""
    bits = bits_of_call(owner) if name == "weight" else {}
    width = bits.get("bits_weight", 0)
    return LayerSpec(
        kind,
        path,
        numel=tensor.numel(),
        role=f"{type(owner).__name__}.{name}",
        ndim=tensor.ndim,
        dtype=str(tensor.dtype).removeprefix("torch."),
        bits_weight=width,
        rows=bits.get("rows", ((width, tensor.shape[0]),) if width else ()),
    )


class LayerCost(Protocol):
    """A cost that adds up over layers, or over activations.

    It is one class and one YAML file. A cost sees calls and stored tensors; one with an attribute
    `extra_kinds` also sees layers of these kinds, see `LayerSpec`: "folded" and "gained", or
    "read" and "write", which make it a cost on activations::

        @dataclass(frozen=True)
        class ActivationTraffic:
            bits: int = 8
            name: str = "activation_traffic"
            unit: str = "B"
            extra_kinds: ClassVar = ("read", "write")

            def __call__(self, layer: LayerSpec) -> float:
                return layer.numel * self.bits / 8 if layer.kind in self.extra_kinds else 0

    The class says nothing of decisions: each layer comes with the architectures in which it exists,
    and the cost of each architecture, its expected value and its gradient follow. A cost that is no
    sum, such as a peak, is a `nas.cost.expected.NetworkCost`.
    """

    @property
    def name(self) -> str:
        """Key of the cost in configurations and results."""
        ...

    @property
    def unit(self) -> str:
        """Unit of its values, e.g. "B"."""
        ...

    def __call__(self, layer: LayerSpec) -> float:
        """What `layer` adds, a finite number; 0 for a kind that it does not count."""
        ...
