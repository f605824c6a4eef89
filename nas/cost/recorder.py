"""The one recorder of a forward pass: what runs, under which choices, and what it reads and makes.

Tensors are row-major, as in runtimes on devices: a view that is row-major too shares the memory of
what it views, any other (a transposition, a slice across rows) is copied where it is made. Eager
PyTorch may copy later, in whatever reads the view, and where depends on the layouts of the
candidates before it: an unrolled supernet could not tell what each network does.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from nas.cost.dry_run import ChoiceNode, Inputs, Unrolled
from nas.cost.layer import LayerSpec, stored
from nas.cost.operators import check_known, is_view, layers_of, run_operator, text_of
from nas.cost.polynomial import Choice, Condition, consistent
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


class Buffer(NamedTuple):
    """The storage of a floating point activation of at least one dimension."""

    numel: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator that runs outside of what mixes candidates.

    Attributes:
        name: of `torch.ops`, without overload.
        module: path of the module that runs it.
        choices: what it stands under, outermost first.
        reads: the buffers that it may read.
        makes: the buffers that it makes.
        overwrites: of `reads`, those that it works on in place.
        pointwise: it has one activation to read and may write its output over it.
        view: it only looks at its input differently, in the same memory.
        layers: the calls that it stands for.
        text: see `nas.cost.operators.text_of`; "" for a copy that is made only here.
        free: by its declaration it computes nothing.
        weight: identity of the layer's weight, if a norm behind it could be folded into that.
        has_bias: whether that layer adds a bias.
        norm_bias: of a norm with constant statistics, the bias that stays when it is folded.
    """

    name: str
    module: str
    choices: tuple[Choice, ...]
    reads: tuple[Read, ...] = ()
    makes: tuple[int, ...] = ()
    overwrites: tuple[Read, ...] = ()
    pointwise: bool = False
    view: bool = False
    layers: tuple[LayerSpec, ...] = ()
    text: str = ""
    free: bool = False
    weight: int | str | None = None
    has_bias: bool = False
    norm_bias: LayerSpec | None = None

    @property
    def condition(self) -> Condition:
        """Where it runs."""
        return frozenset(self.choices)


@dataclass(slots=True)
class Piece:
    """One call of a module that is as large as can be without a choice inside.

    Attributes:
        condition: where the call happens.
        args, kwargs: of the call; their tensors have no memory, as far as that is possible.
        first, end: its operators are ``operators[first:end]``.
        follows: its only argument is what the piece before it gave.
    """

    path: str
    condition: Condition
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int
    end: int
    follows: bool


@dataclass(slots=True)
class _Frame:
    """A module that runs.

    Attributes:
        own: the conditions under which its caller runs it as a candidate.
        alternatives: of a choice node, what each place of its output may be.
    """

    path: str
    choices: tuple[Choice, ...] = ()
    own: Sequence[Condition] = ()
    alternatives: dict[str, list[Read]] = field(default_factory=dict)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows one forward pass of `model`, whose candidates `nodes` run.

    What an operator makes of weights and constants alone is a weight again, at no cost unless the
    operator is a product, which counts where it runs. What it makes of data is data.

    Raises:
        UserError: a matrix of weights goes, with data, into an operator whose cost is not known.
    """

    def __init__(self, model: nn.Module, nodes: Sequence[ChoiceNode], inputs: Inputs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[LayerSpec, Condition]] = []
        self.operators: list[Operator] = []
        self.buffers: list[Buffer] = []
        self.pieces: list[Piece] = []
        self.paths = {module: name for name, module in model.named_modules()}
        self._nodes = {node.path: node for node in nodes}
        self._candidates: dict[nn.Module, list[tuple[str, Condition]]] = defaultdict(list)
        for node in nodes:
            for name, condition, candidate in node.candidates:
                self._candidates[candidate].append((node.path, condition))
                # An option may be put together of submodules, and be none itself.
                self.paths.setdefault(candidate, f"{node.path}.{name}")
        self._modules = {path: module for module, path in self.paths.items()}
        self._whole = set(_whole(model, nodes))
        self._depth = 0  # of pieces: one may be a part of another
        self._last: Any = None  # what the last piece gave
        self._frames = [_Frame("")]
        # By storage: views, and tensors that share one with a weight, are of the same sort.
        self._weights = {key_of(x) for x in model.parameters()}
        self._data: set[int] = set()
        self._reads: dict[int, tuple[Read, ...]] = {}  # storage -> what reading it reads
        self._kept: list[torch.UntypedStorage] = []  # so that no storage gets the address of one
        self._sort(self._data, tensors(inputs))
        self.starts = tuple(made for x in tensors(inputs) for made in self._make(x))

    @property
    def where(self) -> str:
        """Path of the module that runs."""
        return self._frames[-1].path

    def attach(self, stack: ExitStack) -> None:
        """Follow every module until `stack` is closed."""
        for module in self.paths:
            before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
            after = module.register_forward_hook(self._leave)
            stack.callback(before.remove)
            stack.callback(after.remove)

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caller = self._frames[-1]
        # One module may be an option of two decisions, or be called by others as well.
        own = [c for path, c in self._candidates.get(module, ()) if path == caller.path]
        added = (choice for condition in own for choice in sorted(condition))
        self._frames.append(_Frame(self.paths[module], (*caller.choices, *added), own))
        if module in self._whole:
            self._depth += 1
            if self._depth == 1:
                self._begin_piece(args, kwargs)

    def _leave(self, module: nn.Module, _args: Any, out: Any) -> Any:
        frame = self._frames[-1]
        if module in self._whole:
            self._depth -= 1
            if not self._depth:
                self.pieces[-1].end, self._last = len(self.operators), out
        if frame.path in self._nodes:
            out = self._joined(out, frame.alternatives)
            if isinstance(module, Unrolled):
                self._sort(self._data, tensors(out))  # though it is made of nothing
        self._frames.pop()
        for condition in frame.own:
            self._offer(condition, out)
        return out

    def _begin_piece(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frame, now = self._frames[-1], len(self.operators)
        follows = len(args) == 1 and not kwargs and args[0] is self._last
        args, kwargs = tree_map(_without_memory, (args, kwargs))
        condition = frozenset(frame.choices)
        self.pieces.append(Piece(frame.path, condition, args, kwargs, now, now, follows))

    def _offer(self, own: Condition, out: Any) -> None:
        """The node that runs has got `out` from its candidate that stands under `own`."""
        for place, leaf in by_place(out).items():
            reads = ((condition | own, buffer) for condition, buffer in self.reads_of([leaf]))
            possible = [read for read in reads if consistent(read[0])]
            self._frames[-1].alternatives.setdefault(place, []).extend(possible)

    def _joined(self, out: Any, alternatives: Mapping[str, Sequence[Read]]) -> Any:
        """Tensors that stand for whichever output is taken."""
        leaves = []
        for place, leaf in by_place(out).items():
            joined = leaf
            if isinstance(leaf, Tensor):
                # A storage of its own: with a single option `out` is what that option gave.
                joined = leaf.clone(memory_format=torch.contiguous_format)
                self._kept.append(joined.untyped_storage())
                self._reads[key_of(joined)] = tuple(dict.fromkeys(alternatives.get(place, ())))
            leaves.append(joined)
        return tree_unflatten(leaves, tree_flatten(out)[1])

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = run_operator(func, args, kwargs)
        inputs = tensors((args, kwargs))
        # Data also where data was written over what was a weight.
        data = [x for x in inputs if key_of(x) in self._data]
        rest = (x for x in inputs if key_of(x) not in self._data)
        weights = [x for x in rest if key_of(x) in self._weights]
        frame, found = self._frames[-1], layers_of(func, args, out)
        if found is None and data and weights:
            check_known(func, weights, data, frame.path)
        layers = tuple(LayerSpec(module=frame.path, **fields) for fields in found or ())
        self.calls += [(spec, frozenset(frame.choices)) for spec in layers]
        if frame.path not in self._nodes:
            out = self._note(func, args, kwargs, inputs, out, layers)
        if data or weights:
            made = tensors(out)
            if func._schema.is_mutable:
                made += _written(func, args, kwargs)
            self._sort(self._data if data else self._weights, made)
        return out

    def _note(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: Sequence[Tensor],
        out: Any,
        layers: tuple[LayerSpec, ...],
    ) -> Any:
        """Write down one operator; gives its output, row-major."""
        name, frame = func.overloadpacket.__name__, self._frames[-1]
        old, in_place = {key_of(x) for x in inputs}, func._schema.is_mutable
        view = not in_place and all(key_of(x) in old for x in tensors(out))
        if not (view or in_place):
            out = tree_map(_row_major, out)
        # What it reads before what it makes: a storage is looked up and then entered.
        reads = self._possible(inputs)
        single = sum(key_of(x) in self._reads for x in inputs) == 1
        over = torch.Tag.pointwise in func.tags or name in _POINTWISE | _NORMS
        fresh = [x for x in tensors(out) if key_of(x) not in old]
        self.operators.append(
            Operator(
                name,
                frame.path,
                frame.choices,
                reads,
                tuple(buffer for x in fresh for buffer in self._make(x)),
                self._possible(_written(func, args, kwargs)) if in_place else (),
                over and single and not in_place,
                view,
                layers,
                text_of(func, args, out),
                is_view(func),
                **self._folding(name, args),
            )
        )
        return tree_map(self._copied, out) if view else out

    def _copied(self, x: Any) -> Any:
        """A view that is not row-major, copied."""
        if not isinstance(x, Tensor) or key_of(x) not in self._reads:
            return x  # of a parameter
        copy = _row_major(x)
        if copy is not x:
            frame, reads = self._frames[-1], self._possible([x])
            makes = tuple(self._make(copy))
            self.operators.append(Operator("copy", frame.path, frame.choices, reads, makes))
        return copy

    def _folding(self, name: str, args: tuple[Any, ...]) -> dict[str, Any]:
        """What `nas.cost.folding` must know of an operator that is a layer, or a norm."""
        path, module = self.where, self._modules.get(self.where)
        if name == "convolution":
            # A weight that is computed before each call has no identity of its own.
            weight = id(args[1]) if isinstance(args[1], nn.Parameter) else path
            return {"weight": weight, "has_bias": args[2] is not None}
        if name in ("mm", "addmm") and isinstance(module, nn.Linear):
            return {"weight": id(module.weight), "has_bias": name == "addmm"}
        # Without running statistics there is nothing constant to fold.
        if name in _NORMS and isinstance(module, _BatchNorm) and isinstance(args[3], Tensor):
            return {"norm_bias": stored("gained", path, module, "bias", args[3])}
        return {}

    def _possible(self, inputs: Iterable[Tensor]) -> tuple[Read, ...]:
        choices = self._frames[-1].choices
        reads = dict.fromkeys(self.reads_of(inputs))
        return tuple(read for read in reads if consistent(read[0].union(choices)))

    def reads_of(self, leaves: Iterable[object]) -> tuple[Read, ...]:
        """The buffers that whoever reads `leaves` may read."""
        found = (self._reads.get(key_of(x), ()) for x in leaves if isinstance(x, Tensor))
        return tuple(read for reads in found for read in reads)

    def _make(self, x: Tensor) -> list[int]:
        counted = x.ndim > 0 and (x.is_floating_point() or x.is_complex())
        if not counted or not x.numel() or key_of(x) in self._reads:
            return []
        storage, buffer = x.untyped_storage(), len(self.buffers)
        self._kept.append(storage)
        numel = storage.nbytes() // x.itemsize * (2 if x.is_complex() else 1)
        self.buffers.append(Buffer(numel, str(x.dtype).removeprefix("torch.")))
        self._reads[key_of(x)] = ((frozenset(), buffer),)
        return [buffer]

    def _sort(self, sort: set[int], made: Iterable[Tensor]) -> None:
        """Take `made` for data, or for weights."""
        for x in made:
            storage = x.untyped_storage()
            if storage._cdata not in sort:
                sort.add(storage._cdata)
                self._kept.append(storage)


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


def _without_memory(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.is_meta:
        return x
    with _disable_current_modes():
        return torch.empty_like(x, device="meta")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among its arguments that an operator writes to."""
    found: list[Any] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[index] if index < len(args) else kwargs.get(argument.name))
    return tensors(found)


def _whole(model: nn.Module, nodes: Iterable[ChoiceNode]) -> Iterator[nn.Module]:
    """The largest modules of `model` without a choice node inside."""
    candidates = {node.module: [c for _, _, c in node.candidates] for node in nodes}
    own = set(model.modules())

    def walk(module: nn.Module) -> Iterator[nn.Module]:
        # An option may be put together of submodules, and be none itself.
        if module in own and not any(part in candidates for part in module.modules()):
            yield module
            return
        for inner in candidates.get(module, list(module.children())):
            yield from walk(inner)

    return walk(model)
