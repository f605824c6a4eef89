"""The candidates of a choice block: which modules may be some, and how one is called."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.errors import UserError


@runtime_checkable
class Scalable(Protocol):
    """An op that multiplies its output by a number more cheaply than by touching every value.

    Of several inputs, the others stand between `x` and `scale`, which is then given by keyword.
    """

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale * self(x)`` for a 0-dim scale >= 0."""
        ...


def named(candidates: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Names made of place and type."""
    return {f"{i}_{type(op).__name__}": op for i, op in enumerate(candidates)}


def check(candidates: Mapping[str, nn.Module]) -> None:
    """Raises UserError unless they are modules, each another one, under names that can be kept."""
    if not candidates:
        raise UserError("a choice block needs at least one candidate op, got none")
    for name, op in candidates.items():
        if not isinstance(op, nn.Module):
            raise UserError(f"candidate {name!r} must be an nn.Module, got {type(op).__name__}")
        if not isinstance(name, str) or "." in name or not name:
            raise UserError(
                f"candidate name {name!r} must be a string, not empty and without a dot"
            )
        if hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"candidate name {name!r} is an attribute of nn.ModuleDict: choose another"
            )
    if len({id(op) for op in candidates.values()}) < len(candidates):
        raise UserError(
            f"two of the candidates {list(candidates)} are the same module object: "
            "deepcopy one of them, or share an inner module instead"
        )


def call(
    name: str, op: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], scale: Tensor | None
) -> Any:
    """What a candidate gives; times `scale`, by its `scaled`, where that is given.

    Raises:
        UserError: it cannot be called so, or it has written on its input.
    """
    before = _versions(args, kwargs)
    try:
        if scale is None:
            out = op(*args, **kwargs)
        elif len(args) == 1 and not kwargs:
            out = cast(Scalable, op).scaled(args[0], scale)
        else:
            out = cast(Any, op).scaled(*args, scale=scale, **kwargs)
    except TypeError:
        _check_signature(name, op, args, kwargs)
        raise
    if before != _versions(args, kwargs):
        raise UserError(
            f"candidate {name!r} has written on its input, which it does not do when first called "
            "in this mode, so that the others may have seen something else: work out of place, as "
            "by inplace=False"
        )
    return out


def _check_signature(
    name: str, op: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        inspect.signature(op.forward).bind(*args, **kwargs)
    except TypeError as error:
        given = [*(type(x).__name__ for x in args), *(f"{key}=" for key in kwargs)]
        raise UserError(
            f"candidate {name!r} ({type(op).__name__}) cannot be called with what its choice "
            f"block is given, ({', '.join(given)}): {error}. All candidates must take the same "
            "arguments"
        ) from None


def _versions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """How often each tensor has been written on; nothing where nobody counts."""
    if torch.compiler.is_compiling():
        return []
    leaves = args if len(args) == 1 and not kwargs else tree_leaves((args, kwargs))
    return [x._version for x in leaves if isinstance(x, Tensor) and not x.is_inference()]
