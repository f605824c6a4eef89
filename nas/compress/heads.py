"""A module of attention of the user's own class whose heads are searched."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

from torch import nn

from nas.arch import Option
from nas.compress.dependencies import HEADS
from nas.compress.layer import SearchedLayer, Width, class_of, empty
from nas.compress.modules import sharing
from nas.copying import copied
from nas.decision import Decision, Searchable

# Names under which modules of attention keep the width of all heads together.
INNER = ("attn_dim", "inner_dim", "all_head_dim", "all_head_size")


class SearchedHeads(Searchable):
    """Mixed into the class of a module of attention, whose numbers follow its heads.

    Its layers search their channels by the same decision. It becomes plain together with them.
    """

    plain: ClassVar[type[nn.Module]]
    kept_heads: Width
    numbers: tuple[str, ...]  # attributes that are multiples of the number of heads

    def decisions(self) -> tuple[Decision, ...]:
        inner = (s.decisions() for s in self.modules() if isinstance(s, SearchedLayer))
        return tuple(dict.fromkeys([self.kept_heads, *chain.from_iterable(inner)]))

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """The module with the layers that it has under `options`."""
        made = sharing(self, self.plain)
        del vars(made)["numbers"]
        memo: dict[int, Any] = {
            id(layer): layer.materialize(options)
            for layer in self.modules()
            if isinstance(layer, SearchedLayer)
        }
        made._modules = {
            name: copied(child, memo)
            for name, child in self._modules.items()
            if name != "kept_heads"
        }
        vars(made).update(self._sizes(int(str(options[self.kept_heads]))))
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a module of its class gives that has as many heads as the largest open option."""
        largest = self.kept_heads.read().option
        before = {name: vars(self)[name] for name in self.numbers}
        vars(self).update(self._sizes(self.kept_heads.options[largest]))
        try:
            return super().forward(*args, **kwargs)
        finally:
            vars(self).update(before)

    def _sizes(self, heads: int) -> dict[str, int]:
        whole = self.kept_heads.options[-1]
        return {name: vars(self)[name] * heads // whole for name in self.numbers}

    def __reduce_ex__(self, protocol: Any) -> Any:
        return empty, (self.plain, SearchedHeads), vars(self)


def search_heads(module: nn.Module, width: Width) -> None:
    """Make a module of attention follow the number of its heads, in place."""
    heads = width.options[-1]
    numbers = [
        name
        for name, value in vars(module).items()
        if type(value) is int
        and ((name in HEADS and value == heads) or (name in INNER and value % heads == 0))
    ]
    module.add_module("kept_heads", width)
    # First, so that the decision is called after it, and not after a layer.
    module._modules = {"kept_heads": width, **module._modules}
    module.__class__ = class_of(type(module), SearchedHeads)
    vars(module).update(numbers=tuple(numbers))
