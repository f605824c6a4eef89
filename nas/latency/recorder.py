"""Records which modules a supernet runs, under which condition, and by which operators."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.cost.base import Choice, Condition, LayerSpec
from nas.cost.dry_run import Inputs, run
from nas.cost.operators import OperatorRecorder
from nas.decision import Decision, decisions, sites


@dataclass
class Call:
    """One execution of one module, or of several in a row that no choice separates.

    Attributes:
        condition: the call happens in the architectures where this holds.
        paths: of the modules.
        operators: each with its shapes, see `operator_text`.
        free: it computes nothing (an identity, a view).
    """

    condition: Condition
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    paths: list[str] = field(default_factory=list)
    layers: list[LayerSpec] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    free: bool = True


def record(model: nn.Module, inputs: Inputs) -> list[Call]:
    """The calls of one forward of `model`, in order, every option taking part."""
    model.eval()
    recorder = _Recorder()
    names = {decision: name for name, decision in decisions(model)}
    for _, site in sites(model):
        site.unrolled = True
    with ExitStack() as stack, torch.no_grad():
        # Options first: they look at who calls, which is then the last of those that run.
        for _, site in sites(model):
            for index, candidate in enumerate(site.active_if().values()):
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
        inner = module.active_if().values() if isinstance(module, Decision) else module.children()
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
    """Writes down which unit runs, under which condition, and by which operators."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._running: list[nn.Module] = []  # from the outside in
        self._condition: list[Choice | None] = []
        self._depth = 0  # of leaves: one may be a part of another
        self._last: Any = None  # what the last unit gave

    def running(self) -> tuple[Before, After]:
        """For every module."""

        def after(_out: Any) -> None:
            self._running.pop()

        return lambda module, *_: self._running.append(module), after

    def option(self, decision: Decision, choice: Choice) -> tuple[Before, After]:
        """For a candidate; it counts while its own decision runs it, not another caller."""

        def before(*_: Any) -> None:
            own = bool(self._running) and self._running[-1] is decision
            self._condition.append(choice if own else None)

        def after(_out: Any) -> None:
            self._condition.pop()

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
        condition = frozenset(choice for choice in self._condition if choice is not None)
        follows = len(args) == 1 and not kwargs and args[0] is self._last and self.calls
        # Measured in one piece: runtimes join a convolution with what comes after it.
        if not (follows and self.calls[-1].condition == condition):
            self.calls.append(Call(condition, args, kwargs))
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


def operator_text(func: Any, args: Sequence[Any], out: Any) -> str:
    """An operator with the shapes and whole numbers that go in, and the shapes that come out.

    Epsilons and the like are left out: they take no time.
    """
    given = ",".join(filter(None, map(_text, args)))
    made = ",".join(_shape(x) for x in tree_leaves(out) if isinstance(x, Tensor))
    return f"{func.overloadpacket.__name__}({given})->{made}"


def is_view(func: Any) -> bool:
    """Whether an operator computes nothing: its outputs are its inputs, looked at differently."""
    returns = func._schema.returns
    aliases = [r.alias_info for r in returns]
    return bool(returns) and all(a is not None and not a.is_write for a in aliases)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _shape(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(filter(None, map(_text, value)))}]"
    return "" if isinstance(value, float) else str(value)


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape)) or "scalar"
