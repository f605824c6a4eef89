"""Modules of a network in which something may be searched: by name and type, and swapping them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from nas.arch import Option
from nas.config.schema import Name
from nas.decision import Searchable
from nas.supernet.choice import ChoiceBlock

T = TypeVar("T", bound=nn.Module)
# Attributes of every module that hold its parameters, buffers, modules and hooks.
TABLES = [name for name, held in vars(nn.Module()).items() if isinstance(held, dict)]
KEPT = "given"  # the option that keeps the module of the user's network


class Finding(NamedTuple):
    """What may be searched of one module, or why it cannot."""

    name: str
    module: nn.Module
    kind: str
    options: tuple[Option, ...]
    why_not: str | None = None


@dataclass(frozen=True)
class Where:
    """Modules chosen by patterns (`fnmatch`: ``*`` stands for anything, dots too).

    A pattern fits a module by its name, or by the name of its class or of a base class of that.

    Args:
        include: those that may be taken.
        exclude: and of those the ones that may not.

    Example:
        >>> from torch import nn
        >>> rule = Where(include=["layer?.*"], exclude=["*.conv2", "Linear"])
        >>> conv, linear = nn.Conv2d(3, 8, 3), nn.Linear(3, 8)
        >>> [rule.takes(name, conv) for name in ("layer1.0.conv1", "layer1.0.conv2", "conv1")]
        [True, False, False]
        >>> rule.takes("layer1.0.fc", linear)
        False
    """

    include: Sequence[Name] = ("*",)
    exclude: Sequence[Name] = ()

    def takes(self, name: str, module: nn.Module) -> bool:
        """Whether the module of that name is one of them."""
        names = [name, *(kind.__name__ for kind in type(module).__mro__)]

        def fits(patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(own, pattern) for own in names for pattern in patterns)

        return fits(self.include) and not fits(self.exclude)

    @property
    def named(self) -> bool:
        """Whether it names modules, instead of taking all."""
        return "*" not in self.include


def swappable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that may be swapped, once, by its name in the network that was given.

    What is searched already is left alone, but for the given module among its options.
    """
    seen: set[nn.Module] = set()

    def walk(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        if isinstance(module, ChoiceBlock) and KEPT in module.options:
            yield from walk(name, module.candidates[KEPT])
        elif not isinstance(module, Searchable):
            yield name, module
            for key, child in module.named_children():
                yield from walk(f"{name}.{key}".lstrip("."), child)

    yield from walk("", model)


def swapped(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """`model` with other modules in the place of some of its own, wherever they stand; in place.

    A module may hold the one whose place it takes.
    """
    spots = [
        (parent, key, child)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is not None and child in swaps and parent not in swaps.values()
    ]
    for parent, key, child in spots:
        parent._modules[key] = swaps[child].train(child.training)
    return swaps.get(model, model)


def uncompiled(model: nn.Module) -> nn.Module:
    """The modules that were compiled instead of those that `torch.compile` gave; in place."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if key != "_orig_mod" and child is not None and "_orig_mod" in child._modules:
                parent._modules[key] = child._modules["_orig_mod"]
    found: nn.Module = model._modules.get("_orig_mod") or model
    return found


def computed(module: nn.Module) -> str | None:
    """Why the weights of a layer are no parameters of it; None: they are."""
    if parametrize.is_parametrized(module):
        return (
            "its weight is parametrized: remove it by "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    if not isinstance(getattr(module, "weight", None), nn.Parameter):
        return "its weight is computed before each call (weight_norm, prune): make it a parameter"
    return None


def sharing(module: nn.Module, kind: type[T]) -> T:
    """A module of a class that holds what `module` holds, in tables of its own.

    In one table of hooks with it, whoever hooked all modules that a layer may become would hook
    each of them as often as there are.
    """
    made: T = object.__new__(kind)
    vars(made).update(vars(module))
    vars(made).update((name, vars(module)[name].copy()) for name in TABLES)
    return made


def like(own: Tensor, value: Tensor) -> nn.Parameter:
    """A parameter of that value where `own` is, of its type, and trained if that is."""
    made = value.detach().to(own, copy=True).contiguous()
    return nn.Parameter(made, requires_grad=own.requires_grad)
