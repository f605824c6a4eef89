"""What is measured of a supernet: its candidate ops, and the pieces between its choices.

A *unit* is a module without a choice inside, as large as can be: an option of a decision (of one
with choices of its own, the pieces around them and their options), or what lies outside choices,
such as stem, head and classifier. Functions that a forward calls between modules (a mean, an
addition) belong to no unit; the correction for whole networks stands for them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from nas.cost.base import Gate, Gates, LayerSpec, stored
from nas.cost.dry_run import dry_run, run
from nas.cost.operators import OperatorRecorder
from nas.cost.polynomial import consistent
from nas.cost.trace import Example, Inputs, inputs_of
from nas.decision import Decision, decisions, sites
from nas.errors import UserError
from nas.latency.key import Conditions, is_view, key_of, operator_text


@dataclass(frozen=True, eq=False)
class Unit:
    """One thing to measure.

    Attributes:
        key: see `nas.latency.key.key_of`; modules that do the same work have the same.
        module: takes the tensors of `inputs`; shares its weights with the model.
        inputs: shapes for one sample, batch dimension included; and their number formats.
        layers: its calls and its stored tensors.
        free: it computes nothing (an identity, a view), so it needs no measurement.
    """

    key: str
    module: nn.Module
    inputs: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    layers: tuple[LayerSpec, ...]
    free: bool


@dataclass(frozen=True)
class Use:
    """One execution of a unit, in every architecture where all of `gates` hold."""

    key: str
    gates: Gates


@dataclass(frozen=True)
class Units:
    """The distinct units of a model, and its executions of them in order."""

    by_key: Mapping[str, Unit]
    uses: tuple[Use, ...]
    options: Mapping[str, int]  # decision name -> number of options

    @property
    def to_measure(self) -> dict[str, Unit]:
        return {key: unit for key, unit in self.by_key.items() if not unit.free}

    def of(self, choices: Mapping[str, int]) -> tuple[str, ...]:
        """Keys of what one architecture (decision -> index of its option) executes and pays for."""
        return tuple(
            use.key
            for use in self.uses
            if not self.by_key[use.key].free
            and all(choices[name] == index for name, index in use.gates)
        )


def units_of(model: nn.Module, example: Example, conditions: Conditions | None = None) -> Units:
    """Find the units of `model` by one dry forward in which every option takes part.

    Args:
        example: as for `nas.cost.trace.trace`.

    Raises:
        UserError: the forward fails, or a decision has no modules to measure.
    """
    conditions = conditions or Conditions()
    for name, decision in decisions(model):
        if not decision.gated():
            raise UserError(
                f"decision {name!r} ({type(decision).__name__}) has no candidate modules, so "
                "its latency cannot be put together from measured units"
            )
    calls = dry_run(model, inputs_of(example, model), _record)
    names = {name: len(decision.options) for name, decision in decisions(model)}
    made = [_unit(model, call, conditions) for call in calls]
    by_key: dict[str, Unit] = {}
    for unit in made:
        by_key.setdefault(unit.key, unit)
    uses = (
        Use(unit.key, call.gates)
        for unit, call in zip(made, calls, strict=True)
        if consistent(call.gates)
    )
    return Units(by_key, tuple(uses), names)


@dataclass
class _Call:
    """One execution of one module, or of several in a row that no choice separates."""

    gates: Gates
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    paths: list[str] = field(default_factory=list)
    layers: list[LayerSpec] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    free: bool = True


def _unit(model: nn.Module, call: _Call, conditions: Conditions) -> Unit:
    leaves, spec = tree_flatten((call.args, call.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    shapes = tuple(tuple(x.shape) for x in tensors)
    modules = [model.get_submodule(path) for path in call.paths]
    module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    if leaves != tensors or len(call.args) != len(tensors):
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        module = Bound(module, [not isinstance(leaf, Tensor) for leaf in leaves], others, spec)
    layers = tuple(call.layers) + tuple(_stored(modules))
    key = key_of(call.layers, call.operators, shapes, conditions)
    return Unit(key, module, shapes, tuple(x.dtype for x in tensors), layers, call.free)


class Bound(nn.Module):
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


def _stored(modules: list[nn.Module]) -> Iterator[LayerSpec]:
    for module in modules:
        for path, part in module.named_modules():
            for name, parameter in part.named_parameters(recurse=False):
                yield stored("parameter", path, part, name, parameter)


def _record(model: nn.Module, inputs: Inputs) -> list[_Call]:
    model.eval()
    recorder = _Recorder()
    names = {decision: name for name, decision in decisions(model)}
    for _, site in sites(model):
        site.unrolled = True
    with ExitStack() as stack, torch.no_grad():
        # Options first: they look at who calls, which is then the last of those that run.
        for _, site in sites(model):
            for index, candidate in enumerate(site.gated().values()):
                _around(stack, candidate, *recorder.option(site, (names[site.tied_to], index)))
        paths = {id(module): name for name, module in model.named_modules()}
        for leaf in _leaves(model):
            if id(leaf) in paths:  # a decision that others carry out has options of no module
                _around(stack, leaf, *recorder.leaf(paths[id(leaf)]))
        for module in model.modules():
            _around(stack, module, *recorder.running())
        stack.enter_context(
            OperatorRecorder(recorder.layer, recorder.where, model, inputs, cast(Any, recorder))
        )
        run(model, inputs)
    return recorder.calls


def _leaves(model: nn.Module) -> list[nn.Module]:
    """The largest modules without a choice inside, each once."""
    found: dict[int, nn.Module] = {}

    def walk(module: nn.Module) -> None:
        if not any(decisions(module)):
            found[id(module)] = module
            return
        inner = module.gated().values() if isinstance(module, Decision) else module.children()
        for child in inner:
            walk(child)

    walk(model)
    return list(found.values())


Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
After = Callable[[Any], None]


def _around(stack: ExitStack, module: nn.Module, before: Before, after: After) -> None:
    handles = (
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(lambda _module, _args, out: after(out)),
    )
    for handle in handles:
        stack.callback(handle.remove)


class _Recorder:
    """Writes down which unit runs, under which gates, and by which operators."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self._running: list[nn.Module] = []  # from the outside in
        self._gates: list[Gate | None] = []
        self._depth = 0  # of leaves: one may be a part of another
        self._last: Any = None  # what the last unit gave

    def running(self) -> tuple[Before, After]:
        """For every module."""

        def after(_out: Any) -> None:
            self._running.pop()

        return lambda module, *_: self._running.append(module), after

    def option(self, decision: Decision, gate: Gate) -> tuple[Before, After]:
        """For a candidate; it counts while its own decision runs it, not another caller."""

        def before(*_: Any) -> None:
            own = bool(self._running) and self._running[-1] is decision
            self._gates.append(gate if own else None)

        def after(_out: Any) -> None:
            self._gates.pop()

        return before, after

    def leaf(self, path: str) -> tuple[Before, After]:
        """For the module of a unit."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            if self._depth == 1:
                self._enter(path, args, kwargs)

        def after(out: Any) -> None:
            self._depth -= 1
            if not self._depth:
                self._last = out

        return before, after

    def _enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        gates = frozenset(gate for gate in self._gates if gate is not None)
        follows = len(args) == 1 and not kwargs and args[0] is self._last and self.calls
        # Measured in one piece: runtimes join a convolution with what comes after it.
        if not (follows and self.calls[-1].gates == gates):
            self.calls.append(_Call(gates, args, kwargs))
        self.calls[-1].paths.append(path)

    def where(self) -> str:
        return self.calls[-1].paths[-1] if self.calls and self._depth else ""

    def layer(self, fields: dict[str, Any]) -> None:
        if self._depth:
            self.calls[-1].layers.append(LayerSpec(module=self.where(), **fields))

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> Any:
        """As `OperatorRecorder` tells it to a schedule."""
        if self._depth:
            call = self.calls[-1]
            call.operators.append(operator_text(func, args, out))
            call.free = call.free and is_view(func)
        return out
