"""Candidates that write on their input get a copy of it; all others get the input itself.

The candidates of a block share one input, and modules around the block may read it again. Before
its first call, a copy of the module runs on the meta device, which shows whether it writes. A hook
of the module keeps the answer, so that a network extracted from the supernet computes what the
supernet did.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from nas.copying import copied
from nas.decision import Decision


class OwnInput:
    """Forward pre-hook: the arguments as they are, or copies where the module writes on them."""

    def __init__(self) -> None:
        self.writes: dict[bool, bool] = {}  # training mode -> whether the module writes

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnInput":
        # What a module does, every copy of it does: one that is traced tells the others.
        return self

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        writes = self.writes.get(module.training)
        if writes is None:
            # A graph that is being captured cannot try; it drops a copy that it does not need.
            captured = torch.compiler.is_compiling()
            writes = None if captured else _writes(module, args, kwargs)
            if not captured and (writes is not None or _has_values(args, kwargs)):
                self.writes[module.training] = writes is not False
        return None if writes is False else own_arguments(args, kwargs)


def guard(op: nn.Module) -> None:
    """Keep `op` from writing on its arguments, unless it is known not to write."""
    if guard_of(op) is None and not _harmless(op):
        op.register_forward_pre_hook(OwnInput(), with_kwargs=True)


def guard_of(op: nn.Module) -> OwnInput | None:
    """The hook that `guard` has given it."""
    found = (hook for hook in op._forward_pre_hooks.values() if isinstance(hook, OwnInput))
    return next(found, None)


def guards_last(model: nn.Module) -> None:
    """Copy inputs after all other hooks of a module, as their work is part of the module's."""
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, OwnInput):
                module._forward_pre_hooks[key] = module._forward_pre_hooks.pop(key)


def own_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Arguments with a copy of every tensor; of one that is passed twice, one copy."""
    made: dict[int, Any] = {}

    def once(leaf: Any) -> Any:
        # A proxy stands for a tensor while a graph is written down.
        if not isinstance(leaf, Tensor | fx.Proxy):
            return leaf
        if id(leaf) not in made:
            made[id(leaf)] = leaf.clone()
        return made[id(leaf)]

    found: tuple[Any, Any] = tree_map(once, (args, kwargs))
    return found


def _harmless(op: nn.Module) -> bool:
    """Whether `op` is one of the project's, or made of PyTorch's modules that work out of place."""
    # A block gives each of its candidates a guard of its own.
    if type(op).__module__.startswith(("nas.ops.", "nas.supernet.")) or isinstance(op, Decision):
        return True
    plain = type(op).__module__.startswith("torch.nn.modules.")
    return plain and not getattr(op, "inplace", False) and all(map(_harmless, op.children()))


def _has_values(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether these are arguments of a real run, not of one that is traced without memory."""
    leaves = tree_leaves((args, kwargs))
    return not any(isinstance(x, fx.Proxy) or (isinstance(x, Tensor) and x.is_meta) for x in leaves)


def _writes(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool | None:
    """Whether `module` writes on its arguments, by a run that leaves no trace; None if unknown."""
    try:
        # Modes that others have switched on, such as counters, must not see this run.
        with (
            _disable_current_modes(),
            torch.inference_mode(False),
            torch.no_grad(),
            torch.random.fork_rng([]),
        ):
            probe, dtype = _without_memory(module)
            inputs, named = tree_map_only(Tensor, lambda x: _like(x, dtype), (args, kwargs))
            probe.forward(*inputs, **named)
            return any(x._version for x in tree_leaves((inputs, named)) if isinstance(x, Tensor))
    except Exception:  # e.g. it looks at values, or cannot be copied
        return None


def _without_memory(module: nn.Module) -> tuple[nn.Module, torch.dtype | None]:
    """A copy on the meta device without hooks, and the type of its weights."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        if isinstance(part, Decision):
            # They look at the values of their theta, but not while they are traced and without
            # memory themselves.
            own = (*part.parameters(recurse=False), *part.buffers(recurse=False))
            memo |= {id(x): copied(x, device="cpu") for x in own if not x.is_meta}
    probe = copied(module, memo, "meta")
    for part in probe.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    weights = (x for x in (*probe.parameters(), *probe.buffers()) if x.is_meta)
    return probe, next((x.dtype for x in weights if x.is_floating_point()), None)


def _like(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    # Under autocast activations and weights differ in type, which here nothing reconciles.
    floating = dtype is not None and x.is_floating_point()
    return torch.empty_like(x, device="meta", dtype=dtype if floating else None)
