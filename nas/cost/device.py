"""What a device can do, as read from its file in `configs/device`."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from pathlib import Path

import yaml

from nas.cost.size import bits_of
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


def load(path: Path) -> Device:
    """The device of a YAML file.

    Raises:
        UserError: it cannot be read, or a key is missing, unknown, or of a wrong value.
    """
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read the device file {path}: {' '.join(str(error).split())}"
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
