"""The rules: what of a network is searched; and the network in which all but channels is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from nas.compress.depth import (
    Depth,
    Resolution,
    depth_found,
    searched_depth,
    searched_resolution,
)
from nas.compress.kernels import Kernels, kernels_found, searched_kernels
from nas.compress.modules import KEPT, Finding, Where
from nas.compress.operations import Operations, operations_found, searched_operations
from nas.compress.taps import ElasticTaps
from nas.config.schema import Count, Name, Share, checked
from nas.cost.dry_run import Example
from nas.errors import UserError
from nas.inputs import Inputs
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import ElasticResolution


@checked("space.rules.channels")
@dataclass(frozen=True)
class Channels:
    """Which numbers of channels are offered.

    Args:
        choices: about how many, in equal steps from ``1 / choices`` to all.
        divisor: they are multiples of this, or of a half, a quarter, ... of it where a layer is
            too narrow for so many choices.
        least: the smallest share of the channels.
    """

    choices: Count = 8
    divisor: Count = 8
    least: Share = 0.0


# What a rule may be: itself, its arguments, true for its defaults, or null and false for none.
KINDS: dict[str, type[Any]] = {
    "channels": Channels,
    "depth": Depth,
    "operations": Operations,
    "kernels": Kernels,
    "resolution": Resolution,
}


@checked("space.rules")
@dataclass(frozen=True)
class Rules:
    """What of a network is searched. Each kind is null (nothing), true (by default), or arguments.

    A pattern (as of a shell: ``layer3.*``) fits a layer by its path or by the name of its class.

    Args:
        include: the layers that make the channels that are searched, all of one group.
        exclude: layers whose channels stay, even if they are included.
        channels: how many, see `Channels`.
        depth: blocks that may go, see `nas.compress.depth.Depth`.
        operations: other operations in the place of layers, see
            `nas.compress.operations.Operations`.
        kernels: kernels and dilations, see `nas.compress.kernels.Kernels`.
        resolution: of the input, see `nas.compress.depth.Resolution`.

    Raises:
        UserError: a kind with an argument that it has not.

    Example:
        >>> Rules(kernels={"refit": True}, depth=True).kernels.refit
        True
    """

    include: Sequence[Name] = ("*",)
    exclude: Sequence[Name] = ()
    channels: Channels | Mapping[str, Any] | bool | None = field(default_factory=Channels)
    depth: Depth | Mapping[str, Any] | bool | None = None
    operations: Operations | Mapping[str, Any] | bool | None = None
    kernels: Kernels | Mapping[str, Any] | bool | None = None
    resolution: Resolution | Mapping[str, Any] | bool | None = None

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            object.__setattr__(self, name, self._made(name, kind, getattr(self, name)))

    def _made(self, name: str, kind: type[Any], value: Any) -> Any:
        if value is None or value is False:
            return None
        if isinstance(value, kind):
            made = value
        elif value is True or isinstance(value, Mapping):
            arguments = {} if value is True else {k: v for k, v in value.items() if k[:1] != "_"}
            known = [entry.name for entry in fields(kind)]
            if unknown := [key for key in arguments if key not in known]:
                raise UserError(f"space.rules.{name} has no {unknown[0]!r}, only {known}")
            made = kind(**arguments)
        else:
            raise UserError(
                f"space.rules.{name}={value!r} must be true, null, or a mapping of its arguments"
            )
        return made

    def check_patterns(self, model: nn.Module) -> None:
        """Refuse a pattern that fits nothing in `model`.

        Raises:
            UserError: with the key that it stands in.
        """
        named = list(model.named_modules(remove_duplicate=False))
        for key, rule in {"": self, **{f".{kind}": getattr(self, kind) for kind in KINDS}}.items():
            for side in ("include", "exclude"):
                for pattern in getattr(rule, side, ()):
                    if not any(Where([pattern]).takes(*one) for one in named):
                        raise UserError(
                            f"space.rules{key}.{side}: no layer of {type(model).__name__} is "
                            f"called {pattern!r}, nor is its class; there are "
                            f"{', '.join(name for name, _ in named[1:6])}, ..."
                        )


def searched_others(
    model: nn.Module, example: Example, rules: Rules, batches: Sequence[Inputs] | None
) -> tuple[nn.Module, list[Finding]]:
    """A copy of `model` in which blocks, operations, kernels and the resolution are searched.

    Args:
        batches: to fit weights on; None: from the weights that are there alone.

    Returns:
        The supernet, and what is searched in it, or is named and cannot be.
    """
    found: list[Finding] = []
    if isinstance(rules.depth, Depth):
        found += depth_found(model, example, rules.depth)
        model = searched_depth(model, example, rules.depth)
    if isinstance(rules.operations, Operations):
        found += operations_found(model, rules.operations)
        model = searched_operations(model, batches, rules.operations)
    if isinstance(rules.kernels, Kernels):
        found += kernels_found(model, example, rules.kernels)
        model = searched_kernels(model, example, rules.kernels, batches)
    if isinstance(rules.resolution, Resolution):
        model = searched_resolution(model, example, rules.resolution)
        assert isinstance(model, ElasticResolution)
        found.append(Finding("", model, "resolution", model.resolution.options))
    return model, found


def own_names(supernet: nn.Module) -> dict[str, str]:
    """Path of each module in a supernet -> the name of the layer that was given in its place.

    Modules inside another option have the name of the layer that they replace, then a space and the
    option.
    """
    return dict(_named(supernet, "", ""))


def _named(module: nn.Module, path: str, name: str) -> Iterator[tuple[str, str]]:
    yield path, name
    for key, child in module.named_children():
        below = f"{path}.{key}".lstrip(".")
        if isinstance(module, ElasticTaps | ElasticResolution):
            for own, inner in _named(child, below, name):
                yield own, name if isinstance(module, ElasticTaps) else inner
        elif isinstance(module, ChoiceBlock) and KEPT in module.options:
            for option, op in child.named_children():
                inner = f"{below}.{option}"
                if option == KEPT:
                    yield from _named(op, inner, name)
                else:
                    for own, _ in op.named_modules():
                        yield f"{inner}.{own}".rstrip("."), f"{name} {option}"
        else:
            yield from _named(child, below, f"{name}.{key}".lstrip("."))
