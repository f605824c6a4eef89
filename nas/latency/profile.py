"""The profile of a space on a device: what was measured, what was fitted to it, how right it is."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import UserError
from nas.latency.accuracy import Accuracy
from nas.latency.correction import Correction
from nas.latency.key import Conditions
from nas.latency.models import Model, model_from_json
from nas.latency.stored import Stored
from nas.reading import PROFILE
from nas.reading import read_json as read_value
from nas.run import write_json

SCHEMA = 1
ROLES = ("calibration", "validation")


@dataclass(frozen=True)
class About:
    """What was measured, on what, and how.

    Attributes:
        inputs: shapes of the model's inputs for one sample, batch dimension included.
        device: as the user calls it.
        machine: the processor as its system calls it; "" where the figures came from elsewhere.
    """

    space: str
    inputs: tuple[tuple[int, ...], ...]
    device: str
    machine: str
    runtime: str
    accelerator: str
    conditions: Conditions
    versions: Mapping[str, str]
    date: str

    def to_json(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "inputs": [list(shape) for shape in self.inputs],
            "device": self.device,
            "machine": self.machine,
            "runtime": self.runtime,
            "accelerator": self.accelerator,
            "batch": self.conditions.batch,
            "dtype": self.conditions.dtype,
            "threads": self.conditions.threads,
            "versions": dict(self.versions),
            "date": self.date,
        }

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "About":
        """Read what `to_json` wrote.

        Raises:
            UserError: a field is missing or of the wrong type.
        """
        stored = Stored(raw, where)
        texts = {
            key: stored.text(key)
            for key in ("space", "device", "machine", "runtime", "accelerator", "date")
        }
        inputs, versions = raw.get("inputs"), raw.get("versions")
        if not (isinstance(inputs, list) and all(map(_is_shape, inputs))):
            raise UserError(f"{where}: inputs={inputs!r} must be a list of shapes")
        if not isinstance(versions, dict):
            raise UserError(f"{where}: versions={versions!r} must be an object")
        conditions = Conditions(raw.get("batch"), raw.get("dtype"), raw.get("threads"))
        shapes = tuple(tuple(shape) for shape in inputs)
        return cls(**texts, inputs=shapes, conditions=conditions, versions=versions)


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)


@dataclass(frozen=True)
class UnitTime:
    """Seconds of one unit, the features a regression sees of it, and how it was timed."""

    seconds: float
    features: Mapping[str, float]
    timing: Mapping[str, Any] = field(default_factory=dict)  # see `nas.latency.measure.Timing`


@dataclass(frozen=True)
class NetworkTime:
    """Seconds of one whole network, measured and predicted.

    Attributes:
        total: sum of the times of its units; `predicted` is that, corrected.
        role: one of `ROLES`.
        macs: multiply-accumulates of its units, to compare with.
    """

    choices: Mapping[str, Any]
    seconds: float
    total: float
    predicted: float
    role: str
    macs: float
    timing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A profile file in memory.

    Attributes:
        regression: for units that were not measured.
        scores: kind of regression -> accuracy on units left out, by cross-validation.
        correction: from the sum over units to a whole network.
        networks_accuracy: on the networks that nothing was fitted to; None: there are none.
        sum_accuracy: of the plain sum of the measured units, on the same networks.
        quiet: see `nas.latency.machine.quietness`; empty where the figures came from elsewhere.
    """

    about: About
    units: Mapping[str, UnitTime]
    networks: tuple[NetworkTime, ...]
    regression: Model | None
    scores: Mapping[str, Accuracy]
    correction: Correction
    corrections: Mapping[str, float]
    networks_accuracy: Accuracy | None
    sum_accuracy: Accuracy | None
    quiet: Mapping[str, Any]

    @property
    def device(self) -> str:
        """As the user calls it."""
        return self.about.device

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "unit": "s",
            **self.about.to_json(),
            "units": {key: _plain(unit) for key, unit in self.units.items()},
            "networks": [_plain(network) for network in self.networks],
            "regression": None if self.regression is None else self.regression.to_json(),
            "correction": self.correction.to_json(),
            "validation": {
                "units": {kind: score.to_json() for kind, score in self.scores.items()},
                "corrections": dict(self.corrections),
                "networks": _score(self.networks_accuracy),
                "sum_of_units": _score(self.sum_accuracy),
            },
            "quiet": dict(self.quiet),
        }

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        try:
            write_json(path, self.to_json())
        except OSError as error:
            raise UserError(
                f"cannot write {path} ({error.strerror}); choose another out=FILE"
            ) from None

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read and check a profile file.

        Raises:
            UserError: no such file, no profile, another schema, or a figure that cannot be.
        """
        return cls.from_json(read_json(path), str(path))

    @classmethod
    def from_json(cls, raw: Any, where: str) -> "Profile":
        """As `load`; `where` is for messages."""
        stored = Stored(raw, where)
        if raw.get("schema") != SCHEMA:
            raise UserError(
                f"{where} has schema {raw.get('schema')!r}, this version of nas reads {SCHEMA}: "
                "write it with `nas profile`"
            )
        if stored.text("unit") != "s":
            raise UserError(f"{where}: unit={raw['unit']!r} must be 's', seconds")
        validation = stored.child("validation")
        regression = raw.get("regression")
        return cls(
            About.from_json(raw, where),
            dict(_units(raw.get("units"), where)),
            tuple(_networks(raw.get("networks"), where)),
            None if regression is None else model_from_json(regression),
            _scores(raw["validation"].get("units"), where),
            Correction.from_json(raw.get("correction")),
            validation.table("corrections"),
            _accuracy(raw["validation"].get("networks"), where),
            _accuracy(raw["validation"].get("sum_of_units"), where),
            raw.get("quiet") or {},
        )


def read_json(path: Path) -> Any:
    """The content of a JSON file of the user's.

    Raises:
        UserError: there is none, or it is not JSON.
    """
    try:
        return read_value(path, PROFILE)
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): make a profile with `nas profile out={path}`"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); make it with `nas profile`") from None


def _plain(item: UnitTime | NetworkTime) -> dict[str, Any]:
    return {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in vars(item).items()
    }


def _score(accuracy: Accuracy | None) -> dict[str, float] | None:
    return None if accuracy is None else accuracy.to_json()


def _units(raw: Any, where: str) -> Iterator[tuple[str, UnitTime]]:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: units must be an object, key -> measurement")
    for key, row in raw.items():
        stored = Stored(row, f"{where}: unit {key!r}")
        yield key, UnitTime(_seconds(stored), stored.table("features"), row.get("timing") or {})


def _networks(raw: Any, where: str) -> Iterator[NetworkTime]:
    if not isinstance(raw, list):
        raise UserError(f"{where}: networks must be a list")
    for index, row in enumerate(raw):
        stored = Stored(row, f"{where}: network {index}")
        choices, role = row.get("choices"), stored.text("role")
        if not isinstance(choices, dict) or role not in ROLES:
            raise UserError(
                f"{where}: network {index} must have choices and a role of {list(ROLES)}"
            )
        total, predicted = stored.number("total"), stored.number("predicted")
        timing = row.get("timing") or {}
        macs = stored.number("macs")
        yield NetworkTime(choices, _seconds(stored), total, predicted, role, macs, timing)


def _seconds(stored: Stored) -> float:
    seconds = stored.number("seconds")
    if seconds <= 0:
        raise UserError(f"{stored.what}: seconds={seconds} must be above 0")
    return seconds


def _scores(raw: Any, where: str) -> dict[str, Accuracy]:
    if not isinstance(raw, dict):
        raise UserError(f"{where}: validation.units must be an object")
    found = {kind: _accuracy(row, where) for kind, row in raw.items()}
    return {kind: score for kind, score in found.items() if score is not None}


def _accuracy(raw: Any, where: str) -> Accuracy | None:
    if raw is None:
        return None
    stored = Stored(raw, f"{where}: validation")
    names = ("mape", "within_5", "within_10", "kendall", "spearman")
    return Accuracy(int(stored.number("count")), *(stored.number(name) for name in names))
