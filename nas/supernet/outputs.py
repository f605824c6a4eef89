"""What candidates give: a tensor, or tuples, named tuples, lists and dicts of tensors.

All candidates of a block give the same structure. Floating point and complex tensors are mixed, one
by one; of integer and boolean ones that of the candidate with the largest theta is taken; anything
else (None, a number, a string) must be the same in all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_map,
    tree_unflatten,
)

from nas.errors import UserError

_CONSTANTS = (type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device)


class Outputs:
    """The leaves of what candidates give, in the order of the first one's structure.

    Args:
        name, out: of the first candidate.
        inputs: what the candidates were called with; only for messages.
    """

    def __init__(self, name: str, out: Any, inputs: Any) -> None:
        self.name, self.inputs = name, inputs
        self.spec: TreeSpec | None = None
        self.leaves: list[Any] = [out]
        if not isinstance(out, Tensor):
            self.leaves, self.spec = tree_flatten(out)
        for leaf in self.leaves:
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                raise UserError(
                    f"candidate {name!r} gives a {type(leaf).__name__}, in which tensors cannot "
                    "be found to be mixed: return tensors, or tuples, lists or dicts of them, or "
                    "register the class with torch.utils._pytree.register_pytree_node"
                )

    def tensors(self, leaves: Sequence[Any] | None = None) -> list[Tensor]:
        """Those that are mixed."""
        return [leaf for leaf in leaves or self.leaves if mixable(leaf)]

    def like(self, name: str, out: Any) -> list[Any]:
        """The leaves of another candidate's output.

        Raises:
            UserError: it has another structure, shape or kind than the first one's.
        """
        if isinstance(out, Tensor):
            leaves = [out]
            if self.spec is not None:
                raise UserError(self._mismatch(name, out))
        elif self.spec is None:
            raise UserError(self._mismatch(name, out))
        else:
            try:
                leaves = self.spec.flatten_up_to(out)
            except ValueError:
                raise UserError(self._mismatch(name, out)) from None
        if not all(map(_alike, self.leaves, leaves)):
            raise UserError(self._mismatch(name, out))
        return leaves

    def whole(self, leaves: Sequence[Any]) -> Any:
        """The structure with other leaves."""
        return leaves[0] if self.spec is None else tree_unflatten(leaves, self.spec)

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """The structure with other `tensors`."""
        given = iter(tensors)
        return self.whole([next(given) if mixable(leaf) else leaf for leaf in self.leaves])

    def _mismatch(self, name: str, out: Any) -> str:
        plain = self.spec is None and isinstance(out, Tensor)
        return (
            f"candidates of one choice block must give the same "
            f"{'shape' if plain else 'structure and shapes'}, but for an input "
            f"{_described(_arguments(*self.inputs))} {name!r} gives {_described(out)} and "
            f"{self.name!r} {_described(self.whole(self.leaves))}: change its "
            f"{'stride, padding or channels' if plain else 'outputs, or wrap it'}"
        )


def mixable(leaf: Any) -> bool:
    """Whether it is a tensor that can be weighted."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def by_place(out: Any) -> dict[str, Any]:
    """Place in the structure -> leaf; the places are the same for all candidates of a block."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(out)[0]}


def chosen(leaves: Sequence[Any], theta: Tensor) -> Any:
    """Of one place in the outputs of all candidates, what is not mixed."""
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
    """`value` with the shapes of its tensors."""

    def shape(leaf: Any) -> Any:
        return _Plain(tuple(leaf.shape)) if isinstance(leaf, Tensor) else leaf

    return str(tree_map(shape, value))


class _Plain(str):
    """Text that is shown without quotes."""

    __slots__ = ()

    def __new__(cls, value: object) -> "_Plain":
        return super().__new__(cls, value)

    def __repr__(self) -> str:
        return str(self)
