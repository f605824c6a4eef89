"""The one recorder of a forward pass: what runs, under which choices, and what it reads and makes.

Tensors are row-major, as in runtimes on devices: a view that is row-major too shares the memory of
what it views, any other (a transposition, a slice across rows) is copied where it is made. Eager
PyTorch may copy later, in whatever reads the view, and where depends on the layouts of the
candidates before it: an unrolled supernet could not tell what each network does.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

from nas.cost.activations import Activations, Case, Read, key_of, tensors
from nas.cost.dry_run import ChoiceNode, Inputs, Unrolled
from nas.cost.layer import LayerSpec, bits_of_call, stored
from nas.cost.operators import Operator, check_known, is_view, layers_of, text_of
from nas.cost.polynomial import Choice, Condition, consistent
from nas.cost.repeats import Call, Recording, call_of, operators_of, output_of, recording_of
from nas.cost.shapes import run_operator
from nas.cost.sizes import SizedCalls

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
class Piece:
    """One call of a module that is as large as can be without a choice inside.

    Behind searched widths one call is a piece for each size of its arguments.

    Attributes:
        condition: where the call happens.
        args, kwargs: of the call; their tensors have no memory, as far as that is possible.
        first, end: its operators are ``operators[first:end]``.
        follows: the index of the piece that has just given its only argument.
    """

    path: str
    condition: Condition
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first: int
    end: int
    follows: int | None


@dataclass(slots=True)
class _Frame:
    """A module that runs.

    Attributes:
        own: the conditions under which its caller runs it as a candidate.
        alternatives: of a choice node, what its candidates gave.
    """

    path: str
    choices: tuple[Choice, ...] = ()
    own: Sequence[Condition] = ()
    alternatives: list[tuple[Condition, Any]] = field(default_factory=list)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows one forward pass of `model`, whose candidates `nodes` run.

    What an operator makes of weights and constants alone is a weight again, at no cost unless the
    operator is a product, which counts where it runs. What it makes of data is data.

    The size of an activation may depend on decisions (channels that are searched). The code of a
    module sees a tensor of the largest size, that stands for one tensor of each size, and whose
    sides are numbers that stand for one number each; functions and modules without choices run for
    every one of them, under its condition. A function that only takes the largest (in whose
    arguments the code has put other numbers) is recorded for that one alone.

    Raises:
        UserError: a matrix of weights goes, with data, into an operator whose cost is not known.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else its compiler is loaded, in a second or two, to be kept out of the way

    def __init__(
        self,
        model: nn.Module,
        nodes: Sequence[ChoiceNode],
        inputs: Inputs,
        options: Mapping[str, int],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[LayerSpec, Condition]] = []
        self.operators: list[Operator] = []
        self.pieces: list[Piece] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # of what each module gave last
        self.paths = {module: name for name, module in model.named_modules()}
        self._nodes = {node.path: node for node in nodes}
        self._candidates: dict[nn.Module, list[tuple[str, Condition]]] = defaultdict(list)
        for node in nodes:
            for name, condition, candidate in node.candidates:
                self._candidates[candidate].append((node.path, condition))
                # An option may be put together of submodules, and be none itself.
                self.paths.setdefault(candidate, f"{node.path}.{name}")
        self._modules = {path: module for module, path in self.paths.items()}
        self._whole = list(_without_choices(model, {node.module for node in nodes}))
        self._in_piece = False  # one may be a part of another
        self._recordings: dict[Hashable, Recording] = {}  # of the calls that have been run
        self._last: dict[Condition, tuple[int, Any]] = {}  # what the pieces of the last call gave
        self._frames = [_Frame("")]
        self.activations = Activations(options, model.parameters(), tensors(inputs))

    @property
    def where(self) -> str:
        """Path of the module that runs."""
        return self._frames[-1].path

    def attach(self, stack: ExitStack) -> None:
        """Follow every module until `stack` is closed."""
        for module in self.paths:
            before = module.register_forward_pre_hook(self._enter)
            after = module.register_forward_hook(self._leave)
            stack.callback(before.remove)
            stack.callback(after.remove)
        for module in self._whole:
            stack.callback(setattr, module, "forward", module.forward)
            vars(module)["forward"] = self._in_pieces(module, module.forward)
        for node in self._nodes.values():
            if isinstance(node.module, Unrolled):
                node.module.fits = self._fits
        stack.enter_context(SizedCalls(self._call, self.activations.shape_of))

    def _fits(self, x: Tensor, condition: Condition, dim: int, channels: int) -> bool:
        given = [*self._frames[-1].choices, *condition]
        return {y.shape[dim] for y in self.activations.alternatives(x, given)} == {channels}

    def _call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function of torch, run for each size of its arguments."""
        if not self.activations.sizes or self.where in self._nodes:
            return func(*args, **kwargs)
        cases = self.activations.cases(args, kwargs, self._frames[-1].choices)
        choices = self._frames[-1].choices
        counts = len(self.calls), len(self.operators)
        try:
            return self._each(func, cases)
        except RuntimeError:
            if len(cases) == 1:
                raise
            self._frames[-1].choices = choices
            del self.calls[counts[0] :], self.operators[counts[1] :]
            return func(*args, **kwargs)

    def _enter(self, module: nn.Module, _args: Any) -> None:
        caller = self._frames[-1]
        if self.paths[module] in self._nodes:
            self._last = {}  # nothing follows a piece across a choice
        # One module may be an option of two decisions, or be called by others as well.
        own = [c for path, c in self._candidates.get(module, ()) if path == caller.path]
        added = (choice for condition in own for choice in sorted(condition))
        self._frames.append(_Frame(self.paths[module], (*caller.choices, *added), own))

    def _leave(self, module: nn.Module, _args: Any, out: Any) -> Any:
        frame = self._frames[-1]
        if frame.path in self._nodes:
            self._last = {}  # nothing follows a piece across a choice
            out = self.activations.joined(out, frame.alternatives, frame.choices)
        for x in tensors(out)[:1]:
            self.shapes[frame.path] = tuple(x.shape)
        self._frames.pop()
        self._frames[-1].alternatives += [(condition, out) for condition in frame.own]
        return out

    def _in_pieces(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """`forward` of a module without choices: a call of it is a piece for each size."""

        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._in_piece:
                return self._called(module, forward, args, kwargs)
            before, self._last, self._in_piece = self._last, {}, True
            out = self._each(
                partial(self._piece, module, forward, before),
                self.activations.cases(args, kwargs, self._frames[-1].choices),
            )
            self._in_piece = False
            return out

        return run

    def _piece(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        before: Mapping[Condition, tuple[int, Any]],
        /,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        frame, first = self._frames[-1], len(self.operators)
        condition = frozenset(frame.choices)
        index, given = before.get(condition, (None, None))
        follows = index if len(args) == 1 and not kwargs and args[0] is given else None
        bare_args, bare_kwargs = tree_map(_without_memory, (args, kwargs))
        out = self._called(module, forward, args, kwargs)
        self._last[condition] = len(self.pieces), out
        end = len(self.operators)
        self.pieces.append(
            Piece(frame.path, condition, bare_args, bare_kwargs, first, end, follows)
        )
        return out

    def _called(
        self, module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """What `forward` gives; an equal call is run once, and its record repeated."""
        # What is looked up here is no code of the module.
        with torch._C.DisableTorchFunction():
            call = call_of(module, args, kwargs, self.activations)
            known = call and self._recordings.get(call.key)
            if call and known:
                return self._repeated(known, call)
        if call is None:
            return forward(*args, **kwargs)
        choices, first = frozenset(self._frames[-1].choices), len(self.activations.buffers)
        start, before, self.shapes = len(self.operators), self.shapes, {}
        out = forward(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            changed = call_of(module, args, kwargs, self.activations)
            if consistent(choices) and changed and changed.key == call.key:
                recording = recording_of(
                    call,
                    out,
                    self.operators[start:],
                    self.shapes,
                    first,
                    [self._possible([x]) for x in call.storages.values()],
                    self.paths,
                    self.activations,
                )
                if recording is not None:
                    self._recordings[call.key] = recording
        self.shapes = before | self.shapes
        return out

    def _repeated(self, known: Recording, call: Call) -> Any:
        choices, first = self._frames[-1].choices, len(self.activations.buffers)
        reads = [self._possible([x]) for x in call.storages.values()]
        self.activations.buffers += known.buffers
        found = list(operators_of(known, call, first, reads, self.paths, choices))
        self.operators += found
        condition = frozenset(choices)
        self.calls += [(layer, condition) for o in found for layer in o.layers]
        self.shapes |= {self.paths[call.modules[i]]: shape for i, shape in known.shapes}
        return output_of(known, call, first, self.activations)

    def _each(self, run: Callable[..., Any], cases: Sequence[Case]) -> Any:
        """What `run` gives in whichever case holds."""
        frame, outs = self._frames[-1], []
        if len(cases) == 1:
            return run(*cases[0][1], **cases[0][2])
        choices = frame.choices
        for condition, args, kwargs in cases:
            frame.choices = (*choices, *sorted(condition))
            outs.append((condition, run(*args, **kwargs)))
        frame.choices = choices
        return self.activations.joined(outs[0][1], outs, choices)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.activations.sizes or (self.where in self._nodes and not is_view(func)):
            return self._operate(func, *args, **kwargs)
        cases = self.activations.cases(args, kwargs, self._frames[-1].choices)
        if cases[0][1] is not args:
            try:
                for _, own, own_kwargs in cases:
                    run_operator(func, own, own_kwargs)
            except RuntimeError:
                return tree_map(self._of_largest, self._operate(func, *args, **kwargs))
        return self._each(partial(self._operate, func), cases)

    def _operate(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run and record one operator; gives its output."""
        out = run_operator(func, args, kwargs)
        inputs = tensors((args, kwargs))
        # Data also where data was written over what was a weight.
        data = [x for x in inputs if key_of(x) in self.activations.data]
        rest = (x for x in inputs if key_of(x) not in self.activations.data)
        weights = [x for x in rest if key_of(x) in self.activations.weights]
        frame, found = self._frames[-1], layers_of(func, args, out)
        if found is None and data and weights:
            check_known(func, weights, data, frame.path)
        bits: Any = bits_of_call(self._modules.get(frame.path)) if found else {}
        layers = tuple(LayerSpec(module=frame.path, **bits, **fields) for fields in found or ())
        self.calls += [(spec, frozenset(frame.choices)) for spec in layers]
        if frame.path not in self._nodes:
            out = self._note(func, args, kwargs, inputs, out, layers)
        if data or weights:
            made = tensors(out)
            if func._schema.is_mutable:
                made += _written(func, args, kwargs)
            self.activations.sort(self.activations.data if data else self.activations.weights, made)
        return out

    def _of_largest(self, x: Any) -> Any:
        """What has been made of stand-ins of the largest size, of that size alone."""
        return (
            self.activations.stand_in(x, self.activations.reads_of([x]))
            if isinstance(x, Tensor)
            else x
        )

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
        single = sum(key_of(x) in self.activations.reads for x in inputs) == 1
        over = torch.Tag.pointwise in func.tags or name in _POINTWISE | _NORMS
        fresh = [x for x in tensors(out) if key_of(x) not in old]
        self.operators.append(
            Operator(
                name,
                frame.path,
                frame.choices,
                reads,
                tuple(buffer for x in fresh for buffer in self.activations.make(x)),
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
        if not isinstance(x, Tensor) or key_of(x) not in self.activations.reads:
            return x  # of a parameter
        copy = _row_major(x)
        if copy is not x:
            frame, reads = self._frames[-1], self._possible([x])
            makes = tuple(self.activations.make(copy))
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
        reads = dict.fromkeys(self.activations.reads_of(inputs))
        return tuple(read for read in reads if consistent(read[0].union(choices)))


def _without_choices(model: nn.Module, searched: set[nn.Module]) -> Iterator[nn.Module]:
    """The modules that neither are in `searched` nor hold one of them."""
    holds: dict[nn.Module, bool] = {}

    def look(module: nn.Module) -> bool:
        if module not in holds:
            inside = [look(child) for child in module.children()]
            holds[module] = module in searched or any(inside)
        return holds[module]

    look(model)
    return (module for module, found in holds.items() if not found)


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
