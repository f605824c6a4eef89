"""Atoms: the places along one dimension of one tensor, and which of them must go together."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]  # an atom for each place along a dimension; FIXED: none, it stays
FIXED = -1


class Atoms:
    """A union-find over atoms, of which some are fixed: they stay in the network, for a reason."""

    def __init__(self) -> None:
        self._parent = np.zeros(0, dtype=np.int64)
        self._why = np.zeros(0, dtype=np.int64)  # index into reasons; -1: not fixed
        self._reasons: list[str] = []

    def new(self, count: int) -> Places:
        """So many atoms, each on its own."""
        start = len(self._parent)
        made = np.arange(start, start + count)
        self._parent = np.concatenate([self._parent, made])
        self._why = np.concatenate([self._why, np.full(count, -1)])
        return made

    def fix(self, places: Places, why: str) -> None:
        """These atoms stay, and whatever is tied to them. The first reason counts."""
        found = places[places >= 0]
        if len(found) and (open_ := found[self._why[found] < 0]).size:
            if not self._reasons or self._reasons[-1] != why:
                self._reasons.append(why)
            self._why[open_] = len(self._reasons) - 1

    def fix_all(self, several: Iterable[Places], why: str) -> None:
        """See `fix`."""
        for places in several:
            self.fix(places, why)

    def tie(self, left: Places, right: Places, why: str) -> None:
        """Place by place, these go together; what is tied to a fixed place stays.

        Args:
            why: the reason for the latter.
        """
        free = (left >= 0) & (right >= 0)
        self.fix(left[~free], why)
        self.fix(right[~free], why)
        left, right = left[free], right[free]
        while True:
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            if not apart.any():
                return
            left, right = left[apart], right[apart]
            # A root may be here several times: one of its ties is made, the others come next.
            low, high = np.minimum(left, right), np.maximum(left, right)
            np.minimum.at(self._parent, high, low)

    def roots(self, places: Places) -> Places:
        """The atom that stands for all that go with each."""
        found = self._parent[places]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[places] = found
        return found

    def units(self) -> tuple[Places, Sequence[str | None]]:
        """For each atom the number of its unit, and for each unit why it stays, None: it need not.

        Units are numbered by their first atom.
        """
        if not len(self._parent):
            return self._parent, []
        roots = self.roots(np.arange(len(self._parent)))
        _, units = np.unique(roots, return_inverse=True)
        first = np.full(units.max() + 1, len(self._reasons))
        fixed = self._why >= 0
        np.minimum.at(first, units[fixed], self._why[fixed])
        reasons: list[Any] = [*self._reasons, None]
        return units, [reasons[index] for index in first]
