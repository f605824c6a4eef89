"""Copies of modules as they stand, in the middle of a training too."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


def copied(value: T, memo: dict[int, Any] | None = None, device: str | None = None) -> T:
    """A deep copy of a module, or of a container of modules, that shares nothing with it.

    A tensor that stands in several places of `value` stands in as many places of the copy, so tied
    weights stay tied; `Module.to("meta")` on a copy would untie them. A tensor with a history
    (what `weight_norm`, `spectral_norm` and `prune` put in place of a weight, or an output that
    a module keeps) is copied without it, which `copy.deepcopy` refuses.

    Args:
        memo: as for `copy.deepcopy`, to give some objects a stand-in.
        device: of every tensor of the copy; None: where each is.
    """
    memo = {} if memo is None else memo
    for module in value.modules() if isinstance(value, nn.Module) else ():
        # Most of what a module holds are empty dicts of hooks, which `copy` takes long to copy.
        for held in vars(module).values():
            if type(held) in (dict, OrderedDict) and not held:
                memo.setdefault(id(held), type(held)())
    with _Copying(device):
        return copy.deepcopy(value, memo)


class _Copying(TorchFunctionMode):
    def __init__(self, device: str | None) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.__deepcopy__:
            return self._copy(*args)
        if func is Tensor.clone and self.device is not None:  # what a parameter copies itself by
            return args[0].to(self.device, copy=True)
        return func(*args, **(kwargs or {}))

    def _copy(self, x: Tensor, memo: dict[int, Any]) -> Tensor:
        if id(x) not in memo and is_lazy(x):  # of a lazy module: no values yet
            kind: Any = type(x)
            memo[id(x)] = kind(requires_grad=x.requires_grad, device=x.device, dtype=x.dtype)
        elif x.is_leaf and self.device is None:
            return cast(Tensor, Tensor.__deepcopy__(x, memo))  # type: ignore[no-untyped-call]
        elif id(x) not in memo:
            made = x.detach().to(self.device or x.device, copy=True)
            memo[id(x)] = made.requires_grad_(x.is_leaf and x.requires_grad)
        found: Tensor = memo[id(x)]
        return found
