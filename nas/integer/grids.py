"""Levels that inputs of layers were trained with, as those of a graph's values.

A value that one layer reads has the levels that the layer was trained with. Layers of 8 bits that
read one value share a range that holds those of all of them, and all that other readers get.
A layer of fewer bits whose input is not its own reads a copy that is rounded for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nas.integer.capture import NetworkSteps
from nas.integer.steps import Grid, Step

Ranges = Mapping[str, tuple[float, float]]
_INHERITING = ("pool", "move")  # the levels of what they read
# What can keep a result within fewer levels; a concatenation copies those of its inputs.
_LIMITED = ("conv", "add", "mul", "mean", "table")


@dataclass(frozen=True)
class Levels:
    """Steps with copies between them, and what is known of the values.

    Args:
        steps: in their order.
        ranges: value -> smallest and largest number that it takes.
        grids: value -> exactly these levels.
    """

    steps: Sequence[Step]
    ranges: Ranges
    grids: Mapping[str, Grid]


def levels_of(found: NetworkSteps, ranges: Ranges) -> Levels:
    """What was trained, and the calibrated ranges for everything else."""
    return _Plan(found, ranges).levels()


class _Plan:
    def __init__(self, found: NetworkSteps, ranges: Ranges) -> None:
        self.found, self.ranges = found, dict(ranges)
        self.by_output = {step.output: step for step in found.steps}
        self.grids: dict[str, Grid] = {}
        self.readers: dict[str, list[Step | None]] = {}  # of a value that inherits no levels
        self.uses: dict[str, int] = {}
        for step in found.steps:
            for name in step.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1
                if step.kind not in _INHERITING:
                    self.readers.setdefault(self.root(name), []).append(step)
        self.readers.setdefault(self.root(found.end), []).append(None)

    def root(self, name: str) -> str:
        """The value whose levels a value has."""
        while (step := self.by_output.get(name)) is not None and step.kind in _INHERITING:
            name = step.inputs[0]
        return name

    def levels(self) -> Levels:
        for root, readers in self.readers.items():
            self._decide(root, {step.grid if step is not None else None for step in readers})
        for step in self.found.steps:
            if step.kind == "concat":
                self._join(step)
        return Levels(self._with_copies(), self.ranges, self.grids)

    def _decide(self, root: str, wanted: set[Grid | None]) -> None:
        """Levels, or a range, of a value, from those that its readers were trained with."""
        if len(wanted) == 1 and (grid := next(iter(wanted))) and self._holds(root, grid):
            self.grids[root] = grid
            return
        wide = [grid for grid in wanted if grid is None or grid.wide]
        if wide and any(wide):
            limits = [self.ranges[root] if grid is None else grid.limits for grid in wide]
            self.ranges[root] = min(a for a, _ in limits), max(b for _, b in limits)

    def _holds(self, root: str, grid: Grid) -> bool:
        """Whether a value itself can have these levels, and nothing else is lost by it."""
        step = self.by_output.get(root)
        if grid.wide:
            return True
        if step is None or self._averages(root):  # the input of the network has all levels
            return False
        return step.kind in _LIMITED or all(self._joins(name) for name in step.inputs)

    def _averages(self, root: str) -> bool:
        """Whether a mean of the value is read, which few levels would round too early."""
        pools = (s for s in self.found.steps if s.kind == "pool" and not s.settings["largest"])
        return any(self.root(pool.output) == root for pool in pools)

    def _joins(self, name: str) -> bool:
        """Whether a value that is concatenated can have the levels of the whole."""
        step = self.by_output.get(name)
        return step is not None and step.kind in _LIMITED and self.uses[name] == 1

    def _join(self, concat: Step) -> None:
        """One scale for what is concatenated and read by nothing else: it is copied as it is."""
        for name in concat.inputs:
            if self._joins(name):
                self.ranges[name] = self.ranges[concat.output]
                if concat.output in self.grids:
                    self.grids[name] = self.grids[concat.output]

    def _with_copies(self) -> list[Step]:
        steps: list[Step] = []
        copies: dict[tuple[str, Grid], str] = {}
        for step in self.found.steps:
            grid = step.grid
            if grid is None or grid.wide or self.grids.get(self.root(step.inputs[0])) == grid:
                steps.append(step)
                continue
            (source,) = step.inputs
            if (source, grid) not in copies:
                name = copies[source, grid] = f"{source}_rounded_{len(copies)}"
                shape = self.by_output[source].shape if source in self.by_output else None
                shape = self.found.start[1] if shape is None else shape
                steps.append(Step("add", step.path, name, shape, (source,), {"signs": (1,)}))
                self.grids[name] = grid
            steps.append(replace(step, inputs=(copies[source, grid],)))
        return steps
