"""How the networks of a batch are scored: in this process, in several, or over ranks."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.arch import Arch
from nas.errors import NotFiniteError
from nas.ranks import gathered, world
from nas.search.evaluate import Scoring
from nas.search.space import SearchSpace
from nas.search.trials import Trial, TrialLog

Job = tuple[Any, ...]  # the arguments of one call: an architecture, and what else it takes


@dataclass(frozen=True)
class Outcome:
    """What one call gave; `metrics` is empty where the loss became NaN, as `message` then says."""

    job: Job
    metrics: Mapping[str, float]
    seconds: float  # wall clock
    cpu_seconds: float
    message: str | None = None

    @property
    def arch(self) -> Arch:
        """The architecture that was scored."""
        arch: Arch = self.job[0]
        return arch


Outcomes = Callable[[Sequence[Job]], Iterator[Outcome]]  # in any order, each as it is there


def scored(job: Job, score: Scoring) -> Outcome:
    """Call `score`, and measure how long that takes."""
    wall, cpu = time.monotonic(), time.process_time()
    message = None
    try:
        metrics = score(*job)
    except NotFiniteError as error:
        metrics, message = {}, str(error)
    return Outcome(job, metrics, time.monotonic() - wall, time.process_time() - cpu, message)


def in_turn(score: Scoring, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Make one call after another, in this process, in the order that suits `score`."""
    order = getattr(score, "order", None)
    for job in jobs if order is None else [jobs[i] for i in order([job[0] for job in jobs])]:
        yield scored(job, score)


def over_ranks(outcomes: Outcomes, jobs: Sequence[Job]) -> Iterator[Outcome]:
    """Let every rank make its share of the calls; each then has all outcomes, in the order of jobs.

    Rank ``i mod R`` makes call i. An outcome is the same on whichever rank it was found.
    """
    rank, ranks = world()
    if ranks == 1:
        yield from outcomes(jobs)
        return
    places = {job: place for place, job in enumerate(jobs)}
    told = ("metrics", "seconds", "cpu_seconds", "message")
    own: Iterator[tuple[int, dict[str, Any]]] = (
        (places[found.job], {name: getattr(found, name) for name in told})
        for found in outcomes(jobs[rank::ranks])
    )
    for job, found in zip(jobs, gathered(own, len(jobs)), strict=True):
        yield Outcome(job, **found)


def recorded(
    outcomes: Outcomes, space: SearchSpace, log: TrialLog, each: Callable[[Trial], None]
) -> Callable[[Sequence[Arch]], None]:
    """A function that scores architectures and appends each to `log` as soon as it is finished."""

    def evaluate(archs: Sequence[Arch]) -> None:
        for found in outcomes([(arch,) for arch in archs]):
            costs = space.price(found.arch)
            trial = Trial(
                found.arch, found.metrics, costs, found.seconds, found.cpu_seconds, found.message
            )
            log.append(trial)
            each(trial)

    return evaluate
