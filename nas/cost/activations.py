"""The activations of a forward pass: the memory each one is in, and the sizes it may have."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from nas.cost.polynomial import Choice, Condition, consistent, united
from nas.cost.sizes import Size, sized
from nas.supernet.candidates import by_place

T = TypeVar("T")

# A buffer, and the condition (besides that of the reader) under which it is this one that is read:
# the output of a choice is that of whichever candidate is taken.
Read = tuple[Condition, int]

# Arguments by position and by name, and the condition under which they have these sizes.
Case = tuple[Condition, tuple[Any, ...], dict[str, Any]]


class Buffer(NamedTuple):
    """The storage of a floating point activation of at least one dimension."""

    numel: int
    dtype: str


class Activations:
    """Which buffers reading a tensor reads, and of which size it is, under which choices.

    A tensor whose size depends on decisions (channels that are searched) is a stand-in of the
    largest size for one tensor of each size.

    Args:
        options: decision name -> number of options.
        weights, inputs: of the model.
    """

    def __init__(
        self, options: Mapping[str, int], weights: Iterable[Tensor], inputs: Iterable[Tensor]
    ) -> None:
        self.options = options
        self.buffers: list[Buffer] = []
        # By storage: views, and tensors that share one with a weight, are of the same sort.
        self.weights = {key_of(x) for x in weights}
        self.data: set[int] = set()
        self.reads: dict[int, tuple[Read, ...]] = {}  # storage -> what reading it reads
        # Storage of a stand-in -> the tensor of each size, under conditions one of which holds.
        self.sizes: dict[int, list[tuple[Condition, Tensor]]] = {}
        self._kept: list[torch.UntypedStorage] = []  # so that no storage gets the address of one
        inputs = list(inputs)
        self.sort(self.data, inputs)
        self.starts = tuple(made for x in inputs for made in self.make(x))

    def reads_of(self, leaves: Iterable[object]) -> tuple[Read, ...]:
        """The buffers that whoever reads `leaves` may read."""
        found = (self.reads.get(key_of(x), ()) for x in leaves if isinstance(x, Tensor))
        return tuple(read for reads in found for read in reads)

    def _any_of(self, found: Iterable[tuple[Condition, Tensor]]) -> tuple[Read, ...]:
        """The buffers that whoever reads the tensor whose condition holds may read."""
        reads = ((own | c, buffer) for own, x in found for c, buffer in self.reads_of([x]))
        return tuple(dict.fromkeys(read for read in reads if consistent(read[0])))

    def make(self, x: Tensor) -> list[int]:
        """The new buffer that `x` is in, unless it is in a known one or is no activation."""
        counted = x.ndim > 0 and (x.is_floating_point() or x.is_complex())
        if not counted or not x.numel() or key_of(x) in self.reads:
            return []
        storage, buffer = x.untyped_storage(), len(self.buffers)
        self._kept.append(storage)
        numel = storage.nbytes() // x.itemsize * (2 if x.is_complex() else 1)
        self.buffers.append(Buffer(numel, str(x.dtype).removeprefix("torch.")))
        self.reads[key_of(x)] = ((frozenset(), buffer),)
        return [buffer]

    def enter(self, x: Tensor, buffer: int | None, is_data: bool) -> None:
        """Take `x` for what is in the known `buffer`, if it is in one."""
        self._kept.append(x.untyped_storage())
        if buffer is not None:
            self.reads[key_of(x)] = ((frozenset(), buffer),)
        if is_data:
            self.data.add(key_of(x))

    def sort(self, sort: set[int], made: Iterable[Tensor]) -> None:
        """Take `made` for data, or for weights."""
        for x in made:
            storage = x.untyped_storage()
            if storage._cdata not in sort:
                sort.add(storage._cdata)
                self._kept.append(storage)

    def cases(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], given: Sequence[Choice]
    ) -> list[Case]:
        """The arguments in every size that they may have under the choices `given`."""
        alternatives: dict[int, Sequence[tuple[Condition, Any]]] = {}
        for x in leaves((args, kwargs)):
            if isinstance(x, Size):
                alternatives[id(x)] = x.cases
            elif isinstance(x, Tensor) and key_of(x) in self.sizes:
                alternatives[key_of(x)] = self.sizes[key_of(x)]
        if not alternatives:
            return [(frozenset(), args, kwargs)]
        found: list[tuple[Condition, dict[int, Any]]] = [(frozenset(), {})]
        for key, several in alternatives.items():
            possible = _possible(several, given)
            # One by one: of thirty tensors that one decision sizes, few combinations can be.
            found = [
                (before | condition, {**taken, key: x})
                for before, taken in found
                for condition, x in possible
                if consistent(before | condition)
            ]
        return [(c, *tree_map(partial(_sized, taken), (args, kwargs))) for c, taken in found]

    def alternatives(self, x: Tensor, given: Sequence[Choice]) -> list[Tensor]:
        """The tensors that x may stand for under the choices `given`; none if it has one size."""
        return [y for _, y in _possible(self.sizes.get(key_of(x), ()), given)]

    def shape_of(self, x: Tensor) -> tuple[int, ...]:
        """The sides of a tensor, those whose size depends on decisions as `Size`."""
        found = self.sizes.get(key_of(x))
        if found is None or not all(y.ndim == x.ndim for _, y in found):
            return tuple(x.shape)
        return tuple(sized(n, ((c, y.shape[d]) for c, y in found)) for d, n in enumerate(x.shape))

    def joined(
        self, out: Any, alternatives: Sequence[tuple[Condition, Any]], given: Sequence[Choice]
    ) -> Any:
        """Tensors that stand for whichever of `alternatives` is taken, structured as `out`.

        Args:
            alternatives: each with its condition; one of them holds under the choices `given`.
        """
        placed = [(condition, by_place(other)) for condition, other in alternatives]
        leaves = []
        for place, leaf in by_place(out).items():
            found = [(condition, other.get(place)) for condition, other in placed]
            leaves.append(self._either(leaf, found, given) if isinstance(leaf, Tensor) else leaf)
        return tree_unflatten(leaves, tree_flatten(out)[1])

    def _either(
        self, leaf: Tensor, found: Sequence[tuple[Condition, Any]], given: Sequence[Choice]
    ) -> Tensor:
        """A tensor like `leaf` that stands for whichever of `found` is taken."""
        sized = [
            (own | condition, x)
            for own, other in found
            if isinstance(other, Tensor)
            for condition, x in self.sizes.get(key_of(other), [(frozenset(), other)])
        ]
        reads = self._any_of(sized)
        by_shape: dict[torch.Size, list[tuple[Condition, Tensor]]] = defaultdict(list)
        for condition, x in _possible(sized, given):
            by_shape[x.shape].append((condition, x))
        if len(by_shape) < 2:
            shape = next(iter(by_shape), leaf.shape)
            return self.stand_in(leaf if leaf.shape == shape else by_shape[shape][0][1], reads)
        sizes = []
        for same in by_shape.values():
            for condition in united((c for c, _ in same), self.options):
                members = [(c, x) for c, x in same if condition <= c]
                x = members[0][1]
                if len(members) > 1:
                    x = self.stand_in(x, self._any_of(members))
                sizes.append((condition, x))
        largest = [max(sides) for sides in zip(*by_shape, strict=True)]
        with _disable_current_modes():
            made = self.stand_in(leaf.new_zeros(largest), reads)
        self.sizes[key_of(made)] = sizes
        return made

    def stand_in(self, like: Tensor, reads: tuple[Read, ...]) -> Tensor:
        """A tensor like `like`, by reading which `reads` are read."""
        # A storage of its own: with a single option it is what that option gave.
        with _disable_current_modes():
            made = like.clone(memory_format=torch.contiguous_format)
        self._kept.append(made.untyped_storage())
        self.reads[key_of(made)] = reads
        # What a choice gives is data, unless it is made of weights alone.
        (self.weights if key_of(like) in self.weights else self.data).add(key_of(made))
        return made


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in `value`."""
    return [x for x in leaves(value) if isinstance(x, Tensor)]


def leaves(value: Any) -> list[Any]:
    """Every tensor in `value`, and every `Size`."""
    if isinstance(value, Tensor | Size):
        return [value]
    if isinstance(value, tuple | list):  # arguments of operators, for which pytrees are slow
        return [x for item in value for x in leaves(item)]
    if isinstance(value, dict):
        return [x for item in value.values() for x in leaves(item)]
    if value is None or isinstance(value, int | float | str):
        return []
    return [x for x in tree_leaves(value) if isinstance(x, Tensor | Size)]


def key_of(x: Tensor) -> int:
    """The storage of `x`, as long as that is kept."""
    return int(x.untyped_storage()._cdata)


def _possible(
    found: Iterable[tuple[Condition, T]], given: Sequence[Choice]
) -> list[tuple[Condition, T]]:
    """Those whose condition may hold under `given`, and what it says beyond that."""
    taken = dict(given)  # the innermost, where choices contradict each other
    return [
        (condition.difference(given), x)
        for condition, x in found
        if all(taken.get(name, option) == option for name, option in condition)
    ]


def _sized(sizes: Mapping[int, Any], x: Any) -> Any:
    if isinstance(x, Size):
        return sizes[id(x)]
    return sizes.get(key_of(x), x) if isinstance(x, Tensor) else x
