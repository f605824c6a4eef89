"""`nas profile`: measure a space on this machine, fit, validate, write the profile."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from nas.arch import Arch
from nas.copying import copied
from nas.cost.schedule import tensors
from nas.cost.trace import Example, inputs_of
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.latency.features import features
from nas.latency.fit import Whole, fit_profile
from nas.latency.key import Conditions
from nas.latency.log import MeasurementLog
from nas.latency.machine import load, machine_name, quietness, versions_of
from nas.latency.measure import Job, Schedule, Tell, measure, timing
from nas.latency.networks import draw, indices
from nas.latency.profile import About, Profile, UnitTime
from nas.latency.runtime import Call, Runtime, runtime
from nas.latency.unit import Unit, Units, units_of

# Kept ready and interleaved: the more, the less do minutes matter. Their weights are in memory.
UNITS_AT_ONCE, NETWORKS_AT_ONCE = 256, 64
BYTES_AT_ONCE = 2**31


@dataclass(frozen=True)
class Measuring:
    """What to measure of a space, and how.

    Args:
        runtime: one of `nas.latency.runtime.RUNTIMES`.
        accelerator: "cpu" or "cuda".
        device: what the profile calls the device; None: the processor's own name.
        networks: whole networks to measure, of which `calibrate` calibrate the sum of units; the
            others are only to validate it.
        seconds: time budget; calls are fewer, down to 20 of each, where it is short.
        calls: of each unit and network, where time allows.

    Raises:
        UserError: a number that cannot be.
    """

    runtime: str = "torch"
    accelerator: str = "cpu"
    conditions: Conditions = field(default_factory=Conditions)
    device: str | None = None
    networks: int = 50
    calibrate: int = 20
    seconds: float = 600.0
    calls: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UserError(f"seconds={self.seconds} must be above 0")
        if self.calls < 1:
            raise UserError(f"calls={self.calls} must be at least 1")
        if not 0 <= self.calibrate <= self.networks:
            raise UserError(f"calibrate={self.calibrate} must be from 0 to {self.networks=}")

    def __call__(self, model: nn.Module, example: Example, log: Path) -> Profile:
        """Measure what the file `log` does not hold yet, and fit everything.

        Raises:
            UserError: a runtime that is not installed, or a log of other measurements.
        """
        before = load()
        ready = runtime(self.runtime, self.accelerator, self.conditions)
        model = model.eval()
        work = Work(self, model, example, ready)
        written = MeasurementLog(log, work.about.to_json())
        if all(written.done(name) for name in work.names):
            return work.fit(written, None)  # of the time of measuring nothing is known
        work.measure(written)
        return work.fit(written, before)


class Work:
    """The units and the networks of one space under `plan`."""

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
    def archs(self) -> list[Arch]:
        return [*self.calibration, *self.validation]

    @property
    def names(self) -> list[str]:
        """What is measured, as the log calls it."""
        return [*self.units.to_measure, *map(name_of, self.archs)]

    def measure(self, log: MeasurementLog) -> None:
        """Time every unit, then every network, half of the time budget for each."""
        end = time.monotonic() + self.plan.seconds
        schedule = Schedule(most=self.plan.calls, least=min(20, self.plan.calls))
        units = [
            Job(key, lambda unit=unit: self._unit(unit))  # type: ignore[misc]
            for key, unit in self.units.to_measure.items()
        ]
        networks = [
            Job(name_of(arch), lambda arch=arch: self._network(arch))  # type: ignore[misc]
            for arch in self.archs
        ]
        middle = end - self.plan.seconds / 2 if networks else end
        with bars() as bar:
            measure(units, log, middle, schedule, bar("units"), UNITS_AT_ONCE)
            measure(networks, log, end, schedule, bar("whole networks"), self._at_once())

    def fit(self, log: MeasurementLog, load_before: float | None) -> Profile:
        """The profile of what `log` holds."""
        own = dict(decisions(self.model))
        units = {
            key: _unit_time(unit, log.steady(key)) for key, unit in self.units.to_measure.items()
        }
        wholes = []
        for role, archs in (("calibration", self.calibration), ("validation", self.validation)):
            for arch in archs:
                found = timing(log.steady(name_of(arch)))
                keys = self.units.of(indices(own, arch.choices))
                wholes.append(Whole(dict(arch.choices), keys, found.seconds, role, found.to_json()))
        timings = [*(u.timing for u in units.values()), *(w.timing for w in wholes)]
        repeats = [ratio for name in self.names for ratio in _repeat(log, name)]
        quiet = quietness(log.references, load_before, repeats)
        counts = {key: sum(t[key] for t in timings) for key in ("outliers", "calls")}
        counts["unstable"] = sum(not found["stable"] for found in timings)
        return fit_profile(self.about, units, wholes, {**quiet, **counts})

    def _at_once(self) -> int:
        # Of the supernet, which no network of it exceeds.
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return max(4, min(NETWORKS_AT_ONCE, BYTES_AT_ONCE // max(1, size)))

    def _unit(self, unit: Unit) -> Call:
        inputs = inputs_like(unit.inputs, unit.dtypes, self.plan.conditions)
        return self.runtime.prepare(plain(unit.module, self.plan.conditions), inputs)

    def _network(self, arch: Arch) -> Call:
        return self.runtime.prepare(self.network(arch), self.network_inputs())

    def network(self, arch: Arch) -> nn.Module:
        """The plain network of `arch`, in eval mode and of the number format to measure in."""
        return plain(discretize(self.model, arch), self.plan.conditions)

    def network_inputs(self) -> tuple[Tensor, ...]:
        """What a whole network is run on."""
        shapes = tuple(tuple(x.shape) for x in self.inputs)
        return inputs_like(shapes, tuple(x.dtype for x in self.inputs), self.plan.conditions)


def about_of(plan: Measuring, space: str, inputs: Sequence[Tensor], ready: Runtime) -> About:
    """What the profile says of itself; of this machine."""
    machine = machine_name(plan.accelerator)
    return About(
        space,
        tuple(tuple(x.shape) for x in inputs),
        plan.device or machine,
        machine,
        plan.runtime,
        plan.accelerator,
        plan.conditions,
        versions_of(ready.packages),
        datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def name_of(arch: Arch) -> str:
    """What a network is called in the log of measurements."""
    return f"network {arch.hash}"


def plain(module: nn.Module, conditions: Conditions) -> nn.Module:
    """A copy to measure: runtimes may change what they are given."""
    return copied(module).eval().to(getattr(torch, conditions.dtype))


def inputs_like(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype], conditions: Conditions
) -> tuple[Tensor, ...]:
    """A batch of these shapes for one sample: normal values, or zeros where they are whole."""
    made = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        full = (shape[0] * conditions.batch, *shape[1:]) if shape else shape
        if dtype.is_floating_point:
            generator = torch.Generator().manual_seed(0)
            values = torch.randn(full, generator=generator)
            made.append(values.to(getattr(torch, conditions.dtype)))
        else:
            made.append(torch.zeros(full, dtype=dtype))
    return tuple(made)


def _unit_time(unit: Unit, nanoseconds: Sequence[float]) -> UnitTime:
    found = timing(nanoseconds)
    described = {name: float(value) for name, value in features(unit.layers).items()}
    return UnitTime(found.seconds, described, found.to_json())


def _repeat(log: MeasurementLog, name: str) -> list[float]:
    """Its time in the first half of the rounds over that in the second; empty of one round."""
    middle = len(log.rows.get(name, [])) // 2
    halves = [log.steady(name, part) for part in (slice(middle), slice(middle, None))]
    return [timing(halves[0]).seconds / timing(halves[1]).seconds] if all(halves) else []


@contextmanager
def bars() -> Iterator[Callable[[str], Tell]]:
    """Progress bars with the time left; each is told ``(done, total)``."""
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
