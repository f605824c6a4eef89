"""The rules: what of a network is searched, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nas.compress.depth import Depth, Resolution
from nas.compress.kernels import Kernels
from nas.compress.operations import Operations
from nas.config.schema import Count, Share, checked
from nas.errors import UserError


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

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
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
            given = {} if value is True else {k: v for k, v in value.items() if k[:1] != "_"}
            known = [entry.name for entry in fields(kind)]
            if unknown := [key for key in given if key not in known]:
                raise UserError(f"space.rules.{name} has no {unknown[0]!r}, only {known}")
            made = kind(**given)
        else:
            raise UserError(
                f"space.rules.{name}={value!r} must be true, null, or a mapping of its arguments"
            )
        return made
