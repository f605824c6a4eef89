"""The one bridge from modules to `LayerSpec`s: a dry forward pass that every option takes part in.

Calls are read from the operators that really run (so `F.conv2d` inside a user's module counts),
parameters from the module tree (so what is stored counts, used or not). The same pass writes down
the schedule: which activations each operator reads and makes.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.cost.base import Event, Gate, Gates, LayerSpec, stored
from nas.cost.folding import FoldRecorder
from nas.cost.operators import OperatorRecorder
from nas.cost.schedule import Schedule, ScheduleRecorder
from nas.decision import Decision, decisions
from nas.errors import UserError

ALWAYS: Event = frozenset({frozenset()})

Example = Tensor | tuple[Tensor, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and when it exists: in every architecture where one of its `event`'s gates holds."""

    spec: LayerSpec
    event: Event


@dataclass(frozen=True)
class Trace:
    """Layers (calls in execution order, folds, stored tensors), options, and the schedule."""

    layers: tuple[Layer, ...]
    options: Mapping[str, int]  # decision name -> number of options
    schedule: Schedule
    inputs: tuple[Tensor, ...]  # what the model was run on, of batch size 1


def trace(model: nn.Module, example: Example) -> Trace:
    """Run `model` once without touching it, on a copy without memory, and list its layers.

    Args:
        example: the shape of one sample ``(C, H, W)`` or ``(C, L)``, or the input tensors
            themselves, of batch size 1, where a model takes several or other than float.

    Raises:
        UserError: the forward pass fails, or a layer with weights is of an unknown kind.
    """
    names = {id(decision): name for name, decision in decisions(model)}
    inputs = inputs_of(example)
    with torch.random.fork_rng(devices=[]):  # a forward pass may draw
        calls, schedule = _dry_run(model, inputs)
    return Trace(
        tuple(calls) + tuple(_stored(model, names)),
        {name: len(decision.options) for name, decision in decisions(model)},
        schedule,
        inputs,
    )


def inputs_of(example: Example) -> tuple[Tensor, ...]:
    """The tensors that `example`, see `trace`, stands for."""
    if isinstance(example, Tensor):
        return (example,)
    tensors = tuple(item for item in example if isinstance(item, Tensor))
    if tensors:
        return tensors
    return (torch.zeros(1, *(int(size) for size in example if isinstance(size, int))),)


def _dry_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Layer], Schedule]:
    """On the meta device where the model can run there, else on a CPU copy."""
    try:
        return _record(copy.deepcopy(model).to("meta"), tuple(x.to("meta") for x in inputs))
    except UserError:
        raise
    except Exception:
        # E.g. a forward that looks at values. A second failure is the model's own.
        try:
            return _record(copy.deepcopy(model).cpu(), tuple(x.cpu() for x in inputs))
        except UserError:
            raise
        except Exception as error:
            shapes = [tuple(x.shape) for x in inputs]
            raise UserError(
                f"the forward pass of {type(model).__name__} fails for an input of shape "
                f"{shapes}: {error}"
            ) from error


def _record(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Layer], Schedule]:
    model.eval()  # a BatchNorm in training mode refuses a single value per channel
    open_gates: list[Gate | None] = []
    layers: list[Layer] = []
    path: list[str] = [""]

    def on_call(fields: dict[str, Any]) -> None:
        spec = LayerSpec(module=path[-1], **fields)
        layers.append(Layer(spec, frozenset({frozenset(filter(None, open_gates))})))

    choices = {name: decision for name, decision in decisions(model) if decision.gated()}
    schedule = ScheduleRecorder(open_gates, lambda: path[-1], choices)
    weights = {id(parameter) for parameter in model.parameters()}
    with ExitStack() as stack, torch.no_grad():
        # Choices first: one that is an option of another must have joined its own options by then.
        for decision in choices.values():
            stack.enter_context(_joined(decision, schedule))
        # Then gates: they look at the module that calls, which is then the last of `path`.
        for name, decision in choices.items():
            decision.unrolled = True
            for index, candidate in enumerate(decision.gated().values()):
                stack.enter_context(_gated(candidate, open_gates, (name, index), path, schedule))
        for name, module in model.named_modules():
            stack.enter_context(_pushed(module, path, name))
        stack.enter_context(OperatorRecorder(on_call, lambda: path[-1], weights, schedule))
        folds = stack.enter_context(FoldRecorder(model, open_gates, path))
        try:
            ran = schedule.run(model, [x.contiguous() for x in inputs])
        except UserError as error:
            raise UserError(f"{path[-1] or type(model).__name__}: {error}") from None
    return layers + [Layer(spec, event) for spec, event in folds.layers()], ran


def _pushed(module: nn.Module, stack: list[Any], item: Any) -> AbstractContextManager[None]:
    """Keep `item` on `stack` while `module` runs."""
    return _hooked(module, lambda: stack.append(item), lambda out: stack.pop())


def _gated(
    module: nn.Module,
    stack: list[Gate | None],
    gate: Gate,
    path: list[str],
    schedule: ScheduleRecorder,
) -> AbstractContextManager[None]:
    """Keep `gate` on `stack` while the decision that `gate` names runs `module`.

    None in its place while another caller does: one module may be an option of two decisions.
    """

    def pop(out: Any) -> None:
        stack.pop()
        if path[-2] == gate[0]:  # the last is `module` itself, still
            schedule.option(gate, out)

    return _hooked(module, lambda: stack.append(gate if path[-1] == gate[0] else None), pop)


def _joined(decision: Decision, schedule: ScheduleRecorder) -> AbstractContextManager[None]:
    """Let the outputs of the options of `decision` stand for one another."""
    return _hooked(decision, schedule.enter, schedule.leave, replace=True)


@contextmanager
def _hooked(
    module: nn.Module,
    before: Callable[[], None],
    after: Callable[[Any], Any],
    replace: bool = False,
) -> Iterator[None]:
    """Call `before` and `after` (with the output) around `module`."""

    def post(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        result = after(out)
        return result if replace else None

    handles = (
        module.register_forward_pre_hook(lambda *_: before()),
        module.register_forward_hook(post),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stored(model: nn.Module, names: Mapping[int, str]) -> list[Layer]:
    """One entry for each parameter and each persistent buffer that some architecture stores.

    A decision's own alpha and buffers belong to the search: no network stores them.
    """
    found: dict[int, tuple[LayerSpec, set[Gates]]] = {}
    for path, module, gates in _walk(model, "", frozenset(), names):
        for kind, key, tensor in _tensors(module):
            spec = stored(kind, path, module, key, tensor)
            found.setdefault(id(tensor), (spec, set()))[1].add(gates)
    return [Layer(spec, frozenset(events)) for spec, events in found.values()]


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for key, parameter in module.named_parameters(recurse=False):
        if not (isinstance(module, Decision) and parameter is module.alpha):
            yield "parameter", key, parameter
    if not isinstance(module, Decision):
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                yield "buffer", key, buffer


def _walk(
    module: nn.Module, path: str, gates: Gates, names: Mapping[int, str]
) -> Iterator[tuple[str, nn.Module, Gates]]:
    """Every module under every path that leads to it, with the gates on that path."""
    yield path, module, gates
    if isinstance(module, Decision):
        for index, (option, candidate) in enumerate(module.gated().items()):
            gate = (names[id(module)], index)
            yield from _walk(candidate, f"{path}.{option}".lstrip("."), gates | {gate}, names)
        return
    for key, child in module.named_children():
        yield from _walk(child, f"{path}.{key}".lstrip("."), gates, names)
