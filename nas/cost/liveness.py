"""Where what an operator makes reaches the output: runtimes leave out what does not.

In a cell whose nodes add up edges, an edge is dead where all edges behind its node are ``none``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product

from nas.cost.polynomial import Condition
from nas.cost.trace import Trace

# Decision -> the options of it, one of which is taken: a condition on several options at once.
Cube = Mapping[str, frozenset[int]]
_CUBES = 12  # that describe where an operator is live; beyond, it counts as live wherever it runs
_CONDITIONS = 1024  # that these are written out as
_MADE_OF_NOTHING = "zeros"  # part of the names of operators that look at no number of their input


def live_conditions(traced: Trace) -> list[list[Condition] | None]:
    """For each operator, conditions that exclude each other, one of which holds where it is live.

    None: it is live wherever it runs.
    """
    reached: dict[int, list[Cube]] = defaultdict(list)  # buffer -> where it reaches the output
    for condition, buffer in traced.outputs:
        reached[buffer].append(_cube(condition))
    found: list[list[Condition] | None] = []
    for operator in reversed(traced.operators):
        made = {*operator.makes, *(buffer for _, buffer in operator.overwrites)}
        own, options = _cube(operator.condition), traced.options
        live = _within(own, (cube for buffer in made for cube in reached[buffer]), options)
        if len(live) > _CUBES:
            live = [own]
        always = not made or any(cube == own for cube in live)
        found.append(None if always else _apart(live, options))
        if _MADE_OF_NOTHING not in operator.name:
            for condition, buffer in operator.reads:
                reads = _within(_cube(condition), live, options)
                reached[buffer] = _fewest([*reached[buffer], *reads], options)
    return found[::-1]


def _within(own: Cube, cubes: Iterable[Cube], options: Mapping[str, int]) -> list[Cube]:
    """Where `own` and one of the cubes hold."""
    both = (_both(own, cube) for cube in cubes)
    return _fewest((cube for cube in both if cube is not None), options)


def _cube(condition: Condition) -> Cube:
    return {name: frozenset([option]) for name, option in condition}


def _both(one: Cube, other: Cube) -> Cube | None:
    """Where both hold; None: nowhere."""
    joined = {n: one.get(n, s) & other.get(n, s) for n, s in {**one, **other}.items()}
    return joined if all(joined.values()) else None


def _fewest(cubes: Iterable[Cube], options: Mapping[str, int]) -> list[Cube]:
    """The same union of cubes that differ in more than one decision, none inside another."""
    found: list[Cube] = []
    pending = list(cubes)
    while pending:
        cube = pending.pop()
        if any(_inside(cube, other) for other in found):
            continue
        found = [other for other in found if not _inside(other, cube)]
        both = (_joined(cube, other, options) for other in found)
        joined = next((one for one in both if one is not None), None)
        if joined is None:
            found.append(cube)
        else:
            pending.append(joined)
    return found


def _inside(cube: Cube, other: Cube) -> bool:
    return all(name in cube and cube[name] <= taken for name, taken in other.items())


def _joined(one: Cube, other: Cube, options: Mapping[str, int]) -> Cube | None:
    """One cube for two of the same decisions that differ in one of them."""
    differ = [name for name in one if one[name] != other.get(name)]
    if one.keys() != other.keys() or len(differ) != 1:
        return None
    (name,) = differ
    taken = one[name] | other[name]
    rest = {n: t for n, t in one.items() if n != name}
    return rest if len(taken) == options[name] else {**rest, name: taken}


def _apart(cubes: Iterable[Cube], options: Mapping[str, int]) -> list[Condition] | None:
    """Conditions that exclude each other and hold where one of the cubes does; None: too many."""
    apart: list[Cube] = []
    for cube in cubes:
        rest = [cube]
        for before in apart:
            rest = [part for piece in rest for part in _without(piece, before, options)]
        apart += rest
    written = []
    for cube in apart:
        names = sorted(cube)
        written += [
            frozenset(zip(names, taken, strict=True))
            for taken in product(*(sorted(cube[name]) for name in names))
        ]
    return written if len(written) <= _CONDITIONS else None


def _without(cube: Cube, other: Cube, options: Mapping[str, int]) -> Iterable[Cube]:
    """What of a cube lies outside of another, in cubes that exclude each other."""
    inside: dict[str, frozenset[int]] = dict(cube)
    for name, taken in other.items():
        own = inside.get(name, frozenset(range(options[name])))
        if outside := own - taken:
            yield {**inside, name: outside}
        if not own & taken:
            return
        inside[name] = own & taken
