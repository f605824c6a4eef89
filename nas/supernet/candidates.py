"""The candidates of a choice block: checks, calls, and the structure of their outputs.

All candidates of a block give the same structure: a tensor, or tuples, named tuples, lists and
dicts of tensors. Floating point and complex tensors are mixed one by one. Of integer and boolean
tensors, the block gives that of the candidate with the largest theta. Anything else (None, a
number, a string) must be equal in all.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_unflatten,
)

from nas.errors import UserError

_CONSTANTS = (type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)


@runtime_checkable
class Scalable(Protocol):
    """An op that multiplies its output by a number more cheaply than by touching every value.

    With several inputs, the others come between `x` and `scale`, and `scale` is a keyword.
    """

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale * self(x)`` for a 0-dim scale >= 0."""
        ...


def named(candidates: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Name each candidate by its position and type: ``0_Conv2d``."""
    return {f"{i}_{type(op).__name__}": op for i, op in enumerate(candidates)}


def check(candidates: Mapping[str, nn.Module]) -> None:
    """Check that they are different modules, under names that `nn.ModuleDict` takes.

    Raises:
        UserError: they are not, or there are none.
    """
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
    """Run a candidate; with `scale`, by its method `scaled`.

    Raises:
        UserError: it does not take these arguments, or it has written on its input.
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
    """How often each tensor has been written on; [] in compiled graphs, which do not count it."""
    if torch.compiler.is_compiling():
        return []
    leaves = args if len(args) == 1 and not kwargs else tree_leaves((args, kwargs))
    return [x._version for x in leaves if isinstance(x, Tensor) and not x.is_inference()]


class Outputs:
    """The leaves of the candidates' outputs, in the order of the first one's structure.

    Args:
        name, out: of the first candidate.
        inputs: what the candidates were called with; only for messages.
    """

    def __init__(self, name: str, out: Any, inputs: Any) -> None:
        self.name, self.inputs = name, inputs
        self.leaves, self.spec = tree_flatten(out)
        for leaf in self.leaves:
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                raise UserError(
                    f"candidate {name!r} gives a {type(leaf).__name__}, in which tensors cannot "
                    "be found to be mixed: return tensors, or tuples, lists or dicts of them, or "
                    "register the class with torch.utils._pytree.register_pytree_node"
                )

    def tensors(self, leaves: Sequence[Any] | None = None) -> list[Tensor]:
        """The leaves that are mixed."""
        return [leaf for leaf in leaves or self.leaves if mixable(leaf)]

    def like(self, name: str, out: Any) -> list[Any]:
        """The leaves of another candidate's output.

        Raises:
            UserError: it has another structure, shape or kind than the first one's.
        """
        try:
            leaves = self.spec.flatten_up_to(out)
        except ValueError:
            raise UserError(self._mismatch(name, out)) from None
        if not all(map(_alike, self.leaves, leaves)):
            raise UserError(self._mismatch(name, out))
        return leaves

    def whole(self, leaves: Sequence[Any]) -> Any:
        """Put other leaves into the structure."""
        return tree_unflatten(leaves, self.spec)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Put other tensors into the structure, in place of those that are mixed."""
        given = iter(tensors)
        return self.whole([next(given) if mixable(leaf) else leaf for leaf in self.leaves])

    def _mismatch(self, name: str, out: Any) -> str:
        plain = self.spec.is_leaf() and isinstance(out, Tensor)
        return (
            f"candidates of one choice block must give the same "
            f"{'shape' if plain else 'structure and shapes'}, but for an input "
            f"{_described(_arguments(*self.inputs))} {name!r} gives {_described(out)} and "
            f"{self.name!r} {_described(self.whole(self.leaves))}: change its "
            f"{'stride, padding or channels' if plain else 'outputs, or wrap it'}"
        )


def mixable(leaf: Any) -> bool:
    """Whether a leaf is a tensor that can be weighted."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def by_place(out: Any) -> dict[str, Any]:
    """Path in the structure -> leaf; the paths are the same for all candidates of a block."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(out)[0]}


def chosen(leaves: Sequence[Any], theta: Tensor) -> Any:
    """The value of a leaf that is not mixed, given that leaf of every candidate."""
    if not isinstance(leaves[0], Tensor):
        return leaves[0]
    return torch.stack(list(leaves))[theta.argmax()]


def _alike(first: Any, other: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(other, Tensor):
        return first.shape == other.shape and mixable(first) == mixable(other)
    return type(first) is type(other) and bool(first == other)


def _arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if kwargs:
        return {**{str(i): x for i, x in enumerate(args)}, **kwargs}
    return args[0] if len(args) == 1 else args


def _described(value: Any) -> str:
    """`value` with the shapes of its tensors in their place."""
    shapes = tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else x, value)
    return str(shapes)
