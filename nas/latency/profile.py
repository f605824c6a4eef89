"""The profile of a space on a device: measurements, what was fitted to them, and its accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat

from nas.artifacts.files import write_json
from nas.artifacts.reading import PROFILE, decode
from nas.artifacts.reading import read_json as read_value
from nas.errors import UserError
from nas.latency.calibrate import (
    Calibration,
    Correction,
    MeasuredNetwork,
    Role,
    calibrate,
    sum_of,
)
from nas.latency.models import FEWEST, NetworkModel, UnitModel, UnitTime, fit_units
from nas.latency.predict import Accuracy, accuracy
from nas.latency.units import Conditions, Dtype

SCHEMA = 2
KIND = "rows"  # in a file of whole networks; one of units has no such field
Size = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class About:
    """What was measured, on what, and how.

    Attributes:
        inputs: shapes of the model's inputs for one sample, batch dimension included.
        device: as the user calls it.
        machine: the processor as its system calls it; "" where the figures came from elsewhere.
    """

    space: str
    inputs: tuple[tuple[Size, ...], ...]
    device: str
    machine: str
    runtime: str
    accelerator: str
    batch: Size
    dtype: Dtype
    threads: Size
    versions: Mapping[str, str]
    date: str

    @property
    def conditions(self) -> Conditions:
        """How units were run."""
        return Conditions(self.batch, self.dtype, self.threads)


@dataclass(frozen=True)
class Validation:
    """How accurate the profile is.

    Attributes:
        units: kind of model -> accuracy on units left out, by cross-validation.
        corrections: form of correction -> mean relative error on networks left out.
        networks: of the corrected sum, on networks that nothing was fitted to; None without any.
        sum_of_units: of the plain sum of the measured units, on the same networks.
    """

    units: Mapping[str, Accuracy] = field(default_factory=dict)
    corrections: Mapping[str, FiniteFloat] = field(default_factory=dict)
    networks: Accuracy | None = None
    sum_of_units: Accuracy | None = None


@dataclass(frozen=True)
class Profile:
    """A profile file in memory.

    Attributes:
        regression: for units that were not measured; None: too few were, or the file is old.
        correction: from the sum over units to a whole network.
        measurement_quality: see `nas.latency.log.measurement_quality`; empty where the figures came
            from elsewhere.
    """

    about: About
    units: Mapping[str, UnitTime]
    networks: tuple[MeasuredNetwork, ...] = ()
    regression: UnitModel | None = None
    correction: Correction = field(default_factory=Correction)
    validation: Validation = field(default_factory=Validation)
    measurement_quality: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """As the user calls it."""
        return self.about.device

    def of_role(self, role: Role) -> list[MeasuredNetwork]:
        """The networks of one of `nas.latency.calibrate.Role`."""
        return [network for network in self.networks if network.role == role]

    @property
    def unit_model(self) -> UnitModel | None:
        """The regression; of a file that has none it is fitted to the units here."""
        if self.regression is None and len(self.units) >= FEWEST:
            return fit_units(self.units).model
        return self.regression

    def to_json(self) -> dict[str, Any]:
        """JSON values; what `About` says stands at the top."""
        content = asdict(self)
        return {"schema": SCHEMA, "unit": "s", **content.pop("about"), **content}

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        _save(self.to_json(), path)

    @classmethod
    def load(cls, path: Path) -> "Profile":
        """Read and check a profile file of units; as `load_profile`."""
        profile = load_profile(path)
        if not isinstance(profile, cls):
            raise UserError(f"{path} is of whole networks: it holds no units")
        return profile


@dataclass(frozen=True)
class NetworksProfile:
    """A profile file of whole networks: a model fitted to a table of them.

    Attributes:
        chosen, errors: see `nas.latency.models.NetworkFit`.
        rows: how many of the table were used; `dropped` were implausible.
    """

    space: str
    device: str
    model: NetworkModel
    chosen: str
    errors: Mapping[str, FiniteFloat]
    rows: Annotated[int, Field(ge=0)]
    dropped: Annotated[int, Field(ge=0)]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            UserError: it cannot be written.
        """
        _save({"schema": SCHEMA, "kind": KIND, "unit": "s", **asdict(self)}, path)


def load_profile(path: Path) -> Profile | NetworksProfile:
    """Read and check a profile file, of units or of whole networks.

    Raises:
        UserError: no such file, no profile, another schema, or a value that cannot be.
    """
    raw = read_json(path)
    schema = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
    networks = isinstance(raw, dict) and raw.get("kind") == KIND
    if schema != SCHEMA and (networks or schema != 1):
        again = (
            "fit the table again with `nas profile import_csv=FILE`"
            if networks
            else "write it with `nas profile`"
        )
        raise UserError(
            f"{path} has schema {schema!r}, this version of nas reads {SCHEMA}: {again}"
        )
    if networks:
        return decode(NetworksProfile, raw, str(path))
    if raw.get("unit") != "s":
        raise UserError(f"{path}: unit={raw.get('unit')!r} must be 's', seconds")
    if schema == 1:  # of version 0.1: its regression has another form, `unit_model` fits one anew
        raw |= {"regression": None, "measurement_quality": raw.get("quiet") or {}}
    return decode(Profile, {**raw, "about": raw}, str(path))


def _save(content: Mapping[str, Any], path: Path) -> None:
    try:
        write_json(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror}); choose another out=FILE"
        ) from None


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


def fit_profile(
    about: About,
    units: Mapping[str, UnitTime],
    networks: Sequence[MeasuredNetwork],
    quality: Mapping[str, Any],
) -> Profile:
    """Fit what `units` and the calibration networks say; check it on the validation networks.

    Raises:
        UserError: figures that nothing can be fitted to.
    """
    calibration = Calibration(Correction(), "nothing", {})
    if to_calibrate := [network for network in networks if network.role == "calibration"]:
        calibration = calibrate(to_calibrate, units)
    corrected = tuple(
        replace(
            network,
            total=sum_of(network.uses, units),
            predicted=calibration.correction(network.uses, units),
            macs=sum(n * _macs(units[key]) for key, n in network.uses.items()),
        )
        for network in networks
    )
    unseen = [network for network in corrected if network.role == "validation"]
    fitted = fit_units(units) if len(units) >= FEWEST else None
    validation = Validation(
        {} if fitted is None else fitted.scores,
        calibration.errors,
        _accuracy([n.predicted for n in unseen], unseen),
        _accuracy([n.total for n in unseen], unseen),
    )
    model = None if fitted is None else fitted.model
    return Profile(about, units, corrected, model, calibration.correction, validation, quality)


def _macs(unit: UnitTime) -> float:
    return sum(value for name, value in unit.features.items() if name.endswith("_macs"))


def _accuracy(predicted: Sequence[float], unseen: Sequence[MeasuredNetwork]) -> Accuracy | None:
    return accuracy(predicted, [n.seconds for n in unseen]) if unseen else None
