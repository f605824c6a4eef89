"""The cost `latency`: seconds of a network on a profiled device."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

from torch import nn

from nas.cost.dry_run import Example
from nas.cost.expected import Expected
from nas.cost.polynomial import Polynomial, Term, reduced, weighted_sum
from nas.cost.trace import Trace
from nas.decision import Decision, decisions
from nas.errors import UserError
from nas.latency.network_model import KIND, NetworkModel, NetworksProfile
from nas.latency.profile import Profile, read_json
from nas.latency.units import Units, features, units_of, weights_of

LARGEST = 2**15  # architectures that are written out for a model that does not add up
_LISTED = 5  # missing keys that a message shows


class Latency:
    """Seconds of one call of the network, from a profile that `nas profile` wrote.

    ``offset + sum_units (scale * factor * seconds + per_unit)``: each unit's own measured time, and
    the correction that makes sums agree with whole networks.

    Args:
        profile: the profile's file.
        fallback: predict the units that the profile lacks by its regression, with a warning.
        expect_device: refuse a profile of another device than this; None: take any.

    Raises:
        UserError: no profile, one that cannot be read, or one of another device.
    """

    name = "latency"
    unit = "s"

    def __init__(
        self,
        profile: str | Path | Profile | NetworksProfile | None = None,
        fallback: bool = False,
        expect_device: str | None = None,
    ) -> None:
        if profile is None:
            raise UserError(
                "cost=latency needs a profile of the device: make one with `nas profile "
                "out=FILE`, and pass it as profile=FILE"
            )
        given = isinstance(profile, Profile | NetworksProfile)
        self.source = "the profile" if given else str(profile)
        self.profile = profile if isinstance(profile, Profile | NetworksProfile) else load(profile)
        self.fallback = fallback
        own = self.profile.device
        if expect_device is not None and expect_device != own:
            raise UserError(
                f"{self.source} was measured on device {own!r}, and the device chosen is "
                f"{expect_device!r}: take a profile of that device, or "
                "cost.latency.expect_device=null to use this one all the same"
            )

    def expected(self, model: nn.Module, example: Example | Trace) -> Expected:
        """The latency of the supernet `model`.

        Raises:
            UserError: the profile is of another space or input, or lacks units of `model`.
        """
        if isinstance(self.profile, NetworksProfile):
            return NetworkLatency(self.profile.model).expected(model, example)
        return ExpectedLatency(model, UnitSum(self.profile, self.source, self.fallback), example)


def load(path: str | Path) -> Profile | NetworksProfile:
    """Read a profile file, of units or of whole networks.

    Raises:
        UserError: no such file, or no profile.
    """
    raw = read_json(Path(path))
    if isinstance(raw, dict) and raw.get("kind") == KIND:
        return NetworksProfile.from_json(raw, str(path))
    return Profile.from_json(raw, str(path))


@dataclass(frozen=True)
class UnitSum:
    """The times of a model's units, from a profile of units.

    Args:
        source: the profile's file, for messages.
        fallback: predict the units that the profile lacks.
    """

    profile: Profile
    source: str = "the profile"
    fallback: bool = False

    def seconds(self, model: nn.Module, units: Units) -> dict[str, float]:
        """Uncorrected seconds of every unit that is to be paid for.

        Raises:
            UserError: the profile is of another space or input, or lacks units of `model`.
        """
        found = {key: u.seconds for key, u in self.profile.units.items() if key in units.to_measure}
        missing = [key for key in units.to_measure if key not in found]
        if not missing:
            return found
        if not self.fallback:
            raise UserError(self._lacks(model, missing, len(units.to_measure)))
        regression = self.profile.unit_model
        if regression is None:
            raise UserError(
                f"{self.source} holds too few units for a regression, so there is nothing to fall "
                "back to: profile this space"
            )
        logging.getLogger("nas").warning(
            "latency: %d of %d units are not in %s and are predicted by its %s regression",
            len(missing), len(units.to_measure), self.source, regression.kind,
        )  # fmt: skip
        for key in missing:
            described = features(units.by_key[key].layers)
            found[key] = float(regression.predict(described))
        return found

    def _lacks(self, model: nn.Module, missing: list[str], count: int) -> str:
        about = self.profile.about
        space = getattr(model, "name", type(model).__name__)
        shown = "; ".join(missing[:_LISTED])
        more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        return (
            f"{self.source} is of space {about.space!r} with inputs "
            f"{[list(shape) for shape in about.inputs]} and lacks {len(missing)} of the {count} "
            f"units of space {space!r}: {shown}{more}. Profile this space with these inputs, or "
            "let its regression predict them with cost.latency.fallback=true"
        )


class ExpectedLatency(Expected):
    """The latency of `model` under its present thetas, differentiable in every alpha.

    ``E = offset + sum_uses P(use) * (scale * factor * seconds + per_unit)``, P the product
    of the thetas of its condition (ProxylessNAS, Cai et al., 2019, Eq. 5). One-hot thetas give the
    corrected sum over that network's units. With a spill, the cost is the larger of two sums: this
    one, and this one plus ``per_weight * (weights - room)``.

    Raises:
        UserError: as `Latency.expected`.
    """

    def __init__(self, model: nn.Module, cost: UnitSum, example: Example | Trace) -> None:
        self.profile = cost.profile
        self.units = units_of(model, example, cost.profile.about.conditions)
        sums = self._sums(cost.seconds(model, self.units))
        super().__init__(model, Latency.name, Latency.unit, sums, self.units.options)

    def _sums(self, seconds: Mapping[str, float]) -> list[Polynomial]:
        correction = self.profile.correction
        uses = [use for use in self.units.uses if use.key in seconds]
        parts: list[tuple[float, Polynomial]] = [(correction.offset, {frozenset(): 1.0})]
        for use in uses:
            parts.append((correction.unit(use.key, seconds[use.key]), {use.condition: 1.0}))
        sums: list[Polynomial] = [weighted_sum(parts)]
        if correction.spill is not None:
            room, per_weight = correction.spill.room, correction.spill.per_weight
            parts.append((-per_weight * room, {frozenset(): 1.0}))
            for use in uses:
                weights = weights_of(features(self.units.by_key[use.key].layers))
                parts.append((per_weight * weights, {use.condition: 1.0}))
            sums.append(weighted_sum(parts))
        return sums


@dataclass(frozen=True)
class NetworkLatency:
    """Seconds of a whole network, by a model fitted to a table of them."""

    model: NetworkModel
    name: str = "latency"
    unit: str = "s"

    def expected(self, model: nn.Module, example: "Example | Trace") -> "ExpectedNetworkLatency":
        """The latency of the supernet `model`; nothing is run.

        Raises:
            UserError: its decisions, or options, are not those of the table; or it has too many
                architectures for a model that does not add up over decisions.
        """
        return ExpectedNetworkLatency(model, self)


class ExpectedNetworkLatency(Expected):
    """Mean over architectures, each with its probability; exact, and so differentiable.

    A model that adds up over decisions has one term for each option. For any other the
    architectures are written out, up to 32,768 of them.
    """

    def __init__(self, supernet: nn.Module, cost: NetworkLatency) -> None:
        self.cost = cost
        self._decisions = dict(decisions(supernet))
        self.options = {name: len(d.options) for name, d in self._decisions.items()}
        self._order = _matched(self._decisions, cost.model.encoding.options)
        terms = self._additive() if cost.model.additive else self._enumerated()
        super().__init__(supernet, cost.name, cost.unit, [terms], self.options)

    def _additive(self) -> dict[Term, float]:
        """The value of the first architecture, and what each other option adds to it."""
        texts = {name: list(map(str, self._decisions[name].options)) for name in self._order}
        base = tuple(texts[name][0] for name in self._order)
        choices, networks = [], [base]
        for place, name in enumerate(self._order):
            for index, option in enumerate(texts[name][1:], start=1):
                choices.append((name, index))
                networks.append((*base[:place], option, *base[place + 1 :]))
        first, *others = self.cost.model.predict(networks).tolist()
        terms: dict[Term, float] = {frozenset(): first}
        for choice, value in zip(choices, others, strict=True):
            terms[frozenset({choice})] = value - first
        return terms

    def _enumerated(self) -> dict[Term, float]:
        count = prod(self.options.values())
        if count > LARGEST:
            raise UserError(
                f"this space has {count} architectures, and a latency model that does not add up "
                f"over decisions can be searched with for at most {LARGEST}: fit one of the kinds "
                "counts or onehot, with nothing left out"
            )
        options = [list(enumerate(map(str, self._decisions[n].options))) for n in self._order]
        every = list(product(*options))
        values = self.cost.model.predict([tuple(o for _, o in taken) for taken in every]).tolist()
        terms: dict[Term, float] = {
            frozenset((n, k) for n, (k, _) in zip(self._order, taken, strict=True)): value
            for taken, value in zip(every, values, strict=True)
        }
        return reduced(terms, self.options) if count <= 256 else terms


def _matched(own: Mapping[str, Decision], known: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The supernet's decisions in the order of the model's.

    Raises:
        UserError: they are others, or have options that the table has not.
    """
    if set(own) != set(known):
        raise UserError(
            f"the latency model is of a space with the decisions {list(known)}, this one has "
            f"{list(own)}: fit it to a table of this space"
        )
    for name, decision in own.items():
        strange = [option for option in decision.options if str(option) not in known[name]]
        if strange:
            raise UserError(
                f"the table of the latency model has no network with {strange} at {name!r}, only "
                f"{list(known[name])}: add measured networks that do"
            )
    return list(known)
