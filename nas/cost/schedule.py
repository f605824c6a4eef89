"""The order in which a model runs: its operators, the activations they read, and those they make.

Tensors are row-major, as in runtimes on devices: a view that is row-major too shares the memory of
what it views, any other (a transposition, a slice across rows) is copied where it is made. Eager
PyTorch may copy later, in whatever reads the view, and where depends on the layouts of the
candidates before it: an unrolled supernet could not tell what each network does.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from nas.cost.base import Choice, Condition
from nas.cost.polynomial import consistent
from nas.supernet.candidates import by_place

# A buffer, and the condition (besides that of the reader) under which it is this one that is read:
# the output of a choice is that of whichever candidate is taken.
Read = tuple[Condition, int]

# Operators that may write over their input though torch does not tag them as pointwise.
_POINTWISE = {"hardswish", "_prelu_kernel", "log_sigmoid_forward"}
_NORMS = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One operator that runs; views are none.

    `pointwise`: it has one activation to read and may write its output over it.
    """

    operator: str
    module: str
    path: tuple[Choice, ...]  # the choices it stands under, outermost first
    reads: tuple[Read, ...]
    makes: tuple[int, ...]
    pointwise: bool = False


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps in execution order, every option of every decision unrolled, and the buffers.

    A buffer is the storage of a floating point activation: of an input, or made by a step. A number
    (0-dim) is none.
    """

    steps: tuple[Step, ...]
    sizes: tuple[int, ...]  # elements of each buffer
    inputs: tuple[int, ...]
    outputs: tuple[Read, ...]


class ScheduleRecorder:
    """Collects a `Schedule` while a model runs.

    Args:
        open_choices: what is chosen now, outermost first; None entries do not count.
        where: the path of the module that runs now.
        nodes: paths of modules whose own operators are in no network: they mix candidates.
    """

    def __init__(
        self,
        open_choices: Sequence[Choice | None],
        where: Callable[[], str],
        nodes: Collection[str],
    ) -> None:
        self._open, self._where, self._nodes = open_choices, where, nodes
        self._steps: list[Step] = []
        self._sizes: list[int] = []
        self._reads: dict[int, tuple[Read, ...]] = {}  # storage -> what reading it reads
        self._kept: list[torch.UntypedStorage] = []  # so that no storage gets the address of one
        # Of each running decision, what it may return at each place of its output.
        self._choices: list[dict[str, list[Read]]] = []

    def run(self, forward: Callable[[], Any], inputs: Sequence[Tensor]) -> Schedule:
        """Call `forward`, which reads `inputs`, and return what it did."""
        start = [made for x in inputs for made in self._make(x)]
        outputs = [read for out in tree_leaves(forward()) for read in self._read(out)]
        used = {buffer for step in self._steps for _, buffer in step.reads}
        used |= {buffer for _, buffer in outputs}
        steps = (_without_unused(step, used) for step in self._steps)
        return Schedule(tuple(steps), tuple(self._sizes), tuple(start), tuple(outputs))

    def operator(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """Take note of one operator; gives its output, row-major."""
        if self._where() in self._nodes:
            return out
        inputs = tensors((args, kwargs))
        old = {key_of(x) for x in inputs}
        if func._schema.is_mutable:  # in place: what it returns is what it was given
            self._step(func, inputs, out, old)
            return out
        if all(key_of(x) in old for x in tensors(out)):
            return tree_map(self._view, out)
        out = tree_map(_row_major, out)
        self._step(func, inputs, out, old)
        return out

    def enter(self) -> None:
        """A decision starts to run."""
        self._choices.append({})

    def option(self, own: Condition, out: Any) -> None:
        """What runs has got `out` from its candidate that stands under the condition `own`."""
        for place, leaf in by_place(out).items():
            reads = ((condition | own, buffer) for condition, buffer in self._read(leaf))
            possible = [read for read in reads if consistent(read[0])]
            self._choices[-1].setdefault(place, []).extend(possible)

    def leave(self, out: Any) -> Any:
        """The decision returns; gives tensors that stand for whichever output is taken."""
        choices = self._choices.pop()
        leaves = [self._join(x, choices.get(place, [])) for place, x in by_place(out).items()]
        return tree_unflatten(leaves, tree_flatten(out)[1])

    def _join(self, out: Any, alternatives: Sequence[Read]) -> Any:
        if not isinstance(out, Tensor):
            return out
        # A storage of its own: with a single option `out` is what that option gave.
        joined = out.clone(memory_format=torch.contiguous_format)
        self._kept.append(joined.untyped_storage())
        self._reads[key_of(joined)] = tuple(dict.fromkeys(alternatives))
        return joined

    def _step(self, func: Any, inputs: list[Tensor], out: Any, old: set[int]) -> None:
        name = func.overloadpacket.__name__
        fresh = [x for x in tensors(out) if key_of(x) not in old]
        over = torch.Tag.pointwise in func.tags or name in _POINTWISE | _NORMS
        one = sum(key_of(x) in self._reads for x in inputs) == 1
        self._add(name, inputs, fresh, over and one and not func._schema.is_mutable)

    def _add(
        self, name: str, inputs: list[Tensor], outputs: list[Tensor], pointwise: bool = False
    ) -> None:
        path = tuple(choice for choice in self._open if choice is not None)
        reads = dict.fromkeys(read for x in inputs for read in self._read(x))
        possible = (read for read in reads if consistent(read[0].union(path)))
        # What it reads before what it makes: a storage is looked up and then entered.
        step = (name, self._where(), path, tuple(possible))
        made = tuple(buffer for x in outputs for buffer in self._make(x))
        self._steps.append(Step(*step, made, pointwise))

    def _view(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or key_of(x) not in self._reads:
            return x  # of a parameter
        copy = _row_major(x)
        if copy is not x:
            self._add("copy", [x], [copy])
        return copy

    def _read(self, x: object) -> tuple[Read, ...]:
        return self._reads.get(key_of(x), ()) if isinstance(x, Tensor) else ()

    def _make(self, x: Tensor) -> list[int]:
        counted = x.ndim > 0 and (x.is_floating_point() or x.is_complex())
        if not counted or not x.numel() or key_of(x) in self._reads:
            return []
        storage, buffer = x.untyped_storage(), len(self._sizes)
        self._kept.append(storage)
        self._sizes.append(storage.nbytes() // x.itemsize * (2 if x.is_complex() else 1))
        self._reads[key_of(x)] = ((frozenset(), buffer),)
        return [buffer]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in `value`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):  # arguments of operators, for which pytrees are slow
        return [x for item in value for x in tensors(item)]
    if isinstance(value, dict):
        return [x for item in value.values() for x in tensors(item)]
    if value is None or isinstance(value, int | float | str):
        return []
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def key_of(x: Tensor) -> int:
    """The storage of `x`, as long as that is kept."""
    return int(x.untyped_storage()._cdata)


def _row_major(x: Any) -> Any:
    """`x`, or a row-major copy of it; a broadcast (strides of 0) stays one, as kernels read it."""
    if not isinstance(x, Tensor) or x.is_contiguous() or 0 in x.stride():
        return x
    return x.contiguous()


def _without_unused(step: Step, used: set[int]) -> Step:
    """Leave out what only training reads, e.g. the statistics that a LayerNorm also returns."""
    makes = tuple(b for i, b in enumerate(step.makes) if i == 0 or b in used)
    return Step(step.operator, step.module, step.path, step.reads, makes, step.pointwise)
