"""Costs in closed form: parameters, multiply-accumulates and operations."""

from dataclasses import dataclass
from math import prod

from nas.cost.base import LayerSpec, Scalar


@dataclass(frozen=True)
class Params:
    """Stored parameters, biases and norms included, each tensor once: `sum(p.numel())`."""

    name: str = "params"
    unit: str = "parameters"

    def __call__(self, layer: LayerSpec) -> Scalar:
        return layer.numel if layer.kind == "parameter" else 0


@dataclass(frozen=True)
class MACs:
    """Multiply-accumulates of convolutions and matrix products for one sample.

    Bias, norms, activations and pooling are left out: exactly half of what torch's
    `FlopCounterMode` counts, where that sees every product. It misses fused attention and LSTMs on
    a CPU, `nn.Bilinear`, weighted bags of embeddings and products of a matrix with a vector.
    """

    name: str = "macs"
    unit: str = "MAC"

    def __call__(self, layer: LayerSpec) -> Scalar:
        if not layer.is_call:
            return 0
        # A transposed convolution applies its kernel at every input position.
        places = layer.in_size if layer.kind == "conv_transpose" else layer.out_size
        taps = prod(layer.kernel) * prod(places) * layer.batch
        pairs = layer.in_channels * layer.out_channels
        # Whole numbers stay whole: they are compared with an exact count.
        return (
            pairs // layer.groups * taps if isinstance(pairs, int) else pairs * taps / layer.groups
        )


@dataclass(frozen=True)
class FLOPs:
    """Operations for one sample: two for each multiply-accumulate, as `MACs` counts them.

    What torch's `FlopCounterMode` counts, but for what it misses; see `MACs`.
    """

    name: str = "flops"
    unit: str = "FLOP"

    def __call__(self, layer: LayerSpec) -> Scalar:
        return 2 * MACs()(layer)
