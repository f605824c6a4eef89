"""Searchers, which propose architectures; their names; and the loop that asks and tells them."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from math import isfinite
from typing import Any

import torch

from nas.arch import Arch
from nas.errors import UserError
from nas.ranks import broadcast, world
from nas.search.additive import Additive
from nas.search.evolution import NSGA2, RegularisedEvolution
from nas.search.predictor import Predictor
from nas.search.space import Searcher, SearchSpace
from nas.search.trials import Trial, TrialLog, comparable

# Proposals in a row, all known already, before a search ends: small spaces run out.
PATIENCE = 50


class Agreed(Searcher):
    """A searcher for all ranks: that of the first rank proposes to all of them."""

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher

    def ask(self, count: int) -> Sequence[Arch]:
        asked = broadcast(lambda: [arch.to_json() for arch in self.searcher.ask(count)])
        return [Arch.from_json(text) for text in asked]

    def tell(self, trials: Sequence[Trial]) -> None:
        if world()[0] == 0:
            self.searcher.tell(trials)


class Enumerate(Searcher):
    """Every architecture of the space inside the budgets: exact, for small spaces.

    Args:
        space: what to enumerate.
        seed, objectives: unused; every searcher takes them.
        limit: the largest number of architectures.

    Raises:
        UserError: the space is larger than `limit`.
    """

    def __init__(
        self, space: SearchSpace, seed: int = 0, objectives: Sequence[str] = (), limit: int = 5000
    ) -> None:
        if space.size > limit:
            raise UserError(
                f"the space has {space.size:,} architectures, more than the {limit:,} that are "
                "enumerated: take searcher=predictor, nsga2, evolution, tpe or random"
            )
        self._left = iter(space)

    def ask(self, count: int) -> Sequence[Arch]:
        return list(islice(self._left, count))


class RandomSearch(Searcher):
    """Architectures drawn uniformly inside the budgets: the baseline every searcher has to beat."""

    def __init__(self, space: SearchSpace, seed: int = 0, objectives: Sequence[str] = ()) -> None:
        self.space = space
        self.generator = torch.Generator().manual_seed(seed)

    def ask(self, count: int) -> Sequence[Arch]:
        return [self.space.draw(self.generator) for _ in range(count)]


def search(
    searcher: Searcher,
    evaluate: Callable[[Sequence[Arch]], None],
    log: TrialLog,
    trials: int | None = None,
    batch: int = 1,
    whole: bool = False,
) -> list[Trial]:
    """Ask, score what is new, tell; until so many different architectures are scored.

    Args:
        evaluate: scores architectures and appends each to `log`.
        trials: different architectures to score; None: until the searcher has none left.
        batch: architectures asked for at once; of a resumed search the same as before.
        whole: also hand `evaluate` the architectures that `log` knows from an earlier session, as
            halving does, which compares those of a batch with each other.

    Returns:
        The different trials, in the order in which they were first asked for.
    """
    found: dict[str, Trial] = {}
    batches: dict[str, int] = {}
    stale = asks = 0
    while trials is None or len(found) < trials:
        asked = searcher.ask(batch if trials is None else min(batch, trials - len(found)))
        if not asked:
            break
        fresh = {
            arch.hash: arch
            for arch in asked
            if arch.hash not in found and (whole or log.get(arch) is None)
        }
        batches |= dict.fromkeys((arch.hash for arch in asked if arch.hash not in batches), asks)
        asks += 1
        evaluate(list(fresh.values()))
        told = [log.known[arch.hash] for arch in asked]
        searcher.tell(told)
        before = len(found)
        for trial in told:
            found.setdefault(trial.arch.hash, trial)
        stale = stale + 1 if len(found) == before else 0
        if stale >= PATIENCE:
            logging.getLogger("nas").warning(
                "the searcher proposes nothing new: it ends after %d of %s trials",
                len(found),
                trials,
            )
            break
    log.sort(batches)
    return list(found.values())


def best(trials: Sequence[Trial], metric: str, cost: str | None = None) -> Trial:
    """The trial of the best `metric` among those `comparable`; of equal ones the first.

    With `cost` the cheapest of equal ones: accuracies of few images are often equal.

    Raises:
        UserError: no trial was scored.
    """
    scored = comparable(trials)
    if not scored:
        messages = {trial.message for trial in trials}
        raise UserError(f"no architecture could be scored: {messages or 'none was proposed'}")
    return min(scored, key=lambda trial: (trial.value(metric), trial.costs.get(cost or "", 0)))


class TPE(Searcher):
    """Optuna's TPE (Bergstra et al. 2011; several objectives: Ozaki et al. 2022).

    Args:
        space: what to search.
        seed: of all draws.
        objectives: minimised, see `Trial.value`.
        startup: number of architectures before the first that is predicted: those of
            `SearchSpace.start`, then random ones.

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
        for arch in space.start(objectives, seed):
            self.study.enqueue_trial(space.indices(arch))

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


SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "enumerate": Enumerate,
    "random": RandomSearch,
    "evolution": RegularisedEvolution,
    "nsga2": NSGA2,
    "tpe": TPE,
    "predictor": Predictor,
    "additive": Additive,
}

SMALL = 2000  # the largest space that "auto" enumerates
TRIALS = 500  # where no number is given and the searcher does not end by itself


def make(
    searcher: str | Callable[..., Searcher],
    space: SearchSpace,
    seed: int,
    objectives: Sequence[str],
    trials: int | None,
    usual: int = TRIALS,
    large: str = "predictor",
) -> tuple[Searcher, int | None]:
    """The searcher, and the number of trials it is given (None: until it has none left).

    Args:
        searcher: a name, "auto", or ``(space, seed, objectives) -> Searcher``.
        usual: the number where none is given, and the searcher does not end by itself.
        large: what "auto" is in a space of more than `SMALL`.

    Raises:
        UserError: no such name, or the searcher cannot work on this space.
    """
    if searcher == "auto":
        searcher = "enumerate" if space.size <= SMALL else large
    factory: Any = SEARCHERS[searcher] if isinstance(searcher, str) else searcher
    kind = getattr(factory, "func", factory)
    number = usual if trials is None and kind is not Enumerate else trials
    return factory(space, seed, objectives), number


def check_name(searcher: object) -> None:
    """Raises UserError unless it is a searcher's name, or no name at all."""
    if isinstance(searcher, str) and searcher not in ("auto", *SEARCHERS):
        known = ", ".join(SEARCHERS)
        raise UserError(f"no searcher {searcher!r}: there are auto, {known}")
