"""`Steps`: what a network does, step by step in real numbers, while it is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NoReturn

from torch import Tensor, fx

from nas.errors import UserError
from nas.integer.operators import HIGHEST, LOWEST


@dataclass(frozen=True)
class Grid:
    """Levels that training has rounded a layer's input to: ``scale * (level - zero)``.

    Args:
        low, high: the smallest and the largest level.
    """

    scale: float
    zero: int
    low: int
    high: int

    @property
    def wide(self) -> bool:
        """Whether it has all levels of int8."""
        return (self.low, self.high) == (LOWEST, HIGHEST)

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number."""
        return self.scale * (self.low - self.zero), self.scale * (self.high - self.zero)


@dataclass
class Step:
    """One operator of the network, in real numbers.

    Args:
        kind: conv, add, mul, concat, pool, mean, table, move.
        path: of the layer, for messages.
        output: name of what it makes, a node of the exported graph.
        shape: of one sample of it.
        inputs: names of what it reads.
        settings: as the operator of `nas.integer.operators` of this kind has them, in real numbers.
        low, high: limits of the result.
        grid: levels that its input was rounded to while it was trained; None: any.
    """

    kind: str
    path: str
    output: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    low: float = -inf
    high: float = inf
    grid: Grid | None = None


class Steps:
    """The steps that were read so far, and the names of their results.

    Args:
        start: name of the network's input.
        shape: of a sample of it.
        batch: samples that the exported program runs on.
        tensors: node -> weight, buffer or constant.
        paths: node -> path of the module that holds the tensor.
    """

    def __init__(
        self,
        start: str,
        shape: tuple[int, ...],
        batch: int,
        tensors: Mapping[str, Tensor],
        paths: Mapping[str, str],
    ) -> None:
        self.start, self.batch, self.tensors, self.paths = start, batch, tensors, paths
        self.shapes = {start: shape}
        self.by_output: dict[str, Step] = {}
        self.same: dict[str, str] = {}  # node -> the value that it is
        self.grids: dict[str, Grid] = {}  # node -> what it rounds a value to, for a layer

    def value(self, name: str) -> str:
        """The value that a node is."""
        return self.same.get(name, name)

    def read_by(self, node: fx.Node) -> list[str]:
        """The values of the network, not its weights, that a node reads."""
        given = (source.name for source in node.all_input_nodes)
        return [self.value(name) for name in given if name not in self.tensors]

    def constant(self, node: fx.Node, given: Any) -> Tensor:
        """A weight that `node` reads."""
        if given.name not in self.tensors:
            refuse(node, "its weights are computed from the input")
        return self.tensors[given.name]

    def put(self, node: fx.Node, kind: str, inputs: Sequence[str], **settings: Any) -> Step:
        """A new step that makes what `node` makes."""
        return self.keep(Step(kind, path_of(node), node.name, shape_of(node), (*inputs,), settings))

    def keep(self, step: Step) -> Step:
        """Put a step behind the others."""
        self.by_output[step.output] = step
        self.shapes[step.output] = step.shape
        return step

    def rename(self, step: Step, node: fx.Node) -> None:
        """Let `step` make what `node` makes, which is now part of it."""
        del self.by_output[step.output]
        step.output, step.shape = node.name, shape_of(node)
        self.keep(step)

    def sole(self, node: fx.Node, kinds: Sequence[str]) -> Step | None:
        """The step that makes the input of `node`, where nothing else reads that."""
        source = next(n for n in node.all_input_nodes if n.name not in self.tensors)
        step = self.by_output.get(source.name)
        alone = step is not None and step.kind in kinds and len(source.users) == 1
        return step if alone else None

    def used(self, end: str) -> list[Step]:
        """In their order, those that `end` needs."""
        needed, kept = {end}, []
        for step in reversed(self.by_output.values()):
            if step.output in needed:
                needed.update(step.inputs)
                kept.append(step)
        return kept[::-1]


def refuse(node: fx.Node, why: str = "") -> NoReturn:
    """Raises UserError: the layer that `node` is in has no integer form."""
    stack = [*node.meta.get("nn_module_stack", {"": ("", "")}).values()]
    path, kind = stack[-1]
    kind = str(getattr(kind, "__name__", kind)).rpartition(".")[2]
    where = f"the layer {path!r} ({kind})" if path else "the network itself"
    raise UserError(
        f"{where} has no integer form ({why or f'operator {name_of(node)}'}): use int8_onnx or "
        "int8_pte, or another operation"
    )


def name_of(node: fx.Node) -> str:
    """The operator's name, without namespace and overload."""
    target: Any = node.target
    return str(getattr(target, "overloadpacket", target).__name__)


def path_of(node: fx.Node) -> str:
    """The innermost module that a node is in."""
    stack = node.meta.get("nn_module_stack")
    return str([*stack.values()][-1][0]) if stack else ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of one sample of what a node makes."""
    return tuple(node.meta["val"].shape[1:])


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """By the names of the operator's schema."""
    target: Any = node.target
    names = [argument.name for argument in target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}
