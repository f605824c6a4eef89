"""`nas extract`: other networks out of a finished search, without searching again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from nas.arch import Arch
from nas.errors import UserError
from nas.export import load_supernet
from nas.pipeline import Run
from nas.plan import Plan, Problem
from nas.report.terminal import announce
from nas.run import RunDir, write_atomic
from nas.search.base import build_search, leaves_of
from nas.search.sampling.searchers import best
from nas.search.sampling.trial_search import TrialSearch
from nas.search.sampling.trials import front_of, spread
from nas.selection import front


@dataclass(frozen=True)
class Extraction:
    """What to take out of a search.

    Args:
        size: 0 for the most probable network inside the budgets, N for a front of at most N.
        along: the cost that the front's networks are spread over.
        layers: of a ranking, take in what only the front dominates (2), and so on; see `front_of`.
        fine_tune: train each network; else it is evaluated with the supernet's weights.
    """

    size: int = 0
    along: str = "params"
    fine_tune: bool = False
    layers: int = 1

    def problem(self, plan: Plan, source: RunDir) -> Problem:
        """The search's supernet with its weights, priced as `plan` says.

        Raises:
            UserError: the search has left no weights, or no network meets the budgets.
        """
        priced = {"params", "macs", *plan.costs}
        if self.along not in priced:
            raise UserError(f"along={self.along} is not one of {', '.join(sorted(priced))}")
        if leaves_of(plan.search) == "trials":
            plan = self._without_supernet(plan, source)
        elif not source.checkpoint.is_file():
            raise UserError(
                f"{source.path} has no last.ckpt, the weights of a finished search: extract from "
                "a run of `nas search` with search=bilevel, single_level, spos, fairnas, ..."
            )
        elif not self.fine_tune:
            plan = replace(plan, inherit=True)
        problem = Problem(plan)
        if source.checkpoint.is_file():
            load_supernet(problem.supernet, source.checkpoint)
        return problem

    def __call__(self, problem: Problem, source: RunDir, folder: Path, config: str) -> list[RunDir]:
        """Select, evaluate and export; one run in `folder` for each network, named by its hash.

        Args:
            problem: see `Extraction.problem`.
            config: what the runs keep as their configuration, YAML.
        """
        ranking = _ranking(problem)
        archs = self.archs(problem) if ranking is None else self.ranked(problem, ranking, source)
        return [
            self._carry_out(problem, arch, RunDir(folder / arch.hash), config) for arch in archs
        ]

    def archs(self, problem: Problem) -> list[Arch]:
        """The architectures to take, the smallest first."""
        if not self.size:
            return [problem.select()]
        return front(
            problem.supernet,
            problem.space,
            problem.costs,
            problem.budgets,
            self.along,
            self.size,
        )

    def ranked(self, problem: Problem, ranking: TrialSearch, source: RunDir) -> list[Arch]:
        """As `archs`, where networks are told apart by scores of their own, not by alphas.

        What the run has scored already is not scored again.
        """
        with source.claimed(wait=True):
            trials = ranking.rank(problem, source)
        if not self.size:
            return [best(trials, ranking.by).arch]
        front = front_of(trials, (ranking.by, self.along), self.layers)
        return [trial.arch for trial in spread(front, self.along, self.size)]

    def _without_supernet(self, plan: Plan, source: RunDir) -> Plan:
        if not self.fine_tune:
            raise UserError(
                f"the search of {source.path} trained its networks one by one and kept no "
                "weights: pass fine_tune=true to train those you take out"
            )
        return replace(plan, inherit=False)

    def _carry_out(self, problem: Problem, arch: Arch, run: RunDir, config: str) -> RunDir:
        stages = Run(problem.plan, run, arch, problem, train=self.fine_tune)
        run.create()
        with run.claimed(wait=True):
            known: Mapping[str, Any] = run.read_result() or {}
            if run.complete and (known.get("trained") or not self.fine_tune):
                print(f"already there: {run.path}")
                return run
            write_atomic(run.config, config)
            announce(run, stages())
        return run


def _ranking(problem: Problem) -> TrialSearch | None:
    """What ranks the networks of a search that moves no alphas; None for one that does."""
    if leaves_of(problem.plan.search) not in ("supernet", "trials"):
        return None
    ranking: TrialSearch = cast(Any, build_search(problem)).ranking
    return ranking
