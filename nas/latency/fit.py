"""Measurements -> profile: the regression, the correction, and how right both are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nas.latency.accuracy import Accuracy, accuracy
from nas.latency.correction import Calibration, Correction, Network, calibrate
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
    networks = [_summed(whole, units) for whole in wholes]
    counts = [len(whole.keys) for whole in wholes]
    calibration = _calibrated(networks, counts)
    corrected = [
        replace(network, predicted=float(calibration.correction(network.total, count)))
        for network, count in zip(networks, counts, strict=True)
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


def _summed(whole: Whole, units: Mapping[str, UnitTime]) -> NetworkTime:
    total = sum(units[key].seconds for key in whole.keys)
    macs = sum(_macs(units[key]) for key in whole.keys)
    return NetworkTime(whole.choices, whole.seconds, total, total, whole.role, macs, whole.timing)


def _macs(unit: UnitTime) -> float:
    return sum(value for name, value in unit.features.items() if name.endswith("_macs"))


def _calibrated(networks: Sequence[NetworkTime], counts: Sequence[int]) -> Calibration:
    chosen = [
        Network(network.total, count, network.seconds)
        for network, count in zip(networks, counts, strict=True)
        if network.role == "calibration"
    ]
    return calibrate(chosen) if chosen else Calibration(Correction(), "nothing", {})


def _regression(units: Mapping[str, UnitTime]) -> FitReport | None:
    if len(units) < FEWEST:
        return None
    return fit_best([Sample(key, dict(u.features), u.seconds) for key, u in units.items()])


def _accuracy(predicted: Sequence[float], networks: Sequence[NetworkTime]) -> Accuracy | None:
    return accuracy(predicted, [n.seconds for n in networks]) if networks else None
