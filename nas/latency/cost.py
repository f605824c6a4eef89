"""The cost `latency`: seconds of a network on a profiled device."""

import logging
from collections.abc import Mapping
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
from nas.latency.models import NetworkModel
from nas.latency.profile import NetworksProfile, Profile, load_profile
from nas.latency.units import Units, features, runs_unused, units_of, weights_of

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
        self.source = str(profile) if isinstance(profile, str | Path) else "the profile"
        read = load_profile(Path(profile)) if isinstance(profile, str | Path) else profile
        self.profile: Profile | NetworksProfile = read
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
            return ExpectedNetworkLatency(model, self.profile.model)
        about = self.profile.about
        units = units_of(model, example, about.conditions, runs_unused(about.runtime))
        return ExpectedLatency(
            model, self.profile, units, self._seconds(self.profile, model, units)
        )

    def _seconds(self, profile: Profile, model: nn.Module, units: Units) -> dict[str, float]:
        """Uncorrected seconds of every unit that takes time."""
        found = {key: u.seconds for key, u in profile.units.items() if key in units.to_measure}
        missing = [key for key in units.to_measure if key not in found]
        if not missing:
            return found
        if not self.fallback:
            raise UserError(self._lacks(profile, model, missing, len(units.to_measure)))
        regression = profile.unit_model
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
            found[key] = regression.predict(features(units.by_key[key].layers))
        return found

    def _lacks(self, profile: Profile, model: nn.Module, missing: list[str], count: int) -> str:
        space = getattr(model, "name", type(model).__name__)
        shown = "; ".join(missing[:_LISTED])
        more = f"; and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        return (
            f"{self.source} is of space {profile.about.space!r} with inputs "
            f"{[list(shape) for shape in profile.about.inputs]} and lacks {len(missing)} of the "
            f"{count} units of space {space!r}: {shown}{more}. Profile this space with these "
            "inputs, or let its regression predict them with cost.latency.fallback=true"
        )


class ExpectedLatency(Expected):
    """The latency of `model` under its present thetas, differentiable in every alpha.

    ``E = offset + sum_uses P(use) * (scale * factor * seconds + per_unit)``, P the product
    of the thetas of its condition (ProxylessNAS, Cai et al., 2019, Eq. 5). One-hot thetas give the
    corrected sum over that network's units. With a spill, the cost is the larger of two sums: this
    one, and this one plus ``per_weight * (weights - room)``.

    Args:
        seconds: unit -> its time alone, not corrected.
    """

    def __init__(
        self, model: nn.Module, profile: Profile, units: Units, seconds: Mapping[str, float]
    ) -> None:
        self.profile, self.units = profile, units
        super().__init__(model, Latency.name, Latency.unit, self._sums(seconds), units.options)

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


class ExpectedNetworkLatency(Expected):
    """The mean over architectures, weighted by their probabilities; exact and differentiable.

    A model that adds up over decisions has one term for each option. For any other the
    architectures are written out, up to 32,768 of them. Nothing is run.

    Raises:
        UserError: the decisions of `supernet`, or their options, are not those of the table; or it
            has too many architectures for a model that does not add up over decisions.
    """

    def __init__(self, supernet: nn.Module, model: NetworkModel) -> None:
        self.latency_model = model
        self._decisions = dict(decisions(supernet))
        self.options = {name: len(d.options) for name, d in self._decisions.items()}
        self._order = _matched(self._decisions, model.encoding.options)
        terms = self._additive() if model.additive else self._enumerated()
        super().__init__(supernet, Latency.name, Latency.unit, [terms], self.options)

    def _additive(self) -> dict[Term, float]:
        """The value of the first architecture, and what each other option adds to it."""
        texts = {name: list(map(str, self._decisions[name].options)) for name in self._order}
        base = tuple(texts[name][0] for name in self._order)
        choices, networks = [], [base]
        for place, name in enumerate(self._order):
            for index, option in enumerate(texts[name][1:], start=1):
                choices.append((name, index))
                networks.append((*base[:place], option, *base[place + 1 :]))
        first, *others = self.latency_model.predict(networks).tolist()
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
        values = self.latency_model.predict(
            [tuple(o for _, o in taken) for taken in every]
        ).tolist()
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
