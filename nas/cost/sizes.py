"""Sides of tensors of searched size, as the code of a module reads them."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nas.cost.polynomial import Condition, consistent

# What tells of a tensor and makes none.
METADATA: frozenset[Any] = frozenset({Tensor.stride, Tensor.data_ptr, Tensor.untyped_storage})


class Size(int):
    """The largest of the numbers that a side may have; arithmetic keeps all of them.

    Thus ``x.view(len(x), x.shape[1] // 2, 2)`` is run for each size of x with the numbers of that.

    Attributes:
        cases: each number with its condition; one of them holds.
    """

    cases: tuple[tuple[Condition, int], ...]

    def __neg__(self) -> int:
        return sized(int.__neg__(self), ((c, -n) for c, n in self.cases))


def sized(largest: int, cases: Iterable[tuple[Condition, int]]) -> int:
    """`Size`, or the number itself where it is always the same."""
    found = tuple(dict.fromkeys(cases))
    if len({n for _, n in found}) < 2:
        return found[0][1] if found else largest
    made = Size(largest)
    made.cases = found
    return made


def _arithmetic(name: str) -> Callable[[int, Any], Any]:
    plain = getattr(int, name)

    def run(self: int, other: Any) -> Any:
        if not isinstance(other, int):
            return plain(self, other)
        own, others = cases_of(self), cases_of(other)
        cases = [(c | d, plain(n, m)) for (c, n), (d, m) in product(own, others)]
        return sized(plain(self, other), [case for case in cases if consistent(case[0])])

    return run


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    for _full in (f"__{_name}__", f"__r{_name}__"):
        setattr(Size, _full, _arithmetic(_full))


def cases_of(number: int) -> tuple[tuple[Condition, int], ...]:
    """Each value of a number with its condition."""
    return number.cases if isinstance(number, Size) else ((frozenset(), int(number)),)


class SizedCalls(TorchFunctionMode):
    """Hands every call of a function of torch, with the arguments as the code gave them, to `run`.

    Operators, which a `TorchDispatchMode` sees, are given plain numbers.
    """

    def __init__(self, run: Callable[..., Any], shape: Callable[[Tensor], tuple[int, ...]]) -> None:
        super().__init__()
        self.run, self.shape = run, shape

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.shape.__get__:  # type: ignore[attr-defined]  # made at each access
            return torch.Size(self.shape(args[0]))
        if func is Tensor.size:
            whole, given = torch.Size(self.shape(args[0])), [*args[1:], *(kwargs or {}).values()]
            return whole[given[0]] if given and isinstance(given[0], int) else whole
        if func is Tensor.__len__:
            return self.shape(args[0])[0]
        if func in METADATA or getattr(func, "__name__", "") == "__get__":
            return func(*args, **(kwargs or {}))
        return self.run(func, args, kwargs or {})
