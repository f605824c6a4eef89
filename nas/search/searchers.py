"""Names of searchers, and what each of them is: a new one is a class, a line here and a YAML."""

from collections.abc import Callable, Sequence
from typing import Any

from nas.errors import UserError
from nas.search.bayes import TPE
from nas.search.controller import Controller
from nas.search.evaluate import Searched
from nas.search.evolution import NSGA2, RegularisedEvolution
from nas.search.gradient import GradientSearch
from nas.search.predictor import Predictor
from nas.search.searcher import Enumerate, RandomSearch, Searcher
from nas.search.space import SearchSpace

SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "enumerate": Enumerate,
    "random": RandomSearch,
    "evolution": RegularisedEvolution,
    "nsga2": NSGA2,
    "tpe": TPE,
    "predictor": Predictor,
    "controller": Controller,
}

# These ask a trained supernet itself: (problem, seed, objectives) -> Searcher.
OVER_SUPERNET: dict[str, Callable[..., Searcher]] = {"gradient": GradientSearch}

SMALL = 2000  # "auto" enumerates spaces up to this size
TRIALS = 500  # of a searcher that has no end of its own, where none are given


def make(
    searcher: str | Callable[..., Searcher],
    space: SearchSpace,
    seed: int,
    objectives: Sequence[str],
    trials: int | None,
    trained: Searched | None = None,
) -> tuple[Searcher, int | None]:
    """The searcher, and the number of trials it is given (None: until it has none left).

    Args:
        searcher: a name, "auto", or ``(space, seed, objectives) -> Searcher``.
        trained: what is searched, where its supernet is trained.

    Raises:
        UserError: no such name, or the searcher cannot work on this space.
    """
    if searcher == "auto":
        searcher = "enumerate" if space.size <= SMALL else "predictor"
    named = {**SEARCHERS, **OVER_SUPERNET}
    factory: Any = named[searcher] if isinstance(searcher, str) else searcher
    kind = getattr(factory, "func", factory)
    over: Any = space
    if kind in OVER_SUPERNET.values():
        if trained is None:
            raise UserError(
                "the searcher gradient asks a trained supernet, and here networks are trained one "
                "by one: take it after a one-shot search, e.g. search=spos "
                "search.ranking.searcher=gradient"
            )
        over = trained
    number = TRIALS if trials is None and kind is not Enumerate else trials
    return factory(over, seed, objectives), number


def check_name(searcher: object) -> None:
    """Raises UserError unless it is a searcher's name, or no name at all."""
    if isinstance(searcher, str) and searcher not in ("auto", *SEARCHERS, *OVER_SUPERNET):
        known = ", ".join([*SEARCHERS, *OVER_SUPERNET])
        raise UserError(f"no searcher {searcher!r}: there are auto, {known}")
