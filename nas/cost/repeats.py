"""Calls of equal modules on equal shapes: one is run, of the others the same is written down.

A supernet of many blocks holds the same operations over and over, and a searched depth or a pair
of edges runs the same modules under other choices.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.cost.activations import Activations, Buffer, Read, key_of
from nas.cost.operators import Operator
from nas.cost.polynomial import Choice, consistent

_OWN = frozenset(vars(nn.Module()))  # attributes that every module has
_ATOMS = (
    *(type(None), bool, int, float, str, bytes, type, BuiltinFunctionType),
    *(torch.dtype, torch.device, torch.memory_format, torch.layout),
)


class _UnlikeError(Exception):
    """Something whose effect on a call is not known."""


@dataclass(slots=True)
class Call:
    """A call of a module, by what decides what it runs.

    Attributes:
        key: equal for calls that run the same operators.
        modules, parameters: of the module, each once, in its order.
        given: the tensors among the arguments.
        storages: that these are in -> one of them.
    """

    key: Hashable
    modules: list[nn.Module]
    parameters: list[nn.Parameter]
    given: list[Tensor]
    storages: dict[int, Tensor]


def call_of(module: nn.Module, args: Any, kwargs: Any, activations: Activations) -> Call | None:
    """The call of `module`; None: what it runs may depend on more than can be compared.

    Tensors must be without memory, as what a module does may depend on values; attributes, those of
    classes too, must be numbers, texts and the like, so that a module that changes itself, or its
    class, is another one afterwards.
    """
    tensors: dict[int, int] = {}  # identity -> place, so that ties are told
    key: list[Any] = [torch.get_default_dtype()]
    given: list[Tensor] = []
    modules: dict[nn.Module, int] = {}  # with their places
    _enter(module, modules)
    parameters: dict[int, nn.Parameter] = {}
    try:
        key += map(_of_class, dict.fromkeys(map(type, modules)))
        for part in modules:
            if (
                part is not module
                and not len(part._forward_hooks) == len(part._forward_pre_hooks) == 1
            ):
                return None  # more than those of the recorder
            key += (type(part), part.training)
            for name, x in (*part._parameters.items(), *part._buffers.items()):
                key += (name, _weight(x, tensors, activations))
            parameters |= {id(x): x for x in part._parameters.values() if x is not None}
            for name, child in part._modules.items():
                key += (name, None if child is None else modules[child])
            for name, value in vars(part).items():
                if name in _OWN:
                    continue
                if name == "forward":
                    value = getattr(value, "__wrapped__", value)
                    if value != MethodType(type(part).forward, part):
                        return None
                else:
                    key += (name, _plain(value))
        key.append(_argument((args, kwargs), given, activations))
    except _UnlikeError:
        return None
    storages = {key_of(x): x for x in reversed(given)}
    found, weights = list(modules), list(parameters.values())
    return Call(tuple(key), found, weights, given, dict(reversed(storages.items())))


def _enter(module: nn.Module, found: dict[nn.Module, int]) -> None:
    """Number `module` and those in it, each once: `modules()` also makes their names."""
    found[module] = len(found)
    for child in module._modules.values():
        if child is not None and child not in found:
            _enter(child, found)


def _weight(x: Tensor | None, tensors: dict[int, int], activations: Activations) -> Hashable:
    if x is None:
        return None
    plain = type(x) in (Tensor, nn.Parameter) and x.is_meta and x.layout is torch.strided
    if not plain or key_of(x) in activations.data:
        raise _UnlikeError
    place = tensors.setdefault(id(x), len(tensors))
    return place, type(x), x.shape, x.stride(), x.dtype, x.requires_grad


def _of_class(kind: type) -> Hashable:
    """The numbers, texts and the like that a class of modules holds, as a call may change them.

    Those of PyTorch and of this package change none.
    """
    bases = kind.__mro__[: kind.__mro__.index(nn.Module)]
    own = [part for part in bases if not part.__module__.startswith(("torch.", "nas."))]
    held = (item for part in own for item in vars(part).items())
    return tuple(
        (name, _plain(value))
        for name, value in held
        if not (name.startswith("__") or name == "_abc_impl")
        and not (callable(value) or hasattr(value, "__get__"))
    )


def _plain(value: Any) -> Hashable:
    kind = type(value)
    if kind in _ATOMS:
        return kind, value
    if kind in (tuple, list):
        return kind, tuple(map(_plain, value))
    if kind is dict:
        return kind, tuple((_plain(k), _plain(v)) for k, v in value.items())
    if kind is FunctionType and value.__closure__ is None:
        return kind, value
    raise _UnlikeError


def _argument(value: Any, given: list[Tensor], activations: Activations) -> Hashable:
    if isinstance(value, Tensor):
        storage = key_of(value)
        known = type(value) is Tensor and value.is_meta and value.layout is torch.strided
        if not known or value.is_complex() or storage not in activations.data:
            raise _UnlikeError
        given.append(value)
        place = [key_of(x) for x in given].index(storage)
        shape = value.shape, value.stride(), value.storage_offset(), value.dtype
        return place, *shape, value.requires_grad, storage in activations.reads
    if type(value) in (tuple, list):
        return type(value), tuple(_argument(item, given, activations) for item in value)
    if type(value) is dict:
        return tuple((name, _argument(v, given, activations)) for name, v in value.items())
    return _plain(value)


# A buffer that the call has made, by its place among these; or one that an argument is in:
# -1 - the place of its storage among those of the arguments.
Source = int


@dataclass(frozen=True, slots=True)
class _Step:
    """An operator; its module and its weight are places among those of the call."""

    operator: Operator
    module: int
    weight: int | None
    reads: tuple[Source, ...]
    overwrites: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    """Memory that the call has made and gives away."""

    nbytes: int
    dtype: torch.dtype
    buffer: int | None
    is_data: bool


@dataclass(frozen=True, slots=True)
class _Made:
    """A tensor that a call gives: in a `_Storage`, or, negative as in `Source`, an argument's."""

    storage: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Recording:
    """What one call wrote down, for calls of the same key.

    Attributes:
        steps: the operators.
        buffers: those that it made.
        shapes: place of a module inside -> shape of what it gave.
        outs, spec: the leaves of the output, those that are arguments as `_Given`.
    """

    steps: tuple[_Step, ...]
    buffers: tuple[Buffer, ...]
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    storages: tuple[_Storage, ...]
    outs: tuple[Any, ...]
    spec: Any


class _Given(int):
    """The place of a tensor among those of the arguments."""


def recording_of(
    call: Call,
    out: Any,
    operators: Sequence[Operator],
    shapes: Mapping[str, tuple[int, ...]],
    first: int,
    reads: Sequence[tuple[Read, ...]],
    paths: Mapping[nn.Module, str],
    activations: Activations,
) -> Recording | None:
    """What `call` has written down; None: it used more than its module and its arguments.

    Args:
        first: the first buffer that it made.
        reads: of the storages of its arguments.
    """
    origin = {read: -1 - place for place, several in enumerate(reads) for read in several}
    if len(origin) < sum(map(len, reads)):
        return None  # arguments that may be the same are not told from each other
    places = {paths[module]: place for place, module in enumerate(call.modules)}
    weights = {id(x): place for place, x in enumerate(call.parameters)}

    def sources(found: Sequence[Read]) -> tuple[Source, ...]:
        own = (b - first if b >= first else origin[(c, b)] for c, b in found)
        return tuple(dict.fromkeys(own))

    try:
        steps = tuple(
            _Step(
                operator,
                places[operator.module],
                weights[operator.weight] if isinstance(operator.weight, int) else None,
                sources(operator.reads),
                sources(operator.overwrites),
            )
            for operator in operators
        )
        storages, outs, spec = _outputs(call, out, first, activations)
        inside = tuple((places[path], shape) for path, shape in shapes.items())
    except (KeyError, _UnlikeError):
        return None
    return Recording(steps, tuple(activations.buffers[first:]), inside, storages, outs, spec)


def _outputs(
    call: Call, out: Any, first: int, activations: Activations
) -> tuple[tuple[_Storage, ...], tuple[Any, ...], Any]:
    leaves, spec = tree_flatten(out)
    given = {id(x): place for place, x in enumerate(call.given)}
    places = {storage: -1 - place for place, storage in enumerate(call.storages)}
    types = {-1 - place: x.dtype for place, x in enumerate(call.storages.values())}
    found: list[_Storage] = []
    outs: list[Any] = []
    for x in leaves:
        if not isinstance(x, Tensor):
            _plain(x)
            outs.append(x)
        elif id(x) in given:
            outs.append(_Given(given[id(x)]))
        else:
            storage = key_of(x)
            if storage not in places:
                place = places[storage] = len(found)
                types[place] = x.dtype
                found.append(_storage(x, first, activations))
            place = places[storage]
            if type(x) is not Tensor or not x.is_meta or x.dtype != types[place]:
                raise _UnlikeError
            outs.append(_Made(place, x.shape, x.stride(), int(x.storage_offset())))
    return tuple(found), tuple(outs), spec


def _storage(x: Tensor, first: int, activations: Activations) -> _Storage:
    storage = key_of(x)
    buffers = [buffer for _, buffer in activations.reads.get(storage, ())]
    if storage in activations.weights or (buffers and buffers[0] < first):
        raise _UnlikeError  # of no call before
    place = buffers[0] - first if buffers else None
    return _Storage(x.untyped_storage().nbytes(), x.dtype, place, storage in activations.data)


def operators_of(
    recording: Recording,
    call: Call,
    first: int,
    reads: Sequence[tuple[Read, ...]],
    paths: Mapping[nn.Module, str],
    choices: tuple[Choice, ...],
) -> Iterator[Operator]:
    """The operators of `call`, one of the same key as the one recorded.

    Args:
        first: the first buffer that it makes.
        reads: of the storages of its arguments, those that can be under `choices`.
    """
    names = [paths[module] for module in call.modules]
    possible = consistent(frozenset(choices))

    def found(sources: tuple[Source, ...]) -> tuple[Read, ...]:
        every: dict[Read, None] = {}
        for source in sources if possible else ():
            if source < 0:
                every |= dict.fromkeys(reads[-1 - source])
            else:
                every[(frozenset(), first + source)] = None
        return tuple(every)

    made = first
    for step in recording.steps:
        known, path = step.operator, names[step.module]
        weight: int | str | None = None if known.weight is None else path
        if step.weight is not None:
            weight = id(call.parameters[step.weight])
        norm_bias = known.norm_bias
        last = made + len(known.makes)
        yield Operator(
            known.name,
            path,
            choices,
            found(step.reads),
            tuple(range(made, last)),
            found(step.overwrites),
            known.pointwise,
            known.view,
            tuple(replace(layer, module=path) for layer in known.layers),
            known.text,
            known.free,
            weight,
            known.has_bias,
            norm_bias and replace(norm_bias, module=path),
        )
        made = last


def output_of(recording: Recording, call: Call, first: int, activations: Activations) -> Any:
    """What `call` gives; its tensors are known to `activations` afterwards."""
    bases = {-1 - place: x for place, x in enumerate(call.storages.values())}
    with torch._C._DisableTorchDispatch():  # no operators of the network
        for place, made in enumerate(recording.storages):
            size = made.nbytes // made.dtype.itemsize
            bases[place] = torch.empty(size, dtype=made.dtype, device="meta")
        leaves = [_leaf(out, call, bases) for out in recording.outs]
    for place, made in enumerate(recording.storages):
        buffer = None if made.buffer is None else first + made.buffer
        activations.enter(bases[place], buffer, made.is_data)
    return tree_unflatten(leaves, recording.spec)


def _leaf(out: Any, call: Call, bases: Mapping[int, Tensor]) -> Any:
    if isinstance(out, _Given):
        return call.given[out]
    if isinstance(out, _Made):
        return bases[out.storage].as_strided(out.shape, out.stride, out.offset)
    return out
