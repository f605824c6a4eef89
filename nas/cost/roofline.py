"""Bounds on time and energy from a device's figures: work against memory traffic.

Both costs share one traffic model. Weights come from the main memory once per call. The input and
the output of a layer stay on the chip if they fit there together, else both travel to and from the
main memory, once. Layers between (norms, activations, additions, pooling) are taken as fused into
the convolutions and products; biases are left out.
"""

from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor

from nas.cost.analytic import MACs
from nas.cost.base import LayerSpec, Scalar
from nas.cost.device import Device
from nas.cost.size import bits_of
from nas.errors import UserError


@dataclass(frozen=True)
class OnDevice:
    """How a network is run on a device, and what it moves there.

    Args:
        device: see `nas.cost.device`; in a config `${device}`, chosen with ``device=NAME``.
        dtype: number format of the arithmetic; by default the device's native one.
        weight_bits: width of a stored weight; by default that of `dtype`.
        activation_bits: width of an activation; by default that of `dtype`.

    Raises:
        UserError: no device, or it lacks a figure for `dtype`, or a width is not above 0.
    """

    device: Device | None = None
    dtype: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.device, Device):
            raise UserError(
                f"the cost {type(self).__name__.lower()} needs a device, got {self.device!r}: "
                "choose one with device=NAME, or nas.cost.device.load(FILE) in Python"
            )
        if self.dtype is not None:
            bits_of(self.dtype)
        for key in ("weight_bits", "activation_bits"):
            value = getattr(self, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and value > 0):
                raise UserError(f"{key}={value!r} must be a whole number above 0, or null")

    @property
    def target(self) -> Device:
        assert self.device is not None
        return self.device

    @property
    def format(self) -> str:
        """Number format of the arithmetic."""
        return self.dtype or self.target.native_dtype

    def weight_bytes(self, layer: LayerSpec) -> Scalar:
        """Bytes of weights that one call reads."""
        if not layer.is_call or layer.kind == "matmul":
            return 0
        pairs = layer.in_channels * layer.out_channels / layer.groups
        return pairs * prod(layer.kernel) * (self.weight_bits or bits_of(self.format)) / 8

    def activation_bytes(self, layer: LayerSpec) -> Scalar:
        """Bytes of the input (of both, for a product of activations) and of the output."""
        if not layer.is_call:
            return 0
        values = layer.in_channels * prod(layer.in_size) + layer.out_channels * prod(layer.out_size)
        if layer.kind == "matmul":
            values = values + layer.in_channels * layer.out_channels
        return values * layer.batch * (self.activation_bits or bits_of(self.format)) / 8

    def main_bytes(self, layer: LayerSpec) -> Scalar:
        """Bytes between the chip and the main memory."""
        activations = self.activation_bytes(layer)
        fits = _number(activations) <= self.target.on_chip_bytes
        return self.weight_bytes(layer) + (0 if fits else activations)


@dataclass(frozen=True)
class Roofline(OnDevice):
    """Lower bound on the seconds for one sample, layer by layer.

    ``max(operations / peak, bytes from and to the main memory / bandwidth)``, summed over calls
    (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009); the traffic is in `OnDevice`.
    Measured times are longer, by how much depends on the kernels.

    Raises:
        UserError: as `OnDevice`.
    """

    name: str = "roofline"
    unit: str = "s"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target.peak(self.format)

    def __call__(self, layer: LayerSpec) -> Scalar:
        compute = 2 * MACs()(layer) / self.target.peak(self.format)
        return _larger(compute, self.main_bytes(layer) / self.target.bandwidth_bytes_per_s)

    def intensity(self, layer: LayerSpec) -> Scalar:
        """Operations per byte of main memory traffic; infinite where there is none."""
        moved = self.main_bytes(layer)
        return 2 * MACs()(layer) / moved if _number(moved) > 0 else inf

    @property
    def ridge(self) -> float:
        """The intensity, in operations per byte, from which on arithmetic is the bound."""
        return self.target.peak(self.format) / self.target.bandwidth_bytes_per_s


@dataclass(frozen=True)
class Energy(OnDevice):
    """Joules for one sample: arithmetic, on-chip memory and main memory.

    Every byte of weights and activations is taken once through the on-chip memory; those that
    come from the main memory, see `OnDevice`, pay for that too. Leakage and idle time are left out
    unless the device's figures contain them.

    Raises:
        UserError: as `OnDevice`, or the device's file has no energies.
    """

    name: str = "energy"
    unit: str = "J"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.target.mac_energy(self.format)
        self.target.byte_energies()

    def __call__(self, layer: LayerSpec) -> Scalar:
        on_chip, main = self.target.byte_energies()
        touched = self.weight_bytes(layer) + self.activation_bytes(layer)
        arithmetic = MACs()(layer) * self.target.mac_energy(self.format)
        return (arithmetic + touched * on_chip + self.main_bytes(layer) * main) * 1e-12


def _number(value: Scalar) -> float:
    return float(value.detach() if isinstance(value, Tensor) else value)


def _larger(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a if _number(a) >= _number(b) else b
