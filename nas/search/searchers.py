"""Names of searchers, and what each of them is: a new one is a class, a line here and a YAML."""

from collections.abc import Callable, Sequence
from typing import Any

from nas.errors import UserError
from nas.search.bayes import TPE
from nas.search.evolution import NSGA2, RegularisedEvolution
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
}

SMALL = 2000  # "auto" enumerates spaces up to this size
TRIALS = 500  # of a searcher that has no end of its own, where none are given


def make(
    searcher: str | Callable[..., Searcher],
    space: SearchSpace,
    seed: int,
    objectives: Sequence[str],
    trials: int | None,
) -> tuple[Searcher, int | None]:
    """The searcher, and the number of trials it is given (None: until it has none left).

    Args:
        searcher: a name, "auto", or ``(space, seed, objectives) -> Searcher``.

    Raises:
        UserError: no such name, or the searcher cannot work on this space.
    """
    if searcher == "auto":
        searcher = "enumerate" if space.size <= SMALL else "predictor"
    factory: Any = SEARCHERS[searcher] if isinstance(searcher, str) else searcher
    endless = getattr(factory, "func", factory) is not Enumerate
    return factory(space, seed, objectives), TRIALS if trials is None and endless else trials


def check_name(searcher: object) -> None:
    """Raises UserError unless it is a searcher's name, or no name at all."""
    if isinstance(searcher, str) and searcher not in ("auto", *SEARCHERS):
        raise UserError(f"no searcher {searcher!r}: there are auto, {', '.join(SEARCHERS)}")
