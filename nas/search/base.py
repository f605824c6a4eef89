"""The seams of a search: the problem it is given, the stage it trains in, and its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import pytorch_lightning as pl
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.config.calls import called, takes
from nas.decision import decisions
from nas.errors import UserError
from nas.pareto import non_dominated
from nas.problem import SearchProblem
from nas.ranks import broadcast
from nas.tasks.classification import task_of

Leaves = Literal["alphas", "supernet", "trials", "given", "nothing"]


class Stage(Protocol):
    """The stage of a run that a search trains in."""

    @property
    def run(self) -> RunDir:
        """The folder; its ``checkpoint`` and ``trials`` are the search's own."""
        ...

    def trainer(self, epochs: int, callbacks: list[pl.Callback]) -> pl.Trainer:
        """A trainer as the run is configured, with its logger."""
        ...

    def fit(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        loaders: Any,
        checkpoint: Path,
        validate: bool = True,
    ) -> None:
        """Train, from `checkpoint` on where there is one; on return all ranks have equal weights.

        Raises:
            InterruptedRunError: by Ctrl-C, or a scheduler's signal.
            UserError: the checkpoint is of another training.
        """
        ...


@dataclass(frozen=True)
class ScoredArch:
    """An architecture with its score in a search.

    Args:
        arch: the architecture.
        score: larger is better; its meaning is `SearchResult.metric`.
        costs: cost name -> exact cost, in the unit of the cost.
    """

    arch: Arch
    score: float
    costs: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """One entry of ``search.json``."""
        return {
            "arch": dict(self.arch.choices),
            "arch_hash": self.arch.hash,
            "score": self.score,
            "costs": dict(self.costs),
        }


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Args:
        selected: the best architecture; one of `found`.
        found: at least one architecture, with its score.
        metric: the score's meaning: ``log_probability`` (sum over decisions of log p), or a metric
            of the trials, with its sign changed where less is better.
        cost: name of the cost that the front is drawn over.
        chosen: the architectures to be trained, `SearchProblem.front` of them or as many as there
            are, the cheapest first; none: `selected` alone.
        metrics: figures for result.json, by name.
        seconds: wall-clock time, over all sessions of a resumed search.
        cpu_seconds: CPU time of the processes that searched.
    """

    selected: Arch
    found: Sequence[ScoredArch]
    metric: str
    cost: str
    chosen: Sequence[Arch] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def front(self) -> list[ScoredArch]:
        """The members of `found` that no other dominates in score and cost, the smallest first."""
        on_it = non_dominated([[-one.score, one.costs[self.cost]] for one in self.found])
        members = [one for one, kept in zip(self.found, on_it, strict=True) if kept]
        return sorted(members, key=lambda one: one.costs[self.cost])

    def to_json(self) -> dict[str, Any]:
        """The content of ``search.json``."""
        selected = next(one for one in self.found if one.arch == self.selected)
        return {
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "metrics": dict(self.metrics),
            "metric": self.metric,
            "cost": self.cost,
            "selected": selected.to_json(),
            "chosen": [dict(arch.choices) for arch in self.chosen or [self.selected]],
            "front": [one.to_json() for one in self.front()],
        }


class Search(Protocol):
    """A way to search; a new kind is a class of this form and a YAML in ``configs/search``.

    Its constructor is called by `build_search`.

    Attributes:
        leaves: what a finished search leaves in the run's folder for `nas extract`: a supernet with
            trained alphas, a supernet whose networks are ranked by trials, trials, trials of
            networks with the weights of the one given, or nothing.
    """

    leaves: ClassVar[Leaves]

    def prepare(self, problem: SearchProblem) -> None:
        """Find everything that is wrong with the input, before any training.

        Raises:
            UserError: what is wrong, and what to do.
        """
        ...

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Search, from what an earlier session left in the stage's folder on.

        Every rank of a distributed run calls it and has the same result.

        Raises:
            InterruptedRunError, FailedRunError: the search can be resumed.
        """
        ...


def build_search(problem: SearchProblem) -> Search:
    """The search of a problem.

    Its constructor is called with `supernet` and `seed`, and with those that it takes of `costs`,
    `targets` (the budgets), `objective`, `temperature` and `task`; the configuration of a search
    may give its own. Where it takes an objective,
    `costs` are those that the objective joins to the loss; else they are all that are computed.

    Raises:
        UserError: see the search.
    """
    known = {
        "costs": problem.costs,
        "targets": problem.budgets,
        "objective": problem.objective,
        "temperature": problem.relax.temperature,
        "task": task_of(problem.data),
    }
    if takes(problem.search, "objective"):
        known["costs"] = {name: problem.costs[name] for name in problem.cost_models}
    made: Search = called(problem.search, known, supernet=problem.supernet, seed=problem.seed)
    if not (problem.engine is None or problem.engine.local or hasattr(made, "ranking")):
        raise UserError(
            f"engine={problem.engine.name} is for searches that score networks one by one, and "
            "this one scores none: leave engine=local"
        )
    return made


def leaves_of(factory: Any) -> str:
    """What the search that `factory` makes leaves behind, see `Search`; no search is made."""
    return str(getattr(getattr(factory, "func", factory), "leaves", "nothing"))


def check_searchable(supernet: nn.Module) -> None:
    """Raises UserError where `supernet` holds no decision."""
    if not any(decisions(supernet)):
        raise UserError(
            "this space has no decision to search: give some stage at least two ops, or train "
            "the network as it is with `nas finetune`"
        )


def agreed(choose: Callable[[], Arch]) -> Arch:
    """The architecture that `choose` gives on the first rank, on all ranks."""
    return Arch.from_json(broadcast(lambda: choose().to_json()))
