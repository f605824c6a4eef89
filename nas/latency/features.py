"""What a unit of a network is made of: the physical quantities that its latency is a function of.

All of them are counts that are zero or more, for one input sample, and add up over layers. Where a
count of the layers is a 0-dim tensor (a channel mask), so is the feature, and differentiable.
"""

from collections.abc import Mapping, Sequence
from math import prod

from nas.cost.analytic import MACs
from nas.cost.base import LayerSpec, Scalar

Features = Mapping[str, Scalar]

# Kernels of runtimes differ by these, and so does their time for one multiply-accumulate.
KINDS = ("dense", "pointwise", "depthwise", "grouped", "linear", "other")
# Of each kind: work, weights read, elements read and written, elements a kernel that keeps
# nothing reads (im2col), and how often something is called.
QUANTITIES = ("macs", "weights", "inputs", "outputs", "reads", "calls")
NAMES = (*(f"{kind}_{quantity}" for kind in KINDS for quantity in QUANTITIES), "norm_weights")


def features(layers: Sequence[LayerSpec]) -> dict[str, Scalar]:
    """The sum of each of `NAMES` over the layers of one unit.

    A unit without any layer, such as an identity or a pool, has zeros only.
    """
    total: dict[str, Scalar] = dict.fromkeys(NAMES, 0.0)
    for layer in layers:
        for name, value in _of(layer).items():
            total[name] = total[name] + value
    return total


def weights_of(described: Features) -> float:
    """Numbers that the layers read besides their inputs, of the features of a unit."""
    return float(sum(described.get(f"{kind}_weights", 0.0) for kind in KINDS))


def kind_of(layer: LayerSpec) -> str:
    """One of `KINDS` for a call.

    A convolution of as many groups as input channels is depthwise, masked channels or not.
    """
    if layer.kind == "linear":
        return "linear"
    if layer.kind != "conv":
        return "other"
    if layer.groups > 1:
        return "depthwise" if float(layer.in_channels) <= layer.groups else "grouped"
    return "pointwise" if prod(layer.kernel) == 1 else "dense"


def _of(layer: LayerSpec) -> dict[str, Scalar]:
    if layer.kind == "parameter" and "Norm" in layer.role:
        return {"norm_weights": layer.numel}
    if not layer.is_call:
        return {}
    taps, places = prod(layer.kernel), prod(layer.out_size) * layer.batch
    values: dict[str, Scalar] = {
        "macs": MACs()(layer),
        "weights": layer.in_channels * layer.out_channels * taps / layer.groups,
        "inputs": layer.in_channels * prod(layer.in_size) * layer.batch,
        "outputs": layer.out_channels * places,
        "reads": layer.in_channels * taps * places,
        "calls": 1.0,
    }
    kind = kind_of(layer)
    return {f"{kind}_{quantity}": value for quantity, value in values.items()}
