"""Which whole networks are measured: some to calibrate the sum of units, others to check it."""

import random
from collections.abc import Mapping, Sequence
from math import prod

from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs
from nas.decision import Decision, decisions
from nas.errors import UserError
from nas.latency.unit import Units


def draw(
    model: nn.Module, space: str, units: Units, networks: int, calibrate: int, seed: int
) -> tuple[list[Arch], list[Arch]]:
    """Different random architectures, to calibrate on and to validate on.

    Those to validate on are drawn uniformly. Those to calibrate on are chosen among others, spread
    from few multiply-accumulates to many: ten in the middle would say little of the ends.

    Args:
        networks: of both sorts together; fewer where the space is small.

    Raises:
        UserError: numbers that cannot be.
    """
    if not 0 <= calibrate <= networks:
        raise UserError(f"calibrate={calibrate} must be from 0 to networks={networks}")
    own, generator = dict(decisions(model)), random.Random(seed)
    pool = _different(own, space, 2 * networks + 10 * calibrate, generator)
    calibrate = min(calibrate, len(pool) // 2)
    unseen, others = pool[: networks - calibrate], pool[networks - calibrate :]
    if len(others) < calibrate:  # a space of a few architectures
        unseen, others = pool[calibrate:], pool[:calibrate]
    work = {arch: _macs(own, units, arch) for arch in others}
    others.sort(key=lambda arch: work[arch])
    return _spread(others, calibrate), unseen


def indices(own: Mapping[str, Decision], choices: Mapping[str, object]) -> dict[str, int]:
    """Decision -> index of the option that `choices` takes."""
    return {name: decision.options.index(choices[name]) for name, decision in own.items()}


def _different(
    own: Mapping[str, Decision], space: str, count: int, generator: random.Random
) -> list[Arch]:
    count = min(count, prod(len(decision.options) for decision in own.values()))
    found: dict[Arch, None] = {}
    while len(found) < count:
        found[Arch(space, {name: generator.choice(d.options) for name, d in own.items()})] = None
    return list(found)


def _macs(own: Mapping[str, Decision], units: Units, arch: Arch) -> float:
    macs = MACs()
    keys = units.of(indices(own, arch.choices))
    return sum(float(macs(layer)) for key in keys for layer in units.by_key[key].layers)


def _spread(ordered: Sequence[Arch], count: int) -> list[Arch]:
    if count < 2:
        return list(ordered[len(ordered) // 2 :][:count])
    last = len(ordered) - 1
    return [ordered[round(i * last / (count - 1))] for i in range(count)]
