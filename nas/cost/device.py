"""What a device can do, as its file in `configs/device` says, and bounds on time and energy there.

Both bounds share one traffic model. Weights come from the main memory once per call. The input and
the output of a layer stay on the chip if they fit there together; else both travel to and from the
main memory, once. Layers between (norms, activations, additions, pooling) are taken as fused into
the convolutions and products; biases are left out.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import inf, isfinite, prod
from pathlib import Path

import yaml

from nas.config.help import config_dir
from nas.cost.analytic import MACs, bits_of
from nas.cost.layer import LayerSpec
from nas.errors import UserError

_WHERE = "configs/device/*.yaml, or a file of your own in FOLDER/device with --config-dir FOLDER"


@dataclass(frozen=True)
class Device:
    """Peak rates, memory sizes and energies of a processor.

    One multiply-accumulate is two operations. Energies may be left out: a cost that needs
    one of them says so.

    Args:
        name: for messages.
        native_dtype: the number format that networks run in unless a cost says otherwise.
        peak_ops_per_s: number format -> operations per second.
        bandwidth_bytes_per_s: of the main memory, where the weights lie (flash or DRAM).
        on_chip_bytes: memory for activations that is read without touching the main memory.
        energy_pj_per_mac: number format -> picojoule per multiply-accumulate.
        energy_pj_per_on_chip_byte: picojoule per byte read from, or written to, on-chip memory.
        energy_pj_per_main_byte: the same for the main memory.
        notes: where the figures are from.

    Raises:
        UserError: a figure of the wrong type, negative, zero or not finite.
    """

    name: str
    native_dtype: str
    peak_ops_per_s: Mapping[str, float]
    bandwidth_bytes_per_s: float
    on_chip_bytes: int
    energy_pj_per_mac: Mapping[str, float] = field(default_factory=dict)
    energy_pj_per_on_chip_byte: float | None = None
    energy_pj_per_main_byte: float | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "native_dtype", "notes"):
            if not isinstance(getattr(self, key), str):
                raise self._wrong(key, getattr(self, key), "text")
        bits_of(self.native_dtype, f"device {self.name!r}: native_dtype")
        for key in ("bandwidth_bytes_per_s", "on_chip_bytes"):
            self._check_figure(key, getattr(self, key))
        for key in ("energy_pj_per_on_chip_byte", "energy_pj_per_main_byte"):
            if getattr(self, key) is not None:
                self._check_figure(key, getattr(self, key))
        for key in ("peak_ops_per_s", "energy_pj_per_mac"):
            self._check_table(key, getattr(self, key))
        self.peak(self.native_dtype)

    def peak(self, dtype: str) -> float:
        """Operations per second in that number format.

        Raises:
            UserError: the device's file has no such figure.
        """
        return self._figure("peak_ops_per_s", dtype)

    def mac_energy(self, dtype: str) -> float:
        """Picojoule per multiply-accumulate in that number format.

        Raises:
            UserError: as `peak`.
        """
        return self._figure("energy_pj_per_mac", dtype)

    def byte_energies(self) -> tuple[float, float]:
        """Picojoule per byte of on-chip and of main memory.

        Raises:
            UserError: as `peak`.
        """
        on_chip, main = self.energy_pj_per_on_chip_byte, self.energy_pj_per_main_byte
        for key, value in (
            ("energy_pj_per_on_chip_byte", on_chip),
            ("energy_pj_per_main_byte", main),
        ):
            if value is None:
                raise UserError(
                    f"device {self.name!r} has no {key}, which this cost needs: add "
                    f"`{key}: FIGURE` to its file ({_WHERE})"
                )
        assert on_chip is not None
        assert main is not None
        return on_chip, main

    def _figure(self, key: str, dtype: str) -> float:
        table: Mapping[str, float] = getattr(self, key)
        if dtype not in table:
            has = f" for {dtype!r}, only for {sorted(table)}: choose one of these as dtype, or"
            raise UserError(
                f"device {self.name!r} has no {key}{has if table else ', which this cost needs:'} "
                f"add `{key}: {{{dtype}: FIGURE}}` to its file ({_WHERE})"
            )
        return table[dtype]

    def _check_table(self, key: str, table: object) -> None:
        if not isinstance(table, Mapping):
            raise self._wrong(key, table, "a mapping, number format: figure")
        for dtype, value in table.items():
            bits_of(dtype, f"device {self.name!r}: key of {key}, dtype")
            self._check_figure(f"{key}.{dtype}", value)

    def _check_figure(self, key: str, value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
            raise self._wrong(
                key, value, "a number above 0 (an exponent needs point and sign: 5.0e+9)"
            )

    def _wrong(self, key: str, value: object, wanted: str) -> UserError:
        return UserError(f"device {self.name!r}: {key}={value!r} must be {wanted}")


def load(name: str | Path) -> Device:
    """The device of a YAML file, or a shipped one by its name, e.g. "cortex_m7".

    Raises:
        UserError: it cannot be read, or a key is missing, unknown, or of a wrong value.
    """
    shipped = {file.stem: file for file in (config_dir() / "device").glob("*.yaml")}
    path = shipped.get(str(name), Path(name))
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read the device file {path}: {' '.join(str(error).split())}; the shipped "
            f"devices are {sorted(shipped)}"
        ) from None
    if not isinstance(table, Mapping):
        raise UserError(f"{path} must hold the figures of a device, key: value; see {_WHERE}")
    given = {key: value for key, value in table.items() if key != "_target_"}
    known = {f.name: f for f in fields(Device)}
    needed = {n for n, f in known.items() if f.default is f.default_factory is MISSING}
    missing, unknown = sorted(needed - given.keys()), sorted(map(str, given.keys() - known))
    if missing or unknown:
        raise UserError(
            f"{path} lacks {missing} and has unknown keys {unknown}; a device has {list(known)}"
        )
    try:
        return Device(**given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


@dataclass(frozen=True)
class OnDevice:
    """How a network is run on a device, and what it moves there.

    Args:
        device: see `Device`; in a config `${device}`, chosen with ``device=NAME``.
        dtype: number format of the arithmetic; by default the device's native one.
        weight_bits: width of a stored weight of a layer that has none of its own; by default that
            of `dtype`.
        activation_bits: width of an activation, alike.

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
                "choose one with device=NAME, or nas.cost.device.load(NAME or FILE) in Python"
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
        """The device, which the constructor has made sure of."""
        assert self.device is not None
        return self.device

    @property
    def format(self) -> str:
        """Number format of the arithmetic."""
        return self.dtype or self.target.native_dtype

    def weight_bytes(self, layer: LayerSpec) -> float:
        """Bytes of weights that one call reads."""
        if not layer.is_call or layer.kind == "matmul":
            return 0
        pairs = layer.in_channels * layer.out_channels / layer.groups
        bits = layer.bits_weight or self.weight_bits or bits_of(self.format)
        return pairs * prod(layer.kernel) * bits / 8

    def activation_bytes(self, layer: LayerSpec) -> float:
        """Bytes of the input (of both, for a product of activations) and of the output."""
        if not layer.is_call:
            return 0
        read, made = (
            layer.in_channels * prod(layer.in_size),
            layer.out_channels * prod(layer.out_size),
        )
        if layer.kind == "matmul":
            read = read + layer.in_channels * layer.out_channels
        usual = self.activation_bits or bits_of(self.format)
        return (read * (layer.bits_in or usual) + made * usual) * layer.batch / 8

    def main_bytes(self, layer: LayerSpec) -> float:
        """Bytes between the chip and the main memory."""
        activations = self.activation_bytes(layer)
        fits = activations <= self.target.on_chip_bytes
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

    def __call__(self, layer: LayerSpec) -> float:
        compute = 2 * MACs()(layer) / self.target.peak(self.format)
        return max(compute, self.main_bytes(layer) / self.target.bandwidth_bytes_per_s)

    def intensity(self, layer: LayerSpec) -> float:
        """Operations per byte of main memory traffic; infinite where there is none."""
        moved = self.main_bytes(layer)
        return 2 * MACs()(layer) / moved if moved > 0 else inf

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

    def __call__(self, layer: LayerSpec) -> float:
        on_chip, main = self.target.byte_energies()
        touched = self.weight_bytes(layer) + self.activation_bytes(layer)
        arithmetic = MACs()(layer) * self.target.mac_energy(self.format)
        return (arithmetic + touched * on_chip + self.main_bytes(layer) * main) * 1e-12
