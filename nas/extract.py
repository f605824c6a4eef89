"""`nas extract`: other networks out of a finished search, without searching again."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.arch import Arch
from nas.errors import UserError
from nas.export import load_supernet
from nas.pipeline import Run
from nas.plan import Plan, Problem
from nas.result import announce
from nas.run import RunDir, write_atomic
from nas.selection import front


@dataclass(frozen=True)
class Extraction:
    """What to take out of a search.

    Args:
        size: 0 for the most probable network inside the budgets, N for a front of at most N.
        along: the cost that the front's networks are spread over.
        fine_tune: train each network; else it is evaluated with the supernet's weights.
        out: folder of the runs; by default ``extracts`` in that of the search.
    """

    size: int = 0
    along: str = "params"
    fine_tune: bool = False
    out: Path | None = None

    def __call__(self, plan: Plan, source: RunDir, config: str) -> list[RunDir]:
        """Select, evaluate and export; one run folder for each network, named by its hash.

        Raises:
            UserError: the search has left no weights, or no network meets the budgets.
        """
        if not source.checkpoint.is_file():
            raise UserError(
                f"{source.path} has no last.ckpt, the weights of a finished search: extract from "
                "a run of `nas search` with search=bilevel or single_level"
            )
        if not self.fine_tune:
            plan = replace(plan, inherit=True)
        problem = Problem(plan)
        load_supernet(problem.supernet, source.checkpoint)
        folder = self.out or source.extracts
        runs = []
        for arch in self.archs(problem):
            runs.append(self._carry_out(plan, problem, arch, RunDir(folder / arch.hash), config))
        return runs

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

    def _carry_out(
        self, plan: Plan, problem: Problem, arch: Arch, run: RunDir, config: str
    ) -> RunDir:
        known: Mapping[str, Any] = run.read_result() or {}
        if run.finished and (known.get("trained") or not self.fine_tune):
            print(f"already there: {run.path}")
            return run
        stages = Run(plan, run, arch, problem, train=self.fine_tune)
        run.create()
        write_atomic(run.config, config)
        announce(run, stages())
        return run
