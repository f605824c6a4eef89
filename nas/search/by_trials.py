"""`TrialSearch`: architectures are proposed, scored one by one, and the best is taken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nas.arch import Arch
from nas.errors import UserError
from nas.run import RunDir, write_atomic
from nas.search.evaluate import Inherited, Scoring, Searched, in_turn
from nas.search.searcher import Searcher, best, search
from nas.search.searchers import check_name, make
from nas.search.space import SearchSpace
from nas.search.trials import Trial, TrialLog, table_of


@dataclass(frozen=True)
class Found:
    """What a search by trials ends with."""

    arch: Arch
    metrics: Mapping[str, float]
    seconds: float  # wall clock of all trials, over all sessions
    cpu_seconds: float

    def known(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """What the run remembers of the search, after what came `before` the trials."""
        return {
            "seconds": before["seconds"] + self.seconds,
            "cpu_seconds": before["cpu_seconds"] + self.cpu_seconds,
            "metrics": {**before["metrics"], **self.metrics},
        }


class TrialSearch:
    """Propose, score, record; the classic search, also over an evaluator that trains nothing.

    Args:
        supernet: a model that holds decisions.
        searcher: a name of `nas.search.searchers`; "auto": `Enumerate` where that is few.
        evaluate: ``problem -> (arch -> scores)``, see `nas.search.evaluate`.
        trials: different architectures to score; None: all where they are enumerated, else 500.
        by: the score that decides, an accuracy or a loss.
        along: the cost that the front is drawn over.
        batch: architectures asked for at once.
        seed: of the searcher's draws.
    """

    def __init__(
        self,
        supernet: nn.Module,
        searcher: str | Callable[..., Searcher],
        evaluate: Callable[[Searched], Scoring],
        trials: int | None = None,
        by: str = "val_acc",
        along: str = "params",
        batch: int = 1,
        seed: int = 0,
    ) -> None:
        if trials is not None and trials < 1:
            raise UserError(f"search.trials={trials} must be at least 1, or null (all there are)")
        if batch < 1:
            raise UserError(f"search.batch={batch} must be at least 1")
        if not by.startswith("val_"):
            raise UserError(f"search.by={by}: a search may judge by val_acc or val_loss only")
        check_name(searcher)
        self.supernet, self.searcher, self.evaluate = supernet, searcher, evaluate
        self.trials, self.by, self.along, self.batch = trials, by, along, batch
        self.seed = seed

    def find(self, problem: Searched, run: RunDir) -> Found:
        """Search, with ``trials.jsonl`` and ``trials.csv`` in the run's folder.

        Raises:
            UserError: see the searcher, and `nas.search.trials.TrialLog`.
        """
        trials = self.rank(problem, run)
        table = table_of(trials, (self.by, self.along))
        write_atomic(run.trials.with_suffix(".csv"), table)
        chosen = best(trials, self.by)
        return Found(
            chosen.arch,
            {f"trial_{name}": value for name, value in chosen.metrics.items() if name[:3] == "val"},
            sum(trial.seconds for trial in trials),
            sum(trial.cpu_seconds for trial in trials),
        )

    def rank(self, problem: Searched, run: RunDir) -> list[Trial]:
        """The trials inside the budgets; those in the run's ``trials.jsonl`` are not repeated."""
        space = SearchSpace.of(problem.supernet, problem.space, problem.costs, problem.budgets)
        if self.along not in space.costs:
            raise UserError(f"search.along={self.along} is not one of {sorted(space.costs)}")
        objectives = (self.by, self.along)
        trained = problem if isinstance(self.evaluate, Inherited) else None
        searcher, count = make(self.searcher, space, self.seed, objectives, self.trials, trained)
        log = TrialLog(run.trials)
        evaluate = in_turn(self.evaluate(problem), space, log, Progress(self.by, self.along))
        return search(searcher, evaluate, log, count, self.batch)


@dataclass
class Progress:
    """One line for each trial."""

    by: str
    along: str
    seen: int = 0

    def __call__(self, trial: Trial) -> None:
        self.seen += 1
        score = trial.metrics.get(self.by)
        text = trial.message if score is None else f"{self.by} {score:.4f}"
        cost = trial.costs.get(self.along)
        print(
            f"trial {self.seen}: {trial.arch.hash} {text}, {self.along} {cost}, "
            f"{trial.seconds:.1f} s",
            flush=True,
        )
