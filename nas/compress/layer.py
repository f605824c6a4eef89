"""A layer of the user's own class whose channels are searched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nas.arch import Option
from nas.compress.atoms import Places
from nas.compress.dependencies import HEADS
from nas.compress.modules import sharing
from nas.copying import copied
from nas.decision import Decision, Searchable
from nas.supernet.elastic import Elastic, weighted

# Names under which modules of attention keep the width of all heads together.
INNER = ("attn_dim", "inner_dim", "all_head_dim", "all_head_size")
_CACHES = ("_kept", "_placed")  # attributes of a layer that are made anew where they are missing


class Width(Elastic):
    """How many channels of some layers there are, and in which order they come.

    Options are numbers of channels. Of several groups of channels that are decided together they
    count the largest one's; the others keep the same share.

    Args:
        options: ascending; the last keeps everything.
        first: for each unit the index of the first option that keeps it ``(units,)``.
        groups: units of each group of channels, in the order of `first`; None: there is one.
    """

    first: Tensor  # a buffer, so that a checkpoint holds the order

    def __init__(
        self, options: Sequence[int], first: Tensor, groups: Sequence[int] | None = None
    ) -> None:
        super().__init__(options)
        self.register_buffer("first", first)
        self.groups = tuple(groups or [len(first)])
        # An encoder of PyTorch whose parts have hooks calls them: its kernel takes whole weights.
        self.register_forward_pre_hook(_no_kernel)

    def present(self, theta: Tensor) -> Tensor:
        """The probability that each unit is there ``(units,)``, and 1 as one more entry."""
        steps = torch.arange(len(theta), device=theta.device)[:, None]
        there = theta @ (steps >= self.first).to(theta)
        return torch.cat([there, there.new_ones(1)])


def _no_kernel(*_: Any) -> None:
    pass


@dataclass(frozen=True)
class Slicing:
    """How a width cuts one dimension of one tensor of a layer.

    Attributes:
        tensor: name of the parameter or buffer.
        width: name of the decision in the layer.
        units: for each index the unit of the width, -1: it stays.
        counts: how many indices stay under each option.
        reads: the layer sums over this dimension.
    """

    tensor: str
    dim: int
    width: str
    units: Places
    counts: tuple[int, ...]
    reads: bool


class SearchedLayer(Searchable):
    """Mixed into the class of a layer: its forward pass runs on a part of its tensors.

    Which part is determined by its widths; under a soft theta by the largest open option, and the
    weights that read a channel are multiplied by the probability that it is there. See `searched`.
    """

    plain: ClassVar[type[nn.Module]]
    slicings: tuple[Slicing, ...]
    widths: tuple[str, ...]
    given: Slicing | None  # how its input is cut
    # Options -> whole tensors that it becomes plain with, see `nas.compress.refit`.
    refit: "Callable[[SearchedLayer, Mapping[Decision, Option]], Mapping[str, Tensor]] | None"

    def decisions(self) -> tuple[Decision, ...]:
        return tuple(self.width(name) for name in self.widths)

    def left(self, slicing: Slicing, option: int) -> Tensor:
        """The indices that stay under an option, on the CPU."""
        index = self._index(slicing, option, torch.device("cpu"))
        if isinstance(index, Tensor):
            return index
        return torch.arange(len(slicing.units) if index is None else index)

    def width(self, name: str) -> Width:
        """The decision that it holds under this name."""
        return cast(Width, self._modules[name])

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """A layer of the class that it was, with copies of the parts that it uses."""
        taken = {
            name: self.width(name).options.index(options[self.width(name)]) for name in self.widths
        }
        made = sharing(self, self.plain)
        for key in ("slicings", "widths", "given", "channel_dim", "refit", *_CACHES):
            vars(made).pop(key, None)
        for name in self.widths:
            del made._modules[name]
        refit = vars(self).get("refit")
        parts = self._parts(taken, {}, refit(self, options) if refit else {})
        for name, part in parts.items():
            whole = getattr(self, name)
            value = part.detach().clone()
            if isinstance(whole, nn.Parameter):
                made._parameters[name] = nn.Parameter(value, whole.requires_grad)
            else:
                made._buffers[name] = value
        vars(made).update(_sizes(self, {**self._tensors(), **parts}))
        return made

    def in_channels_used(self, options: Mapping[Decision, Option]) -> int | None:
        if self.given is None:
            return None
        width = self.width(self.given.width)
        return self.given.counts[width.options.index(options[width])]

    def kept(
        self, tensor: str, dim: int, options: Mapping[Decision, Option] | None = None
    ) -> Tensor | None:
        """The indices of a dimension of a tensor that stay; None: all.

        Args:
            options: of its widths; None: the largest ones that are open.
        """
        for slicing in self.slicings:
            if (slicing.tensor, slicing.dim) == (tensor, dim):
                width = self.width(slicing.width)
                device = width.first.device
                if options is None:
                    taken = _largest(width.theta.tolist())
                else:
                    taken = width.options.index(options[width])
                index = self._index(slicing, taken, device)
                return torch.arange(index, device=device) if isinstance(index, int) else index
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a layer of its class gives that has a part of its tensors."""
        taken, masks = {}, {}
        reading = {slicing.width for slicing in self.slicings if slicing.reads}
        for name in self.widths:
            width = self.width(name)
            # Layers that only pass channels on need no gradient of their probabilities.
            with torch.set_grad_enabled(name in reading and torch.is_grad_enabled()):
                theta = width.theta
                values = theta.tolist()
                taken[name] = _largest(values)
                mixed = theta.requires_grad or any(value not in (0.0, 1.0) for value in values)
                if name in reading and mixed:
                    masks[name] = width.present(theta)
        parts = self._parts(taken, masks)
        hidden = {**parts, **_sizes(self, {**self._tensors(), **parts})}
        before = {name: vars(self)[name] for name in hidden if name in vars(self)}
        buffers = {name: x for name, x in self._buffers.items() if name in parts}
        # Attributes of the instance hide its tensors of the same name while it runs.
        vars(self).update(hidden)
        try:
            return super().forward(*args, **kwargs)
        finally:
            for name in hidden:
                del vars(self)[name]
            vars(self).update(before)
            # Code that assigns statistics, instead of writing on them, has put parts there.
            now = {name: self._buffers[name] for name in buffers}
            parts |= {n: x for n, x in now.items() if x is not None and x is not buffers[n]}
            self._buffers.update(buffers)
            self._write_back(taken, parts)

    def _tensors(self) -> dict[str, Tensor | None]:
        return {**self._parameters, **self._buffers}

    def _parts(
        self,
        taken: Mapping[str, int],
        masks: Mapping[str, Tensor],
        others: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the tensors that are cut, by name, under these options.

        Args:
            others: tensors in the place of its own.
        """
        found = dict(others or {})
        for slicing in self.slicings:
            whole = self._tensors()[slicing.tensor]
            assert whole is not None
            part, dim = found.get(slicing.tensor, whole), slicing.dim
            index = self._index(slicing, taken[slicing.width], whole.device)
            if isinstance(index, int):
                part = part.narrow(dim, 0, index)
            elif index is not None:
                part = part.index_select(dim, index)
            if slicing.reads and slicing.width in masks:
                mask = masks[slicing.width][self._units_on(slicing, whole.device)]
                if isinstance(index, int):
                    mask = mask[:index]
                elif index is not None:
                    mask = mask[index]
                part = weighted(part, mask, dim)
            if part is not whole:
                found[slicing.tensor] = part
        return found

    def _index(self, slicing: Slicing, option: int, device: torch.device) -> Tensor | int | None:
        """The indices that stay; a number: the first ones; None: all."""
        count = slicing.counts[option]
        if count == len(slicing.units):
            return None
        if device.type == "meta":  # only the number matters
            return count
        first = self.width(slicing.width).first
        key = (slicing.tensor, slicing.dim, option)
        stamp = (id(first), first._version, device)
        if vars(self).get("_kept", {}).get("stamp") != stamp:
            vars(self)["_kept"] = {"stamp": stamp}
        kept: dict[Any, Any] = vars(self)["_kept"]
        if key not in kept:
            order = np.append(first.cpu().numpy(), -1)
            index = np.flatnonzero(order[slicing.units] <= option)
            prefix = index[-1] == len(index) - 1
            kept[key] = len(index) if prefix else torch.from_numpy(index).to(device)
        found: Tensor | int = kept[key]
        return found

    def _units_on(self, slicing: Slicing, device: torch.device) -> Tensor:
        kept: dict[Any, Any] = vars(self).setdefault("_placed", {})
        key = (slicing.tensor, slicing.dim, device)
        if key not in kept:
            kept[key] = torch.from_numpy(slicing.units).to(device)
        found: Tensor = kept[key]
        return found

    def _write_back(self, taken: Mapping[str, int], parts: Mapping[str, Tensor]) -> None:
        """Statistics that the forward pass has updated in a copy."""
        if not self.training:
            return
        for slicing in self.slicings:
            whole, part = self._buffers.get(slicing.tensor), parts.get(slicing.tensor)
            if whole is None or part is None:
                continue
            index = self._index(slicing, taken[slicing.width], whole.device)
            if isinstance(index, Tensor):
                whole.index_copy_(slicing.dim, index, part)
            elif index is not None and part.data_ptr() != whole.data_ptr():
                whole.narrow(slicing.dim, 0, index).copy_(part)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: copies and pickles name the one that it extends.
        state = {key: value for key, value in vars(self).items() if key not in _CACHES}
        return _empty, (self.plain,), state


def _largest(theta: Sequence[float]) -> int:
    """The last option whose theta is above 0."""
    return max(k for k, value in enumerate(theta) if value)


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
        largest = _largest(self.kept_heads.theta.tolist())
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
        return _empty, (self.plain, SearchedHeads), vars(self)


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
    module.__class__ = _class(type(module), SearchedHeads)
    vars(module).update(numbers=tuple(numbers))


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def _class(plain: type[nn.Module], mixin: type[nn.Module] = SearchedLayer) -> type[nn.Module]:
    if (plain, mixin) not in _CLASSES:
        body = {"plain": plain, "__doc__": plain.__doc__, "__module__": plain.__module__}
        _CLASSES[plain, mixin] = type(f"Searched{plain.__name__}", (mixin, plain), body)
    return _CLASSES[plain, mixin]


def _empty(plain: type[nn.Module], mixin: type[nn.Module] = SearchedLayer) -> nn.Module:
    return object.__new__(_class(plain, mixin))


def searched(
    layer: nn.Module,
    slicings: Sequence[Slicing],
    widths: Mapping[str, Width],
    given: Slicing | None,
) -> None:
    """Make a layer search its channels, in place: it gets a class that extends its own.

    Args:
        widths: the decisions, by the names under which the layer holds them.
        given: how its input is cut.
    """
    for name, width in widths.items():
        layer.add_module(name, width)
    layer.__class__ = _class(type(layer))
    vars(layer).update(slicings=tuple(slicings), widths=tuple(widths), given=given)
    if given is not None:
        vars(layer)["channel_dim"] = -1 if isinstance(layer, nn.Linear) else given.dim


def _depthwise(layer: nn.Module) -> bool:
    """Whether each channel of the input is a group of its own."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def _sizes(layer: nn.Module, tensors: Mapping[str, Tensor | None]) -> dict[str, int]:
    """The attributes of a layer that say how large it is, with tensors of these shapes."""
    weight = tensors.get("weight")
    if weight is None:
        weight = next((x for x in tensors.values() if x is not None and x.ndim), None)
    for kind, sizes in _SIZES.items():
        if weight is not None and isinstance(layer, kind):
            found: dict[str, int] = sizes(layer, weight)
            return found
    return {}


def _conv_sizes(layer: Any, weight: Tensor) -> dict[str, int]:
    groups = layer.groups
    if _depthwise(layer):
        groups = weight.shape[0] * groups // layer.weight.shape[0]
    reads, makes = weight.shape[1] * groups, weight.shape[0]
    if layer.transposed:
        reads, makes = weight.shape[0], weight.shape[1] * groups
    return {"in_channels": reads, "out_channels": makes, "groups": groups}


def _group_sizes(layer: Any, weight: Tensor) -> dict[str, int]:
    groups = layer.num_groups * weight.shape[0] // layer.weight.shape[0]
    return {"num_channels": weight.shape[0], "num_groups": groups}


# Class -> (layer, its weight as it will be) -> attributes.
_SIZES: dict[type[nn.Module], Any] = {
    _ConvNd: _conv_sizes,
    nn.Linear: lambda _, w: {"in_features": w.shape[1], "out_features": w.shape[0]},
    _NormBase: lambda _, w: {"num_features": w.shape[0]},
    nn.GroupNorm: _group_sizes,
    nn.PReLU: lambda _, w: {"num_parameters": w.shape[0]},
    nn.Embedding: lambda _, w: {"embedding_dim": w.shape[1]},
}
