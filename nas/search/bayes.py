"""Bayesian optimisation by Optuna: the tree-structured Parzen estimator."""

from collections import deque
from collections.abc import Sequence
from math import isfinite
from typing import Any

from nas.arch import Arch
from nas.errors import UserError
from nas.search.space import SearchSpace
from nas.search.trials import Trial


class TPE:
    """Optuna's TPE (Bergstra et al. 2011; several objectives: Ozaki et al. 2022).

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`.
        startup: random architectures that come first.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss",),
        startup: int = 10,
    ) -> None:
        try:
            import optuna
        except ImportError:
            raise UserError(
                "the searcher tpe needs Optuna: pip install 'dnas[search]', or take "
                "search.searcher=evolution or predictor"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space, self.objectives = space, tuple(objectives)
        self.failed = optuna.trial.TrialState.FAIL
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(self.objectives)
        self.study = optuna.create_study(directions=directions, sampler=sampler)
        self.asked: deque[Any] = deque()

    def ask(self, count: int) -> Sequence[Arch]:
        return [self._one() for _ in range(count)]

    def _one(self) -> Arch:
        trial = self.study.ask()
        self.asked.append(trial)
        picks = {
            name: trial.suggest_categorical(name, list(range(len(options))))
            for name, options in self.space.options.items()
        }
        return self.space.repaired(self.space.arch(picks))

    def tell(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            found = [trial.value(name) for name in self.objectives]
            asked = self.asked.popleft()
            if all(isfinite(value) for value in found):
                self.study.tell(asked, found)
            else:
                self.study.tell(asked, state=self.failed)
