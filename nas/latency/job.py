"""`nas profile`: measure a space on this machine, fit, validate, write the profile."""

import logging
import platform
import random
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor, nn

from nas.arch import Arch
from nas.artifacts.files import versions_of
from nas.config.schema import Count, Name, Positive, Seed, Threads, Whole, checked
from nas.cost.activations import tensors
from nas.cost.analytic import MACs
from nas.cost.dry_run import Example, inputs_of
from nas.cost.expected import Expected
from nas.decision import Decision, decisions
from nas.discretization import discretize
from nas.distinct import Distinct
from nas.errors import UserError
from nas.latency.calibrate import MeasuredNetwork, Role
from nas.latency.cost import ExpectedLatency
from nas.latency.log import MeasurementLog, Row, measurement_quality
from nas.latency.measure import Jobs, Schedule, Timing, measure, timing, timings
from nas.latency.models import UnitTime
from nas.latency.profile import About, Profile, fit_profile
from nas.latency.remote import File, remote
from nas.latency.runtimes import (
    REMOTE,
    RUNTIMES,
    Call,
    Runtime,
    copy_to_measure,
    inputs_like,
    machine_load,
    machine_of,
    runtime,
)
from nas.latency.units import (
    Conditions,
    Dtype,
    Unit,
    Units,
    features,
    indices,
    runs_unused,
    units_of,
)
from nas.lowering import Tensors

NAME = "latency_measured"  # beside the cost "latency" in result.json
SECONDS = 20.0  # at most, for the network that a search found
# Kept ready and interleaved: the more, the less a slow minute matters. Their weights are in memory.
UNITS_AT_ONCE, NETWORKS_AT_ONCE = 256, 64
BYTES_AT_ONCE = 2**31


@checked("measure")
@dataclass(frozen=True)
class Measuring:
    """What to measure of a space, and how.

    Args:
        runtime: one of `nas.latency.runtimes.RUNTIMES`, or of `REMOTE` there.
        accelerator: "cpu" or "cuda".
        threads, batch, dtype: see `nas.latency.units.Conditions`.
        address, command, file: with a runtime of `REMOTE`, see `nas.latency.remote.Board`.
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
    dtype: Dtype = "float32"
    address: Name | None = None
    command: Name | None = None
    file: File | None = None
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

    @property
    def conditions(self) -> Conditions:
        """How units are run."""
        return Conditions(self.batch, self.dtype, self.threads)

    def ready(self) -> Runtime:
        """What measures.

        Raises:
            UserError: it is not installed, or cannot be reached.
        """
        own = self.address, self.command, self.file
        if self.runtime in REMOTE:
            return remote(self.runtime, *own, self.calls, self.accelerator, self.conditions)
        if own != (None, None, None):
            raise UserError(
                f"address, command and file are for runtime={' or '.join(REMOTE)}, not for "
                f"runtime={self.runtime}"
            )
        return runtime(self.runtime, self.accelerator, self.conditions)

    def measure(
        self, model: nn.Module, example: Example, log: Path, ready: Runtime | None = None
    ) -> Profile:
        """Measure what the file `log` does not hold yet, and fit everything.

        Raises:
            UserError: as `ready`, or a log of other measurements.
        """
        ready = ready or self.ready()
        # How busy this machine is changes nothing elsewhere.
        before = None if ready.elsewhere else machine_load()
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
        inputs = tensors(inputs_of(example, model))
        self.shapes = tuple(tuple(x.shape) for x in inputs)
        self.dtypes = tuple(x.dtype for x in inputs)
        self.units: Units = units_of(model, inputs, plan.conditions, runs_unused(plan.runtime))
        self.space = str(getattr(model, "name", type(model).__name__))
        archs = draw(model, self.space, self.units, plan.networks, plan.calibrate, plan.seed)
        self.archs: Mapping[Role, list[Arch]] = dict(
            zip(("calibration", "validation"), archs, strict=True)
        )

    @cached_property
    def about(self) -> About:
        """Describes a profile that is measured on this machine, from now on."""
        plan = self.plan
        machine = self.runtime.machine or machine_of(plan.runtime, plan.accelerator)
        return About(
            self.space,
            self.shapes,
            plan.device or machine,
            machine,
            plan.runtime,
            plan.accelerator,
            plan.batch,
            plan.dtype,
            plan.threads,
            {
                "python": platform.python_version(),
                "system": platform.platform(terse=True),
                **versions_of(self.runtime.packages),
                **self.runtime.tools,
            },
            datetime.now().astimezone().isoformat(timespec="seconds"),
        )

    @property
    def names(self) -> list[str]:
        """What is measured, as the log calls it."""
        archs = [arch for archs in self.archs.values() for arch in archs]
        return [*self.units.to_measure, *map(name_of, archs)]

    def unit(self, unit: Unit) -> tuple[nn.Module, Tensors]:
        """A unit as it is measured, and the inputs that it is run on."""
        conditions = self.plan.conditions
        inputs = inputs_like(unit.inputs, unit.dtypes, conditions)
        return copy_to_measure(unit.module, conditions), inputs

    def network(self, arch: Arch) -> tuple[nn.Module, Tensors]:
        """The plain network of `arch` as it is measured, and the inputs that it is run on."""
        conditions = self.plan.conditions
        inputs = inputs_like(self.shapes, self.dtypes, conditions)
        return copy_to_measure(discretize(self.model, arch), conditions), inputs

    def keys(self, arch: Arch) -> tuple[str, ...]:
        """The units that the network of `arch` executes, in order, repetitions included."""
        own = dict(decisions(self.model))
        return self.units.of(indices(own, arch.choices))

    def measure(self, log: MeasurementLog) -> None:
        """Time every unit, then every network, half of the time budget for each.

        Or have it done elsewhere.
        """
        if self.runtime.elsewhere is not None:
            self._elsewhere(self.runtime.elsewhere, log)
            return
        schedule = Schedule(most=self.plan.calls, least=min(20, self.plan.calls))
        units: Jobs = {
            key: partial(self._ready, partial(self.unit, unit))
            for key, unit in self.units.to_measure.items()
        }
        networks: Jobs = {
            name_of(arch): partial(self._ready, partial(self.network, arch))
            for archs in self.archs.values()
            for arch in archs
        }
        half = self.plan.seconds / 2 if networks else 0.0
        left = self.plan.seconds - half
        with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
            for name, jobs, at_once in (
                ("units", units, UNITS_AT_ONCE),
                ("whole networks", networks, self._networks_at_once()),
            ):
                task = progress.add_task(name)

                def tell(done: int, total: int, task: TaskID = task) -> None:
                    progress.update(task, completed=done, total=total)

                left = half + measure(jobs, log, left, schedule, tell, at_once)

    def _elsewhere(
        self, times: Callable[[nn.Module, Tensors, bool, float], Sequence[int]], log: MeasurementLog
    ) -> None:
        units = {key: partial(self.unit, unit) for key, unit in self.units.to_measure.items()}
        networks = {
            name_of(arch): partial(self.network, arch)
            for archs in self.archs.values()
            for arch in archs
        }
        rounds, seconds = self.runtime.rounds, self.plan.seconds / len(self.names)
        left = [
            name
            for index in range(rounds)
            for name in self.names
            if len(log.rows.get(name, [])) <= index
        ]
        with Progress(disable=not sys.stderr.isatty(), transient=True) as progress:
            for name in progress.track(left, description=self.plan.runtime):
                whole = name in networks
                module, inputs = (networks if whole else units)[name]()
                found = list(times(module, inputs, whole, seconds))
                # How many calls the next round has is not known, but that there is one.
                more = len(log.rows.get(name, [])) + 1 < rounds
                log.add([Row(name, len(log.calls(name)) + len(found) + more, found, [])])

    def _ready(self, make: Callable[[], tuple[nn.Module, Tensors]]) -> Call:
        return self.runtime.prepare(*make())

    def _networks_at_once(self) -> int:
        # The supernet is larger than any of its networks.
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return max(4, min(NETWORKS_AT_ONCE, BYTES_AT_ONCE // max(1, size)))

    def fit(self, log: MeasurementLog, load_before: float | None) -> Profile:
        """The profile of what `log` holds."""
        units = {
            key: _unit_time(unit, log.normalized_times(key))
            for key, unit in self.units.to_measure.items()
        }
        networks = []
        for role, archs in self.archs.items():
            for arch in archs:
                found = timing(log.normalized_times(name_of(arch)))
                choices, uses = dict(arch.choices), dict(Counter(self.keys(arch)))
                networks.append(MeasuredNetwork(choices, found.seconds, uses, role, asdict(found)))
        timings = [*(u.timing for u in units.values()), *(n.timing for n in networks)]
        repeats = [ratio for name in self.names for ratio in _repeat(log, name)]
        quality = measurement_quality(log.references, load_before, repeats)
        quality["counted"] = self.runtime.counts
        quality |= {key: sum(t[key] for t in timings) for key in ("outliers", "calls")}
        quality["unstable"] = sum(not found["stable"] for found in timings)
        return fit_profile(self.about, units, networks, quality)


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


def draw(
    model: nn.Module, space: str, units: Units, networks: int, calibrate: int, seed: int
) -> tuple[list[Arch], list[Arch]]:
    """Different random architectures, to calibrate on and to validate on.

    Those to validate on are drawn uniformly. Those to calibrate on are spread from few
    multiply-accumulates to many: ten networks of medium size would tell little about small and
    large ones.

    Args:
        networks: of both sorts together; fewer where the space is small.
        calibrate: how many to calibrate on, at most `networks`.
    """
    own, generator = dict(decisions(model)), random.Random(seed)
    pool = _different(Distinct.of(model), space, 2 * networks + 10 * calibrate, generator)
    calibrate = min(calibrate, len(pool) // 2)
    unseen, others = pool[: networks - calibrate], pool[networks - calibrate :]
    if len(others) < calibrate:  # a space of a few architectures
        unseen, others = pool[calibrate:], pool[:calibrate]
    work = {arch: _macs(own, units, arch) for arch in others}
    others.sort(key=lambda arch: work[arch])
    return _spread(others, calibrate), unseen


def _different(own: Distinct, space: str, count: int, generator: random.Random) -> list[Arch]:
    count = min(count, own.count)
    found: dict[Arch, None] = {}
    while len(found) < count:
        drawn = {name: generator.choice(options) for name, options in own.options.items()}
        found[own.canonical(Arch(space, drawn))] = None
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


def measure_network(network: nn.Module, inputs: tuple[Tensor, ...], about: About) -> Timing | None:
    """Time `network` as the networks of its profile were; None where this is another machine.

    Args:
        inputs: for one sample.
    """
    if about.runtime not in RUNTIMES:  # measured elsewhere
        return None
    if not about.machine or about.machine != machine_of(about.runtime, about.accelerator):
        return None
    shapes, dtypes = [tuple(x.shape) for x in inputs], [x.dtype for x in inputs]
    threads = torch.get_num_threads()
    try:
        ready = runtime(about.runtime, about.accelerator, about.conditions)
        made = inputs_like(shapes, dtypes, about.conditions)
        if ready.elsewhere is not None:
            copy = copy_to_measure(network, about.conditions)
            return timing(ready.elsewhere(copy, made, True, SECONDS))
        call = ready.prepare(copy_to_measure(network, about.conditions), made)
        return timings({"found": call}, SECONDS, about.conditions.threads)["found"]
    except UserError as error:
        logging.getLogger("nas").warning("the network found was not measured: %s", error)
        return None
    finally:
        torch.set_num_threads(threads)


def measured_fields(
    network: nn.Module, inputs: tuple[Tensor, ...], costs: Mapping[str, Expected], arch: Any
) -> dict[str, Any]:
    """Predicted and measured seconds and the device, for result.json; empty without the cost."""
    cost = costs.get("latency")
    if not isinstance(cost, ExpectedLatency):
        return {}
    about = cost.profile.about
    found = measure_network(network, inputs, about)
    return {
        "predicted": cost.of(arch.choices),
        "measured": None if found is None else found.seconds,
        "timing": None if found is None else asdict(found),
        "device": about.device,
        "runtime": about.runtime,
        "conditions": str(about.conditions),
    }
