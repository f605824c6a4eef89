"""`Prediction`: what the scores of some networks say of all networks of a space."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nas.arch import Arch
from nas.search.model import OptionModel, Picks, adds_most, near_front, worth_training
from nas.search.space import SearchSpace

DRAWS = 600  # from the model, when several networks are chosen by it
COMPARED = 2000  # networks that are drawn, at most


class Prediction:
    """An `OptionModel` of scores, and the networks that may be trained by it, scored or not.

    Args:
        space: of the networks.
        scores: of some networks inside the budgets, the less the better; at least one.
        noise: see `OptionModel`.
        cost: name of the cost that a front is spread over.
        also: further networks inside the budgets.
        without: networks that must not be trained.
        seed: of the draws.
    """

    def __init__(
        self,
        space: SearchSpace,
        scores: Mapping[Arch, float],
        noise: float,
        cost: str,
        also: Sequence[Arch] = (),
        without: Sequence[Arch] = (),
        seed: int = 0,
    ) -> None:
        self.space, self.scored, self.seed = space, list(scores), seed
        picks = space.picks(self.scored)
        self.model = OptionModel(picks, list(scores.values()), noise)
        found = space.around(space.picks([*self.scored, *also]))
        found = found[~_among(found, space.picks(without))]
        costs, means = space.prices(cost, found), self.model.mean(found)
        # What is scored stays, whatever is expected of it: further networks are compared with it.
        kept = _among(found, picks)
        kept[near_front(means, costs, COMPARED)] = True
        self.picks, self.costs, self.means = found[kept], costs[kept], means[kept]

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        return self.model.draws(self.picks, DRAWS, np.random.default_rng(self.seed))

    def _arch(self, place: int) -> Arch:
        return self.space.arch(dict(zip(self.space.options, self.picks[place], strict=True)))

    def best(self) -> Arch:
        """The network of the best expected score; of equal ones the cheapest."""
        return self._arch(int(np.lexsort((self.costs, self.means))[0]))

    def value(self, arch: Arch) -> float:
        """The expected score of a network, on the scale of those given."""
        return self.model.value(self.space.picks([arch]))

    def front(self, size: int) -> list[Arch]:
        """So many networks whose front has the largest expected hypervolume, the cheapest first."""
        return [self._arch(i) for i in worth_training(self._draws, self.costs, size)]

    def further(self) -> Arch | None:
        """The network that adds most to the front of those scored; None: no other adds anything."""
        scored = np.flatnonzero(_among(self.picks, self.model.picks))
        place = adds_most(self._draws, self.costs, [int(i) for i in scored])
        return None if place is None else self._arch(place)


def _among(rows: Picks, others: Picks) -> NDArray[np.bool_]:
    """Which of the rows ``(n, decisions)`` are among the others ``(m, decisions)``."""
    found: NDArray[np.bool_] = (rows[:, None] == others[None]).all(axis=2).any(axis=1)
    return found
