"""Supernet + architecture -> a plain module that inherits the weights."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import nn

from nas.arch import Arch, Option
from nas.copying import copied
from nas.decision import Decision, Searchable, apply, decisions
from nas.ops.convolution import Conv2d
from nas.supernet.relax import without_passes


def arch_of(model: nn.Module, space: str | None = None) -> Arch:
    """The architecture of the largest alphas (of the chosen options where some are closed).

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> block.alpha.data[1] = 1.0
        >>> dict(nas.arch_of(supernet, "mine").choices)
        {'0': 'skip'}
    """
    name = space or getattr(model, "name", None) or type(model).__name__
    return Arch(str(name), {path: decision.best() for path, decision in decisions(model)})


def discretize(model: nn.Module, arch: Arch | None = None) -> nn.Module:
    """A copy of `model` in which every decision is replaced by the module of its option.

    Weights, buffers, training mode and `requires_grad` are as in the supernet, nothing is shared
    with it, no `Decision` is left, and `model` stays as it is.

    Args:
        arch: the options to take; without it the largest alpha of each decision.

    Raises:
        UserError: `arch` does not fit the model.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"linear": nn.Linear(4, 4), "skip": nn.Identity()})
        >>> supernet = nn.Sequential(block, nn.Linear(4, 2))
        >>> nas.discretize(supernet, nas.Arch("mine", {"0": "skip"}))
        Sequential(
          (0): Identity()
          (1): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    taken = arch or arch_of(model)
    _check(model, taken)
    return plain(model, {decision: taken.choices[name] for name, decision in decisions(model)})


def plain(model: nn.Module, options: Mapping[Decision, Option]) -> nn.Module:
    """As `discretize`, of a supernet or of a part of one, by the options of its decisions."""
    network: nn.Module = _copy(model, options, {})
    for module in network.modules():
        without_passes(module)
        if type(module) is Conv2d:
            # Tools that fuse or quantize a network look for exactly this type.
            cast(nn.Module, module).__class__ = nn.Conv2d
            vars(module).pop("quick", None)
    return network


def _copy(module: nn.Module, options: Mapping[Decision, Option], memo: dict[int, Any]) -> Any:
    """Copy `module`; `memo` maps each `Searchable` inside it to the variant that takes its place.

    Inner decisions come before the options that hold them; other options are not copied.
    """
    for searchable in outermost(module):
        if id(searchable) not in memo:
            made = searchable.materialize(options)
            # Kept, as in `copy.deepcopy`: another module may not get the id of one that is gone.
            memo.setdefault(id(memo), []).append(made)
            memo[id(searchable)] = _copy(made, options, memo)
    return copied(module, memo)


def outermost(module: nn.Module) -> Iterator[Searchable]:
    """Every `Searchable` in `module` that is inside no other one."""
    if isinstance(module, Searchable):
        yield module
        return
    for child in module.children():
        yield from outermost(child)


def _check(model: nn.Module, arch: Arch) -> None:
    """Let `apply` check `arch`, and restore the state of the decisions."""
    before = [(d, d.open.clone(), d.noise.clone()) for _, d in decisions(model)]
    try:
        apply(model, arch)
    finally:
        for decision, opened, noise in before:
            decision.open.copy_(opened)
            decision.noise.copy_(noise)
