"""What is measured of a supernet: its candidate ops, and the pieces between its choices.

A *unit* is a module without a choice inside, as large as can be: an option of a decision (of an
option with choices of its own, the pieces around them and their options), the plain module that an
elastic one becomes under each combination of its numbers, or what lies outside choices, such as
stem, head and classifier. Functions that a forward calls between modules (a mean,
an addition) belong to no unit; the correction for whole networks stands for them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.config.schema import Count, Threads, checked
from nas.cost.analytic import MACs
from nas.cost.dry_run import Example, unroll
from nas.cost.layer import LayerSpec
from nas.cost.liveness import live_conditions
from nas.cost.operators import Operator
from nas.cost.polynomial import Condition, consistent
from nas.cost.recorder import Piece
from nas.cost.trace import Trace, trace
from nas.decision import Decision

Dtype = Literal["float32", "float16", "bfloat16"]
# Kernels of runtimes differ by these, and so does their time for one multiply-accumulate.
KINDS = ("dense", "pointwise", "depthwise", "grouped", "linear", "other")
# Of each kind: work, weights read, elements read and written, elements that a kernel without a
# buffer reads (im2col), and the number of calls.
QUANTITIES = ("macs", "weights", "inputs", "outputs", "reads", "calls")
NAMES = (*(f"{kind}_{quantity}" for kind in KINDS for quantity in QUANTITIES), "norm_weights")


@checked()
@dataclass(frozen=True)
class Conditions:
    """How a unit is run, apart from the device and the runtime.

    Args:
        batch: samples of one call.
        dtype: number format of weights and activations.
        threads: of the runtime.

    Raises:
        UserError: a count that is no whole number of at least 1, or another format.
    """

    batch: Count = 1
    dtype: Dtype = "float32"
    threads: Threads = 1

    def __str__(self) -> str:
        return f"b{self.batch} {self.dtype} t{self.threads}"


@dataclass(frozen=True, eq=False)
class Unit:
    """One thing to measure.

    Attributes:
        key: see `key_of`; modules that do the same work have the same.
        inputs: shapes for one sample, batch dimension included; and their number formats.
        layers: its calls and its stored tensors.
        free: it computes nothing (an identity, a view), so it needs no measurement.
    """

    key: str
    inputs: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    layers: tuple[LayerSpec, ...]
    free: bool
    make: Callable[[], nn.Module] = field(repr=False)

    @cached_property
    def module(self) -> nn.Module:
        """Takes the tensors of `inputs`; its weights are those of the model, or copies of them."""
        return self.make()


@dataclass(frozen=True)
class Use:
    """One execution of a unit, in every architecture where `condition` holds."""

    key: str
    condition: Condition


@dataclass(frozen=True)
class Units:
    """The distinct units of a model, and its executions of them in order.

    Attributes:
        options: decision name -> number of its options.
    """

    by_key: Mapping[str, Unit]
    uses: tuple[Use, ...]
    options: Mapping[str, int]

    @property
    def to_measure(self) -> dict[str, Unit]:
        """Key -> unit, of those that take time."""
        return {key: unit for key, unit in self.by_key.items() if not unit.free}

    def of(self, choices: Mapping[str, int]) -> tuple[str, ...]:
        """Keys of what one architecture (decision -> index of its option) executes and pays for."""
        return tuple(
            use.key
            for use in self.uses
            if not self.by_key[use.key].free
            and all(choices[name] == index for name, index in use.condition)
        )


def runs_unused(runtime: str) -> bool:
    """Whether a runtime runs what reaches no output: all but PyTorch itself work on a graph."""
    return runtime == "torch"


def indices(own: Mapping[str, Decision], choices: Mapping[str, object]) -> dict[str, int]:
    """Decision -> index of the option that `choices` takes."""
    return {name: decision.options.index(choices[name]) for name, decision in own.items()}


def units_of(
    model: nn.Module,
    example: Example | Trace,
    conditions: Conditions | None = None,
    unused: bool = True,
) -> Units:
    """Find the units of `model`, by one forward pass in which every option takes part.

    Args:
        example: as for `nas.cost.trace.trace`; or a `Trace` made before.
        unused: the runtime also runs what reaches no output, as edges of a cell to a node that
            nothing reads; else these cost nothing there.

    Raises:
        UserError: the forward fails.
    """
    traced = example if isinstance(example, Trace) else trace(model, example)
    conditions = conditions or Conditions()
    parameters: dict[str, list[LayerSpec]] = defaultdict(list)
    for tensor in traced.stored:
        if tensor.spec.kind == "parameter":
            for path in tensor.holders:
                parameters[path].append(tensor.spec)
    unrolled = cache(lambda: unroll(model)[0])
    by_key: dict[str, Unit] = {}
    uses: list[Use] = []
    live = [None] * len(traced.operators) if unused else live_conditions(traced)
    for group in _groups(traced.pieces):
        unit = _unit(group, traced, parameters, unrolled, conditions)
        by_key.setdefault(unit.key, unit)
        if consistent(group[0].condition):
            # What the last of its operators makes is what the unit gives.
            made = [live[piece.end - 1] for piece in group if piece.end > piece.first]
            where = made[-1] if made else None
            conditions_of = [group[0].condition] if where is None else where
            uses += (Use(unit.key, condition) for condition in conditions_of)
    return Units(by_key, tuple(uses), traced.options)


def _groups(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces in a row that no choice separates: runtimes join a convolution and what follows it."""
    groups: list[list[Piece]] = []  # of each piece
    for piece in pieces:
        groups.append([] if piece.follows is None else groups[piece.follows])
        groups[-1].append(piece)
    return (group for piece, group in zip(pieces, groups, strict=True) if group[0] is piece)


def _unit(
    group: Sequence[Piece],
    traced: Trace,
    parameters: Mapping[str, Sequence[LayerSpec]],
    unrolled: Callable[[], nn.Module],
    conditions: Conditions,
) -> Unit:
    args, kwargs = group[0].args, group[0].kwargs
    leaves, spec = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    shapes = tuple(tuple(x.shape) for x in tensors)

    def make() -> nn.Module:
        modules = [unrolled().get_submodule(piece.path) for piece in group]
        module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
        if leaves == tensors and len(args) == len(tensors):
            return module
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return _Bound(module, [not isinstance(leaf, Tensor) for leaf in leaves], others, spec)

    operators: list[Operator] = []
    for piece in group:
        # Not the copies that only the trace makes.
        operators += (o for o in traced.operators[piece.first : piece.end] if o.text)
    calls = [layer for operator in operators for layer in operator.layers]
    key = key_of(calls, [operator.text for operator in operators], shapes, conditions)
    # A network without a choice is a piece itself, whose path is empty.
    whole = len(traced.pieces) == 1
    inside = tuple("" if whole else f"{piece.path}." for piece in group)
    held = (specs for path, specs in parameters.items() if f"{path}.".startswith(inside))
    layers = (*calls, *(spec for specs in held for spec in specs))
    free = all(operator.free for operator in operators)
    return Unit(key, shapes, tuple(x.dtype for x in tensors), layers, free, make)


class _Bound(nn.Module):
    """A module with all but the tensors of its arguments filled in.

    Args:
        fixed: for each leaf of the arguments, whether it is one of `values` and no tensor.
        spec: how leaves make up ``(args, kwargs)``.
    """

    def __init__(self, module: nn.Module, fixed: list[bool], values: list[Any], spec: Any) -> None:
        super().__init__()
        self.module, self.fixed, self.values, self.spec = module, fixed, values, spec

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)
        leaves = [
            value if fixed else next(given)
            for fixed, value in zip(self.fixed, self.values, strict=True)
        ]
        args, kwargs = tree_unflatten(leaves, self.spec)
        return self.module(*args, **kwargs)


def key_of(
    layers: Iterable[LayerSpec],
    operators: Sequence[str],
    inputs: Sequence[tuple[int, ...]],
    conditions: Conditions,
) -> str:
    """The text that says what is measured: equal for equal work, whatever module does it.

    E.g. ``conv3x3/2 16>32@8x8 | in 1x16x16x16 | b1 float32 t1 | 3f2a90c1``. The last part is a hash
    of every operator: it tells units apart whose layers are the same, by an activation, a residual
    or the padding.
    """
    work = " + ".join(_layer_text(layer) for layer in layers if layer.is_call)
    if not work:
        work = "+".join(dict.fromkeys(text.partition("(")[0] for text in operators)) or "nothing"
    shapes = ", ".join("x".join(map(str, shape)) for shape in inputs)
    digest = hashlib.sha256("\n".join([shapes, *operators]).encode()).hexdigest()[:8]
    return f"{work} | in {shapes} | {conditions} | {digest}"


def _layer_text(layer: LayerSpec) -> str:
    kernel = "x".join(map(str, layer.kernel))
    strides = [-(-i // o) for i, o in zip(layer.in_size, layer.out_size, strict=True) if o]
    stride = f"/{max(strides)}" if max(strides, default=1) > 1 else ""
    groups = f"g{layer.groups}" if layer.groups > 1 else ""
    size = "x".join(map(str, layer.out_size)) if prod(layer.out_size) > 1 else "1"
    channels = f"{layer.in_channels}>{layer.out_channels}"
    return f"{layer.kind}{kernel}{stride}{groups} {channels}@{size}"


def features(layers: Sequence[LayerSpec]) -> dict[str, float]:
    """The sum of each of `NAMES` over the layers of one unit: what its latency is a function of.

    All are counts of 0 or more for one input sample. A unit without layers, such as an identity or
    a pool, has zeros only.
    """
    total: dict[str, float] = dict.fromkeys(NAMES, 0.0)
    for layer in layers:
        for name, value in _features_of(layer).items():
            total[name] = total[name] + value
    return total


def weights_of(described: Mapping[str, float]) -> float:
    """Numbers that the layers of a unit read besides their inputs, from its features."""
    return float(sum(described.get(f"{kind}_weights", 0.0) for kind in KINDS))


def _features_of(layer: LayerSpec) -> dict[str, float]:
    if layer.kind == "parameter" and "Norm" in layer.role:
        return {"norm_weights": layer.numel}
    if not layer.is_call:
        return {}
    taps, places = prod(layer.kernel), prod(layer.out_size) * layer.batch
    values: dict[str, float] = {
        "macs": MACs()(layer),
        "weights": layer.in_channels * layer.out_channels * taps / layer.groups,
        "inputs": layer.in_channels * prod(layer.in_size) * layer.batch,
        "outputs": layer.out_channels * places,
        "reads": layer.in_channels * taps * places,
        "calls": 1.0,
    }
    kind = _kind_of(layer)
    return {f"{kind}_{quantity}": value for quantity, value in values.items()}


def _kind_of(layer: LayerSpec) -> str:
    if layer.kind == "linear":
        return "linear"
    if layer.kind != "conv":
        return "other"
    if layer.groups > 1:
        return "depthwise" if layer.in_channels <= layer.groups else "grouped"
    return "pointwise" if prod(layer.kernel) == 1 else "dense"
