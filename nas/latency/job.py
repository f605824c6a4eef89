"""`nas profile`: measure a space on this machine, fit, validate, write the profile."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from math import prod
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nas.arch import Arch
from nas.config.schema import Count, Name, Positive, Seed, Threads, Whole, checked
from nas.cost.analytic import MACs
from nas.cost.dry_run import Example, inputs_of
from nas.cost.recorder import tensors
from nas.decision import Decision, decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.latency.calibrate import MeasuredNetwork, Role
from nas.latency.log import MeasurementLog, measurement_quality
from nas.latency.measure import Job, Schedule, Tell, measure, timing
from nas.latency.profile import About, Profile, fit_profile, uses_of
from nas.latency.runtimes import (
    Call,
    Inputs,
    Runtime,
    copy_to_measure,
    inputs_like,
    machine_load,
    machine_name,
    runtime,
    versions_of,
)
from nas.latency.unit_model import UnitTime
from nas.latency.units import Conditions, Unit, Units, features, indices, units_of

# Kept ready and interleaved: the more, the less a slow minute matters. Their weights are in memory.
UNITS_AT_ONCE, NETWORKS_AT_ONCE = 256, 64
BYTES_AT_ONCE = 2**31


@checked("measure")
@dataclass(frozen=True)
class Measuring:
    """What to measure of a space, and how.

    Args:
        runtime: one of `nas.latency.runtimes.RUNTIMES`.
        accelerator: "cpu" or "cuda".
        threads, batch, dtype: see `nas.latency.units.Conditions`.
        device: what the profile calls the device; None: the processor's own name.
        networks: whole networks to measure, of which `calibrate` calibrate the sum of units; the
            others are only to validate it.
        seconds: time budget of the timing; calls are fewer, down to 20 of each, where it is short.
        calls: of each unit and network, where time allows.

    Raises:
        UserError: a number out of range.
    """

    runtime: str = "torch"
    accelerator: str = "cpu"
    threads: Threads = 1
    batch: Count = 1
    dtype: str = "float32"
    device: Name | None = None
    networks: Whole = 50
    calibrate: Whole = 20
    seconds: Positive = 600.0
    calls: Count = 1000
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.calibrate > self.networks:
            raise UserError(
                f"calibrate={self.calibrate} must be from 0 to networks={self.networks}"
            )
        _ = self.conditions  # they check themselves

    @property
    def conditions(self) -> Conditions:
        """How units are run."""
        return Conditions(self.batch, self.dtype, self.threads)

    def measure(self, model: nn.Module, example: Example, log: Path) -> Profile:
        """Measure what the file `log` does not hold yet, and fit everything.

        Raises:
            UserError: a runtime that is not installed, or a log of other measurements.
        """
        before = machine_load()
        ready = runtime(self.runtime, self.accelerator, self.conditions)
        model = model.eval()
        work = Work(self, model, example, ready)
        written = MeasurementLog(log, asdict(work.about))
        if all(written.done(name) for name in work.names):
            return work.fit(written, None)  # how busy the machine was then is not known
        work.measure(written)
        return work.fit(written, before)


class Work:
    """The units and the networks of one space that `plan` measures."""

    def __init__(self, plan: Measuring, model: nn.Module, example: Example, ready: Runtime) -> None:
        self.plan, self.model, self.runtime = plan, model, ready
        self.inputs = tensors(inputs_of(example, model))
        self.units: Units = units_of(model, self.inputs, plan.conditions)
        self.space = str(getattr(model, "name", type(model).__name__))
        self.calibration, self.validation = draw(
            model, self.space, self.units, plan.networks, plan.calibrate, plan.seed
        )
        self.about = about_of(plan, self.space, self.inputs, ready)

    @property
    def archs_of_role(self) -> dict[Role, list[Arch]]:
        """The networks to calibrate on, and those to validate on."""
        return {"calibration": self.calibration, "validation": self.validation}

    @property
    def archs(self) -> list[Arch]:
        return [*self.calibration, *self.validation]

    @property
    def names(self) -> list[str]:
        """What is measured, as the log calls it."""
        return [*self.units.to_measure, *map(name_of, self.archs)]

    def measure(self, log: MeasurementLog) -> None:
        """Time every unit, then every network, half of the time budget for each."""
        schedule = Schedule(most=self.plan.calls, least=min(20, self.plan.calls))
        units = [
            Job(key, lambda unit=unit: self.prepare_unit(unit))  # type: ignore[misc]
            for key, unit in self.units.to_measure.items()
        ]
        networks = [
            Job(name_of(arch), lambda arch=arch: self.prepare_network(arch))  # type: ignore[misc]
            for arch in self.archs
        ]
        half = self.plan.seconds / 2 if networks else 0.0
        with progress_bars() as bar:
            left = measure(
                units, log, self.plan.seconds - half, schedule, bar("units"), UNITS_AT_ONCE
            )
            bar_of_networks = bar("whole networks")
            measure(networks, log, half + left, schedule, bar_of_networks, self._at_once())

    def fit(self, log: MeasurementLog, load_before: float | None) -> Profile:
        """The profile of what `log` holds."""
        own = dict(decisions(self.model))
        units = {
            key: _unit_time(unit, log.normalized_times(key))
            for key, unit in self.units.to_measure.items()
        }
        networks = []
        for role, archs in self.archs_of_role.items():
            for arch in archs:
                found = timing(log.normalized_times(name_of(arch)))
                uses = uses_of(self.units.of(indices(own, arch.choices)))
                choices, times = dict(arch.choices), asdict(found)
                networks.append(MeasuredNetwork(choices, found.seconds, uses, role, times))
        timings = [*(u.timing for u in units.values()), *(n.timing for n in networks)]
        repeats = [ratio for name in self.names for ratio in _repeat(log, name)]
        quality = measurement_quality(log.references, load_before, repeats)
        quality |= {key: sum(t[key] for t in timings) for key in ("outliers", "calls")}
        quality["unstable"] = sum(not found["stable"] for found in timings)
        return fit_profile(self.about, units, networks, quality)

    def _at_once(self) -> int:
        # The supernet is larger than any of its networks.
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return max(4, min(NETWORKS_AT_ONCE, BYTES_AT_ONCE // max(1, size)))

    def prepare_unit(self, unit: Unit) -> Call:
        """A unit in the runtime, ready to be called."""
        inputs = inputs_like(unit.inputs, unit.dtypes, self.plan.conditions)
        return self.runtime.prepare(copy_to_measure(unit.module, self.plan.conditions), inputs)

    def prepare_network(self, arch: Arch) -> Call:
        """A whole network in the runtime, ready to be called."""
        return self.runtime.prepare(self.network(arch), self.network_inputs())

    def network(self, arch: Arch) -> nn.Module:
        """The plain network of `arch`, in eval mode and of the number format to measure in."""
        return copy_to_measure(discretize(self.model, arch), self.plan.conditions)

    def network_inputs(self) -> Inputs:
        """The inputs that a whole network is run on."""
        shapes = tuple(tuple(x.shape) for x in self.inputs)
        return inputs_like(shapes, tuple(x.dtype for x in self.inputs), self.plan.conditions)


def about_of(plan: Measuring, space: str, inputs: Sequence[Tensor], ready: Runtime) -> About:
    """Describes a profile that is measured on this machine."""
    machine = machine_name(plan.accelerator)
    return About(
        space,
        tuple(tuple(x.shape) for x in inputs),
        plan.device or machine,
        machine,
        plan.runtime,
        plan.accelerator,
        plan.batch,
        plan.dtype,
        plan.threads,
        versions_of(ready.packages),
        datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def name_of(arch: Arch) -> str:
    """What a network is called in the log of measurements."""
    return f"network {arch.hash}"


def _unit_time(unit: Unit, nanoseconds: Sequence[float]) -> UnitTime:
    found = timing(nanoseconds)
    described = {name: float(value) for name, value in features(unit.layers).items()}
    return UnitTime(found.seconds, described, asdict(found))


def _repeat(log: MeasurementLog, name: str) -> list[float]:
    """The time in the first half of the rounds over that in the second; empty for one round."""
    middle = len(log.rows.get(name, [])) // 2
    halves = [log.normalized_times(name, part) for part in (slice(middle), slice(middle, None))]
    return [timing(halves[0]).seconds / timing(halves[1]).seconds] if all(halves) else []


@contextmanager
def progress_bars() -> Iterator[Callable[[str], Tell]]:
    """Progress bars with the time left; each is called with ``(done, total)``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not sys.stderr.isatty(), transient=True) as progress:

        def bar(description: str) -> Callable[[int, int], None]:
            task = progress.add_task(description)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar


def draw(
    model: nn.Module, space: str, units: Units, networks: int, calibrate: int, seed: int
) -> tuple[list[Arch], list[Arch]]:
    """Different random architectures, to calibrate on and to validate on.

    Those to validate on are drawn uniformly. Those to calibrate on are spread from few
    multiply-accumulates to many: ten networks of medium size would tell little about small and
    large ones.

    Args:
        networks: of both sorts together; fewer where the space is small.

    Raises:
        UserError: `calibrate` is not between 0 and `networks`.
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
