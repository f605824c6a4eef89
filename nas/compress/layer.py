"""A layer of the user's own class whose channels are searched."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nas.arch import Option
from nas.compress.atoms import Places
from nas.compress.modules import sharing
from nas.decision import Decision, Searchable
from nas.ops.convolution import Conv2d
from nas.supernet.elastic import Elastic, weighted
from nas.supernet.relax import known

# Layers that mix their inputs by products with dimension 1 of `weight`.
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2d)
_CACHE = "_kept"  # an attribute of a layer that is made anew where it is missing


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

    def read(self) -> "Reading":
        """What layers read of it."""
        return known((self, torch.is_grad_enabled()), self._read)

    def _read(self) -> "Reading":
        theta, order = self.theta, self.order()
        values = theta.tolist()
        last = max(k for k, value in enumerate(values) if value)
        if not theta.requires_grad and all(value in (0.0, 1.0) for value in values):
            return Reading(last, order)
        steps = torch.arange(len(values), device=theta.device)[:, None]
        return Reading(last, order, theta @ (steps >= self.first).to(theta))

    def order(self) -> Hashable:
        """Another value once the channels come in another order."""
        return id(self.first), self.first._version, self.first.device


class Reading(NamedTuple):
    """What layers read of a width.

    Attributes:
        option: the last one whose theta is above 0.
        order: of the channels, see `Width.order`.
        present: the probability that each unit is there ``(units,)``; None: it is 0 or 1, and
            alphas want no gradient.
    """

    option: int
    order: Hashable
    present: Tensor | None = None


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
        first = self.width(slicing.width).first
        index = _part(slicing, option, first, torch.device("cpu")).places
        if isinstance(index, Tensor):
            return index
        return torch.arange(len(slicing.units) if index is None else index)

    def width(self, name: str) -> Width:
        """The decision that it holds under this name."""
        return cast(Width, self._modules[name])

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """A layer of the class that it was, with copies of the parts that it uses."""
        widths = [self.width(name) for name in self.widths]
        taken = [Reading(w.options.index(options[w]), w.order()) for w in widths]
        made = sharing(self, self.plain)
        for key in ("slicings", "widths", "given", "channel_dim", "refit", _CACHE):
            vars(made).pop(key, None)
        for name in self.widths:
            del made._modules[name]
        refit = vars(self).get("refit")
        parts = self._cut(self._parts(taken), taken, refit(self, options) if refit else {})
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
                    taken = width.read().option
                else:
                    taken = width.options.index(options[width])
                index = _part(slicing, taken, width.first, device).places
                return torch.arange(index, device=device) if isinstance(index, int) else index
        return None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a layer of its class gives that has a part of its tensors."""
        read = [self.width(name).read() for name in self.widths]
        if not (parts := self._parts(read)):
            return super().forward(*args, **kwargs)
        if args and (masked := self._masked(args[0], parts, read)) is not None:
            args, read = (masked, *args[1:]), [Reading(one.option, one.order) for one in read]
        hidden: dict[str, Any] = self._cut(parts, read)
        if any(part.places is not None for part in parts):
            hidden |= _sizes(self, {**self._tensors(), **hidden})
        buffers = {name: self._buffers[name] for name in hidden if name in self._buffers}
        attributes = {name: x for name, x in hidden.items() if name not in buffers}
        before = {name: vars(self)[name] for name in attributes if name in vars(self)}
        # Attributes of the instance hide its parameters of the same name while it runs. They would
        # hide buffers, too, from code that reads what it has just put in the place of one.
        vars(self).update(attributes)
        self._buffers.update((name, hidden[name]) for name in buffers)
        try:
            return super().forward(*args, **kwargs)
        finally:
            for name in attributes:
                del vars(self)[name]
            vars(self).update(before)
            # Code that assigns statistics, instead of writing on them, has put parts there.
            now = {name: self._buffers[name] for name in buffers}
            hidden |= {name: x for name, x in now.items() if x is not None}
            self._buffers.update(buffers)
            self._write_back(parts, hidden)

    def _masked(self, x: Any, parts: Sequence["Part"], read: Sequence[Reading]) -> Tensor | None:
        """The input times the mask of the weight that reads it; None: the weight is smaller."""
        whole = self._parameters.get("weight")
        if self.plain not in _PRODUCTS or getattr(self, "groups", 1) > 1 or whole is None:
            return None
        fits = isinstance(x, Tensor) and x.dtype == whole.dtype and x.numel() < whole.numel()
        for part in parts if fits else ():
            one = read[self.widths.index(part.slicing.width)]
            if part.slicing.reads and part.slicing.dim == 1 and one.present is not None:
                return weighted(x, part.mask(one.present), x.ndim + 1 - whole.ndim)
        return None

    def _tensors(self) -> dict[str, Tensor | None]:
        return {**self._parameters, **self._buffers}

    def _parts(self, read: Sequence[Reading]) -> list["Part"]:
        """What is left of its tensors, where that is less than all.

        Args:
            read: of each of its widths.
        """
        device = getattr(self, self.slicings[0].tensor).device
        stamp = device, [one.order for one in read]
        key = tuple([(one.option, one.present is None) for one in read])
        kept: tuple[Any, dict[Any, list[Part]]] = vars(self).get(_CACHE, (None, {}))
        if kept[0] != stamp:
            kept = vars(self)[_CACHE] = stamp, {}
        if key not in kept[1]:
            kept[1][key] = []
            for slicing in self.slicings:
                option, _, present = read[self.widths.index(slicing.width)]
                part = _part(slicing, option, self.width(slicing.width).first, device)
                if part.places is not None or (slicing.reads and present is not None):
                    kept[1][key].append(part)
        return kept[1][key]

    def _cut(
        self,
        parts: Sequence["Part"],
        read: Sequence[Reading],
        others: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the tensors that are cut, by name.

        Args:
            others: tensors in the place of its own.
        """
        found = dict(others or {})
        for part in parts:
            name, dim = part.slicing.tensor, part.slicing.dim
            value = found[name] if name in found else getattr(self, name)
            if isinstance(part.places, int):
                value = value.narrow(dim, 0, part.places)
            elif part.places is not None:
                value = value.index_select(dim, part.places)
            present = read[self.widths.index(part.slicing.width)].present
            if part.slicing.reads and present is not None:
                value = weighted(value, part.mask(present), dim)
            found[name] = value
        return found

    def _write_back(self, parts: Sequence["Part"], cut: Mapping[str, Tensor]) -> None:
        """Statistics that the forward pass has updated in a copy."""
        for part in parts if self.training else ():
            name, dim = part.slicing.tensor, part.slicing.dim
            whole = self._buffers.get(name)
            if whole is None:
                continue
            if isinstance(part.places, Tensor):
                whole.index_copy_(dim, part.places, cut[name])
            elif part.places is not None and cut[name].data_ptr() != whole.data_ptr():
                whole.narrow(dim, 0, part.places).copy_(cut[name])

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time: copies and pickles name the one that it extends.
        state = {key: value for key, value in vars(self).items() if key != _CACHE}
        return empty, (self.plain,), state


class Part(NamedTuple):
    """What an option leaves of one dimension of a tensor.

    Attributes:
        places: that stay; a number: the first ones; None: all.
        units: of the width, for each of these; None: its first ones, in turn.
        left: how many stay.
    """

    slicing: Slicing
    places: Tensor | int | None
    units: Tensor | None
    left: int

    def mask(self, present: Tensor) -> Tensor:
        """The probability that each of what stays is there, by that of each unit."""
        if self.units is None:
            return present[: self.left]
        return torch.cat([present, present.new_ones(1)])[self.units]


def _part(slicing: Slicing, option: int, first: Tensor, device: torch.device) -> Part:
    units, count = slicing.units, slicing.counts[option]
    index: Tensor | int | None = None
    if count < len(units) and device.type == "meta":  # only the number matters
        index, units = count, units[:count]
    elif count < len(units):
        kept = np.flatnonzero(np.append(first.cpu().numpy(), -1)[units] <= option)
        index = count if kept[-1] == count - 1 else torch.from_numpy(kept).to(device)
        units = units[kept]
    in_turn = np.array_equal(units, np.arange(count))
    placed = None if in_turn else torch.from_numpy(units).to(first.device)
    return Part(slicing, index, placed, count)


_CLASSES: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def class_of(plain: type[nn.Module], mixin: type[nn.Module] = SearchedLayer) -> type[nn.Module]:
    """The class `plain` with `mixin` before it, made once."""
    if (plain, mixin) not in _CLASSES:
        body = {"plain": plain, "__doc__": plain.__doc__, "__module__": plain.__module__}
        _CLASSES[plain, mixin] = type(f"Searched{plain.__name__}", (mixin, plain), body)
    return _CLASSES[plain, mixin]


def empty(plain: type[nn.Module], mixin: type[nn.Module] = SearchedLayer) -> nn.Module:
    """A module of that class that holds nothing yet, as copies and pickles begin."""
    return object.__new__(class_of(plain, mixin))


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
    layer.__class__ = class_of(type(layer))
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
