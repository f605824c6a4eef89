"""What a supernet does in one forward pass: its layers, its operators and what it stores.

Every option of every decision takes part. Calls are read from the operators that really run (so
`F.conv2d` inside a user's module counts), parameters from the module tree (so what is stored
counts, used or not). Costs, latency units and the folding of norms read what they need from the
`Trace`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from nas.cost.activations import Buffer, Read
from nas.cost.dry_run import ChoiceNode, Example, Inputs, dry_run, inputs_of, unroll
from nas.cost.layer import LayerSpec, stored
from nas.cost.operators import Operator
from nas.cost.polynomial import AnyOf, Condition, consistent
from nas.cost.recorder import Piece, Recorder
from nas.decision import Decision, decisions
from nas.diagnostics import uncollected
from nas.errors import UserError
from nas.inputs import run
from nas.supernet.inplace import guards_last


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer and when it exists: where any of the conditions in `active_if` holds."""

    spec: LayerSpec
    active_if: AnyOf


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A parameter or a persistent buffer, and the modules that hold it.

    Attributes:
        holders: path of a module -> where that module exists. Tied tensors have several.
    """

    spec: LayerSpec
    holders: Mapping[str, AnyOf]

    @property
    def active_if(self) -> AnyOf:
        """Where the network stores it."""
        return frozenset().union(*self.holders.values())


@dataclass(frozen=True)
class Trace:
    """A forward pass of a supernet, every option of every decision taking part.

    Attributes:
        layers: calls in execution order, then stored tensors.
        options: decision name -> number of options.
        inputs: what the model was run on, of batch size 1.
        operators: in execution order.
        buffers: all activations; `Operator` names them by their index here.
        starts: the buffers that are the inputs of the network.
        outputs: the buffers that are its outputs.
        pieces: calls of modules without choices, in execution order.
        stored: parameters and buffers of every module.
        shapes: path of a module -> shape of the first tensor that its last call gave, the largest
            one where that depends on decisions.
    """

    layers: tuple[Layer, ...]
    options: Mapping[str, int]
    inputs: Inputs
    operators: tuple[Operator, ...]
    buffers: tuple[Buffer, ...]
    starts: tuple[int, ...]
    outputs: tuple[Read, ...]
    pieces: tuple[Piece, ...]
    stored: tuple[StoredTensor, ...]
    shapes: Mapping[str, tuple[int, ...]]


@uncollected()
def trace(model: nn.Module, example: Example) -> Trace:
    """Run `model` once without touching it, on a copy without memory, and record the pass.

    Only lazy modules (`nn.LazyConv2d`) are touched: they get their weights here.

    Args:
        example: the shape of one sample ``(C, H, W)`` or ``(C, L)``, of the model's floating
            point type; or an input tensor of batch size 1, or a tuple of arguments, or a dict
            of arguments by name, where a model takes several or other than float.

    Raises:
        UserError: the forward pass fails, or a layer with weights is of an unknown kind.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> wide = nn.Conv2d(3, 8, 5, padding=2)
        >>> block = nas.ChoiceBlock({"thin": nn.Conv2d(3, 8, 1), "wide": wide})
        >>> for layer in nas.trace(nn.Sequential(block), (3, 10, 10)).layers[:2]:
        ...     print(layer.spec.kind, layer.spec.kernel, [sorted(c) for c in layer.active_if])
        conv (1, 1) [[('0', 0)]]
        conv (5, 5) [[('0', 1)]]
    """
    inputs = inputs_of(example, model)
    return replace(dry_run(model, inputs, _record), inputs=inputs)


def _record(model: nn.Module, inputs: Inputs) -> Trace:
    model.eval()  # a BatchNorm in training mode refuses a single value per channel
    options = {name: len(decision.options) for name, decision in decisions(model)}
    model, nodes = unroll(model)
    inputs = tree_map(lambda x: x.contiguous() if isinstance(x, Tensor) else x, inputs)
    recorder = Recorder(model, nodes, inputs, options)
    for node in nodes:
        if isinstance(node.module, Decision):
            node.module.unrolled = True
    with ExitStack() as stack, torch.no_grad():
        recorder.attach(stack)
        guards_last(model)
        stack.enter_context(recorder)
        try:
            outputs = recorder.activations.reads_of(tree_leaves(run(model, inputs)))
        except UserError as error:
            raise UserError(f"{recorder.where or type(model).__name__}: {error}") from None
    held = tuple(_stored(model, nodes, recorder.paths))
    calls = (Layer(spec, frozenset({condition})) for spec, condition in recorder.calls)
    layers = (*calls, *(Layer(tensor.spec, tensor.active_if) for tensor in held))
    used = {buffer for operator in recorder.operators for _, buffer in operator.reads}
    used |= {buffer for _, buffer in outputs}
    return Trace(
        layers,
        options,
        inputs,
        tuple(_without_unused(operator, used) for operator in recorder.operators),
        tuple(recorder.activations.buffers),
        recorder.activations.starts,
        outputs,
        tuple(recorder.pieces),
        held,
        recorder.shapes,
    )


def _without_unused(operator: Operator, used: set[int]) -> Operator:
    """Leave out what only training reads, e.g. the statistics that a LayerNorm also returns."""
    makes = tuple(b for i, b in enumerate(operator.makes) if i == 0 or b in used)
    return operator if makes == operator.makes else replace(operator, makes=makes)


def accesses(traced: Trace) -> Iterator[Layer]:
    """Each activation that an operator reads from memory, or writes there.

    The network's inputs are read and never written. An operator in place reads and writes the same
    activation; views do neither.
    """
    for operator in traced.operators:
        if operator.view:
            continue
        made: list[Read] = [(frozenset(), buffer) for buffer in operator.makes]
        for kind, reads in (("read", operator.reads), ("write", [*made, *operator.overwrites])):
            where: dict[int, set[Condition]] = defaultdict(set)
            for condition, buffer in reads:
                where[buffer].add(condition | operator.condition)
            for buffer, conditions in where.items():
                numel, dtype = traced.buffers[buffer]
                spec = LayerSpec(
                    kind, operator.module, numel=numel, role=operator.name, dtype=dtype
                )
                yield Layer(spec, frozenset(conditions))


def _stored(
    model: nn.Module, nodes: Iterable[ChoiceNode], paths: Mapping[nn.Module, str]
) -> Iterator[StoredTensor]:
    """Every parameter and persistent buffer that some architecture stores.

    A decision's own alpha and buffers belong to the search: no network stores them.
    """
    found: dict[int, LayerSpec] = {}
    holders: dict[int, dict[str, AnyOf]] = defaultdict(dict)
    by_module = {node.module: node for node in nodes}
    for path, module, condition in _walk(model, "", frozenset(), by_module):
        for kind, name, tensor in _tensors(module):
            if id(tensor) not in found:  # a block of a searched depth stands under many paths
                found[id(tensor)] = stored(kind, path, module, name, tensor)
            held = holders[id(tensor)]
            held[paths[module]] = held.get(paths[module], frozenset()) | {condition}
    return (StoredTensor(spec, holders[tensor]) for tensor, spec in found.items())


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    decision = isinstance(module, Decision)
    for name, parameter in module._parameters.items():
        if parameter is not None and not (decision and parameter is module.alpha):
            yield "parameter", name, parameter
    for name, buffer in module._buffers.items():
        if not (buffer is None or decision or name in module._non_persistent_buffers_set):
            yield "buffer", name, buffer


def _walk(
    module: nn.Module, path: str, condition: Condition, nodes: Mapping[nn.Module, ChoiceNode]
) -> Iterator[tuple[str, nn.Module, Condition]]:
    """Every module under every path that leads to it, with the condition on that path."""
    yield path, module, condition
    if module in nodes:
        for name, own, candidate in nodes[module].candidates:
            if consistent(condition | own):
                yield from _walk(candidate, f"{path}.{name}".lstrip("."), condition | own, nodes)
        return
    for name, child in module.named_children():
        yield from _walk(child, f"{path}.{name}".lstrip("."), condition, nodes)
