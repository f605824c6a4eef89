"""Measurements -> profile: the regression, the correction, and how right both are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.latency.accuracy import Accuracy, accuracy
from nas.latency.calibrate import Calibration, calibrate
from nas.latency.correction import Correction, Network
from nas.latency.features import weights_of
from nas.latency.models import FitReport, Sample, fit_best
from nas.latency.profile import About, NetworkTime, Profile, UnitTime

FEWEST = 3  # units of which a regression is chosen


@dataclass(frozen=True)
class Whole:
    """A whole network and its time.

    Attributes:
        keys: the units it executes and pays for, repetitions included.
        role: one of `nas.latency.profile.ROLES`.
    """

    choices: Mapping[str, Any]
    keys: Sequence[str]
    seconds: float
    role: str
    timing: Mapping[str, Any]


def fit_profile(
    about: About, units: Mapping[str, UnitTime], wholes: Sequence[Whole], quiet: Mapping[str, Any]
) -> Profile:
    """Fit what `units` and the calibration networks say; check it on the validation networks.

    Raises:
        UserError: figures that nothing can be fitted to.
    """
    measured = [_network(whole, units) for whole in wholes]
    calibration = _calibrated([n for n, w in zip(measured, wholes, strict=True) if _calibrates(w)])
    corrected = [
        NetworkTime(
            whole.choices,
            whole.seconds,
            network.total,
            calibration.correction(network),
            whole.role,
            sum(_macs(units[key]) for key in whole.keys),
            whole.timing,
        )
        for whole, network in zip(wholes, measured, strict=True)
    ]
    unseen = [network for network in corrected if network.role == "validation"]
    report = _regression(units)
    return Profile(
        about,
        units,
        tuple(corrected),
        None if report is None else report.regression,
        {} if report is None else report.scores,
        calibration.correction,
        calibration.errors,
        _accuracy([n.predicted for n in unseen], unseen),
        _accuracy([n.total for n in unseen], unseen),
        quiet,
    )


def _network(whole: Whole, units: Mapping[str, UnitTime]) -> Network:
    uses = Counter(whole.keys)
    parts = {key: count * units[key].seconds for key, count in uses.items()}
    weights = sum(count * weights_of(units[key].features) for key, count in uses.items())
    return Network(parts, len(whole.keys), whole.seconds, weights)


def _calibrates(whole: Whole) -> bool:
    return whole.role == "calibration"


def _macs(unit: UnitTime) -> float:
    return sum(value for name, value in unit.features.items() if name.endswith("_macs"))


def _calibrated(networks: Sequence[Network]) -> Calibration:
    return calibrate(networks) if networks else Calibration(Correction(), "nothing", {})


def _regression(units: Mapping[str, UnitTime]) -> FitReport | None:
    if len(units) < FEWEST:
        return None
    return fit_best([Sample(key, dict(u.features), u.seconds) for key, u in units.items()])


def _accuracy(predicted: Sequence[float], networks: Sequence[NetworkTime]) -> Accuracy | None:
    return accuracy(predicted, [n.seconds for n in networks]) if networks else None
