"""Which architectures of a space are one network, and the one of them that stands for it.

An architecture says something of every decision, also of those that its network does not read: of
blocks behind its depth, of edges that are not kept, inside candidates that are not taken. Searchers
and fronts see it with the first option there, so that they meet each network once.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, prod

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nas.arch import Arch, Option
from nas.cost.polynomial import AnyOf, Condition, consistent, united
from nas.decision import Searchable, decisions
from nas.discretization import outermost

Picks = NDArray[np.int64]  # numbers of the options taken (n, decisions)
_ALWAYS: AnyOf = frozenset({frozenset()})
MOST = 10**6  # combinations that are counted, of the decisions that decide what others read


def read_if(model: nn.Module) -> dict[str, AnyOf]:
    """Decision -> where a network reads it, of the decisions that not every network reads."""
    names = {decision: name for name, decision in decisions(model)}
    counts = {name: len(decision.options) for decision, name in names.items()}
    found: dict[str, set[Condition]] = defaultdict(set)

    def walk(module: nn.Module, given: Condition) -> None:
        for searchable in outermost(module):
            for decision in searchable.decisions():
                found[names[decision]].add(given)
            if not any(_inside(searchable)):
                continue
            for options in searchable.combinations():
                taken = {(names[d], d.options.index(option)) for d, option in options.items()}
                if consistent(given | taken):
                    walk(searchable.materialize(options), given | taken)

    walk(model, frozenset())
    fewer = {name: frozenset(united(found[name], counts)) for name in counts}
    return {name: any_of for name, any_of in fewer.items() if not any_of >= _ALWAYS}


def _inside(searchable: Searchable) -> Iterator[Searchable]:
    """What else is decided inside."""
    own = set(searchable.decisions())
    for module in searchable.modules():
        if isinstance(module, Searchable) and not own.issuperset(module.decisions()):
            yield module


def canonical(model: nn.Module, arch: Arch) -> Arch:
    """The architecture of the same network that has the first option of all that it does not read.

    Example:
        >>> import nas
        >>> from nas.distinct import canonical
        >>> from torch import nn
        >>> inner = nas.ChoiceBlock({"tanh": nn.Tanh(), "relu": nn.ReLU()})
        >>> outer = nas.ChoiceBlock({"one": inner, "none": nn.Identity()})
        >>> arch = nas.Arch("mine", {"0": "none", "0.candidates.one": "relu"})
        >>> dict(canonical(nn.Sequential(outer), arch).choices)
        {'0': 'none', '0.candidates.one': 'tanh'}
    """
    return Distinct.of(model).canonical(arch)


@dataclass(frozen=True)
class Distinct:
    """The networks of a space, each as one architecture.

    Args:
        options: decision -> its options.
        read_if: of the decisions that not every network reads, see `read_if`.
    """

    options: Mapping[str, tuple[Option, ...]]
    read_if: Mapping[str, AnyOf]

    @classmethod
    def of(cls, model: nn.Module) -> "Distinct":
        """Those of a supernet."""
        return cls({name: d.options for name, d in decisions(model)}, read_if(model))

    def unread(self, arch: Arch) -> list[str]:
        """The decisions that the network of `arch` does not read."""
        taken = {(name, self.options[name].index(o)) for name, o in arch.choices.items()}
        return [
            name for name, any_of in self.read_if.items() if not any(c <= taken for c in any_of)
        ]

    def canonical(self, arch: Arch) -> Arch:
        """See `canonical`."""
        first = {name: self.options[name][0] for name in self.unread(arch)}
        return replace(arch, choices={**arch.choices, **first}) if first else arch

    def canonical_picks(self, picks: Picks) -> Picks:
        """As `canonical`, of many architectures; equal ones stay."""
        return self._first_of_unread(picks, {name: i for i, name in enumerate(self.options)})

    def _first_of_unread(self, picks: Picks, columns: Mapping[str, int]) -> Picks:
        found = picks.copy()
        for name in columns.keys() & self.read_if.keys():
            found[~_read(self.read_if[name], picks, columns), columns[name]] = 0
        return found

    @cached_property
    def count(self) -> int:
        """How many networks there are; at most so many where that would take long to count."""
        counts = {name: len(options) for name, options in self.options.items()}
        return prod(self._count(part, counts) for part in self._parts())

    def _parts(self) -> list[list[str]]:
        """Groups of decisions of which none says anything of what is read of another group."""
        parts: list[set[str]] = []
        for name in self.options:
            near = {name} | {other for c in self.read_if.get(name, ()) for other, _ in c}
            for part in [part for part in parts if part & near]:
                near |= part
                parts.remove(part)
            parts.append(near)
        return [[name for name in self.options if name in part] for part in parts]

    def _count(self, part: Sequence[str], counts: Mapping[str, int]) -> int:
        asked = {other for name in part for c in self.read_if.get(name, ()) for other, _ in c}
        outer = [name for name in part if name in asked]
        rows, columns = self._rows(outer, MOST), {name: i for i, name in enumerate(outer)}
        if rows is None:
            return prod(counts[name] for name in part)
        total = np.ones(len(rows), dtype=object)  # whole numbers of any size
        for name in part:
            if name not in asked:
                read = _read(self.read_if.get(name, _ALWAYS), rows, columns)
                total *= np.where(read, counts[name], 1).astype(object)
        return int(total.sum())

    def all(self) -> Picks:
        """Every network ``(n, decisions)``, in the order of the numbers of its options."""
        rows = self._rows(list(self.options), inf)
        assert rows is not None
        return rows

    def _rows(self, names: Sequence[str], most: float) -> Picks | None:
        """All that these decisions may be, of which nothing else says whether they are read.

        None where they would be more than `most`.
        """
        rows, columns, left = np.zeros((1, 0), dtype=np.int64), dict[str, int](), list(names)
        while left:
            name = next((n for n in left if self._asks(n) <= columns.keys()), left[0])
            left.remove(name)
            each = np.full(len(rows), len(self.options[name]))
            if self._asks(name) <= columns.keys():  # else they ask each other: see the last line
                each[~_read(self.read_if.get(name, _ALWAYS), rows, columns)] = 1
            if each.sum() > most:
                return None
            options = np.concatenate([np.arange(count) for count in each])
            rows = np.column_stack([rows.repeat(each, axis=0), options])
            columns[name] = len(columns)
        rows = self._first_of_unread(rows, columns)[:, [columns[name] for name in names]]
        return np.unique(rows, axis=0) if names else rows

    def _asks(self, name: str) -> set[str]:
        """The decisions by which it is known whether `name` is read."""
        return {other for condition in self.read_if.get(name, ()) for other, _ in condition}


def _read(any_of: AnyOf, picks: Picks, columns: Mapping[str, int]) -> NDArray[np.bool_]:
    """In which of many architectures one of the conditions holds ``(n,)``."""
    held = np.zeros(len(picks), dtype=bool)
    for condition in any_of:
        one = np.ones(len(picks), dtype=bool)
        for name, k in condition:
            one &= picks[:, columns[name]] == k
        held |= one
    return held
