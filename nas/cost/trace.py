"""The one bridge from modules to `LayerSpec`s: a dry forward pass that every option takes part in.

Calls are read from the operators that really run (so `F.conv2d` inside a user's module counts),
parameters from the module tree (so what is stored counts, used or not). The same pass writes down
the schedule: which activations each operator reads and makes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nas.cost.base import AnyOf, Choice, Condition, LayerSpec, stored
from nas.cost.dry_run import Example as Example
from nas.cost.dry_run import Inputs as Inputs
from nas.cost.dry_run import dry_run, run
from nas.cost.dry_run import inputs_of as inputs_of
from nas.cost.folding import FoldRecorder, Owners
from nas.cost.operators import OperatorRecorder
from nas.cost.polynomial import consistent
from nas.cost.schedule import Schedule, ScheduleRecorder, tensors
from nas.cost.unrolled import ChoiceNode, Unrolled, unroll
from nas.decision import Decision, decisions
from nas.errors import UserError
from nas.supernet.inplace import guards_last


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and when it exists: where any of the conditions in `active_if` holds."""

    spec: LayerSpec
    active_if: AnyOf


@dataclass(frozen=True)
class Trace:
    """Layers (calls in execution order, folds, stored tensors), options, and the schedule."""

    layers: tuple[Layer, ...]
    options: Mapping[str, int]  # decision name -> number of options
    schedule: Schedule
    inputs: Inputs  # what the model was run on, of batch size 1


def trace(model: nn.Module, example: Example) -> Trace:
    """Run `model` once without touching it, on a copy without memory, and list its layers.

    Only lazy modules (`nn.LazyConv2d`) are touched: they get their weights here.

    Args:
        example: the shape of one sample ``(C, H, W)`` or ``(C, L)``, of the model's floating
            point type; or an input tensor of batch size 1, or a tuple of arguments, or a dict
            of arguments by name, where a model takes several or other than float.

    Raises:
        UserError: the forward pass fails, or a layer with weights is of an unknown kind.
    """
    inputs = inputs_of(example, model)
    layers, schedule = dry_run(model, inputs, _record)
    return Trace(
        tuple(layers),
        _options(model),
        schedule,
        inputs,
    )


def _options(model: nn.Module) -> dict[str, int]:
    return {name: len(decision.options) for name, decision in decisions(model)}


def _record(model: nn.Module, inputs: Inputs) -> tuple[list[Layer], Schedule]:
    model.eval()  # a BatchNorm in training mode refuses a single value per channel
    options = _options(model)
    model, nodes = unroll(model)
    open_choices: list[Choice | None] = []
    layers: list[Layer] = []
    path: list[str] = [""]

    def on_call(fields: dict[str, Any]) -> None:
        spec = LayerSpec(module=path[-1], **fields)
        layers.append(Layer(spec, frozenset({frozenset(filter(None, open_choices))})))

    schedule = ScheduleRecorder(open_choices, lambda: path[-1], {node.path for node in nodes})
    inputs = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, inputs)
    operators = OperatorRecorder(on_call, lambda: path[-1], model, inputs, schedule)
    with ExitStack() as stack, torch.no_grad():
        # Mixers first: one that is an option of another must have joined its own options by then.
        for node in nodes:
            stack.enter_context(_joined(node.module, schedule))
            if isinstance(node.module, Unrolled):
                stack.enter_context(_hooked(node.module, lambda: None, operators.passes))
        # Then the candidates: their hooks look at the caller, which is then the last of `path`.
        modules = {module: name for name, module in model.named_modules()}
        for node in nodes:
            if isinstance(node.module, Decision):
                node.module.unrolled = True
            for key, (condition, candidate) in zip(
                _keys(node.module), node.candidates, strict=True
            ):
                caller = (node.path, condition)
                stack.enter_context(_gated(candidate, open_choices, *caller, path, schedule))
                # An option may be put together of submodules, and be none itself.
                modules.setdefault(candidate, f"{node.path}.{key}")
        for module, name in modules.items():
            stack.enter_context(_pushed(module, path, name))
        stack.enter_context(operators)
        folds = stack.enter_context(FoldRecorder(model, nodes, open_choices, path))
        guards_last(model)
        try:
            ran = schedule.run(lambda: run(model, inputs), tensors(inputs))
        except UserError as error:
            raise UserError(f"{path[-1] or type(model).__name__}: {error}") from None
    held, owners = _stored(model, nodes)
    layers += [Layer(spec, active_if) for spec, active_if in folds.layers(owners, options)]
    return layers + held, ran


def _pushed(module: nn.Module, stack: list[Any], item: Any) -> AbstractContextManager[None]:
    """Keep `item` on `stack` while `module` runs."""
    return _hooked(module, lambda: stack.append(item), lambda out: stack.pop())


def _gated(
    module: nn.Module,
    stack: list[Choice | None],
    node: str,
    condition: Condition,
    path: list[str],
    schedule: ScheduleRecorder,
) -> AbstractContextManager[None]:
    """Keep `condition` on `stack` while the module at the path `node` runs `module`.

    None in their place while another caller does: one module may be an option of two decisions.
    """
    own = sorted(condition)
    entered: list[bool] = []  # by the node, not by another caller

    def push() -> None:
        entered.append(path[-1] == node)
        stack.extend(own if entered[-1] else [None] * len(own))

    def pop(out: Any) -> None:
        del stack[len(stack) - len(own) :]
        if entered.pop():
            schedule.option(condition, out)

    return _hooked(module, push, pop)


def _joined(node: nn.Module, schedule: ScheduleRecorder) -> AbstractContextManager[None]:
    """Let the outputs of the candidates of `node` stand for one another."""
    return _hooked(node, schedule.enter, schedule.leave, replace=True)


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


def _stored(model: nn.Module, nodes: Iterable[ChoiceNode]) -> tuple[list[Layer], Owners]:
    """One entry for each parameter and each persistent buffer that some architecture stores.

    A decision's own alpha and buffers belong to the search: no network stores them. Tied tensors
    are one, and there where any of the modules that hold it is.
    """
    candidates = {id(node.module): node.candidates for node in nodes}
    found: dict[int, LayerSpec] = {}
    owners: dict[int, dict[nn.Module, AnyOf]] = defaultdict(dict)
    for path, module, condition in _walk(model, "", frozenset(), candidates):
        for kind, key, tensor in _tensors(module):
            found.setdefault(id(tensor), stored(kind, path, module, key, tensor))
            own = owners[id(tensor)]
            own[module] = own.get(module, frozenset()) | {condition}
    layers = [
        Layer(spec, frozenset().union(*owners[tensor].values())) for tensor, spec in found.items()
    ]
    return layers, owners


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    for key, parameter in module.named_parameters(recurse=False):
        if not (isinstance(module, Decision) and parameter is module.alpha):
            yield "parameter", key, parameter
    if not isinstance(module, Decision):
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                yield "buffer", key, buffer


def _walk(
    module: nn.Module,
    path: str,
    condition: Condition,
    nodes: Mapping[int, Sequence[tuple[Condition, nn.Module]]],
) -> Iterator[tuple[str, nn.Module, Condition]]:
    """Every module under every path that leads to it, with the condition that it implies."""
    yield path, module, condition
    if id(module) in nodes:
        for key, (own, candidate) in zip(_keys(module), nodes[id(module)], strict=True):
            if consistent(condition | own):
                yield from _walk(candidate, f"{path}.{key}".lstrip("."), condition | own, nodes)
        return
    for key, child in module.named_children():
        yield from _walk(child, f"{path}.{key}".lstrip("."), condition, nodes)


def _keys(node: nn.Module) -> Iterable[object]:
    """Names of the candidates that `node` runs, in their order."""
    if isinstance(node, Unrolled):
        return node.candidates
    return node.active_if() if isinstance(node, Decision) else ()
