"""Receptive field, dilation and kernel size of the convolutions of a trained network.

A convolution of K taps along a side keeps those of a window of e taps, and of them every d-th
(Risso et al. 2022, PIT). With a the tap that stands at the output's own position (the newest one of
a causal convolution, else the middle one), tap i is there where

    lo(e) <= i <= hi(e)  and  (i - a) mod d = 0,

    causal:   lo(e) = K - e,             hi(e) = K - 1,        a = K - 1
    centred:  lo(e) = a - (e - 1) // 2,  hi(e) = a + e // 2,   a = (K - 1) // 2

Window and dilation keep the same tap a, so that at least one is left whatever both are. Masks that
are anchored at opposite ends can have no tap in common. Under soft thetas the weight of tap i is
multiplied by the probability that it is there, ``sum_e sum_d theta_e theta_d [i kept]``: 1 for all
taps at the largest e and d = 1, the given layer.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nas.arch import Option
from nas.compress.modules import TABLES, computed, like, sharing
from nas.decision import Decision, Searchable
from nas.errors import UserError
from nas.ops.convolution import Conv2d
from nas.supernet.elastic import Elastic, Number, decided, options_of, taken, theta_of

Convolution = nn.Conv1d | nn.Conv2d
PAD = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d}


class Dilation(Elastic):
    """A dilation that is searched: the options fall, the last is 1."""

    falling = True


def windows(kernel: int, causal: bool) -> tuple[int, ...]:
    """Sizes of the receptive field in the order of `Elastic`: 1 + powers of two, then all taps.

    Around the middle, only those that leave it in the middle.

    Example:
        >>> windows(9, causal=True), windows(7, causal=False)
        ((1, 2, 3, 5, 9), (1, 3, 5, 7))
    """
    sizes = {1, *(1 + 2**i for i in range(kernel.bit_length()))}
    return tuple(
        sorted({e for e in sizes if e < kernel and (causal or e % 2 == kernel % 2)} | {kernel})
    )


def dilations(kernel: int, causal: bool) -> tuple[int, ...]:
    """Powers of two, falling, at which more than one tap is left.

    Example:
        >>> dilations(9, causal=True), dilations(9, causal=False)
        ((8, 4, 2, 1), (4, 2, 1))
    """
    reach = kernel - 1 if causal else (kernel - 1) // 2
    return tuple(2**i for i in reversed(range(max(1, reach.bit_length()))))


def kept(kernel: int, window: int, dilation: int, causal: bool) -> list[int]:
    """The taps that are there, ascending; never none.

    Example:
        >>> kept(9, 9, 4, causal=True), kept(9, 5, 2, causal=False)
        ([0, 4, 8], [2, 4, 6])
    """
    anchor = kernel - 1 if causal else (kernel - 1) // 2
    low = kernel - window if causal else anchor - (window - 1) // 2
    return [i for i in range(low, low + window) if (i - anchor) % dilation == 0]


class ElasticTaps(Searchable):
    """A convolution of which only some taps are there, see above; the taps of each side alike.

    With one option open of each number, the convolution of these taps runs, of the same class.
    Where its padding is not the same on both sides, that is a padding and a convolution.

    Args:
        conv: the layer; it becomes part of this module.
        kernel: how many taps of `conv` the window spans; a side of fewer taps keeps all of them.
        dilation: the distance of the taps that are kept, in taps of `conv`.
        causal: whether the newest tap is always kept, or the one in the middle.
        pads: of a padding that stood before `conv` and is part of this module now, as `F.pad`.

    Shape: as of `conv`.

    Raises:
        UserError: `conv` cannot lose taps, see `fixed`; the largest of its networks is not `conv`.
    """

    # Options -> tensors of the taps that it becomes plain with, see `nas.compress.refit`.
    refit: "Callable[[ElasticTaps, Mapping[Decision, Option]], Mapping[str, Tensor]] | None" = None

    def __init__(
        self,
        conv: Convolution,
        kernel: Number,
        dilation: Number = 1,
        causal: bool = False,
        pads: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if reason := fixed(conv):
            raise UserError(f"the taps of {conv} cannot be searched: {reason}")
        largest = max(conv.kernel_size)
        if options_of(kernel)[-1] != largest or options_of(dilation)[-1] != 1:
            raise UserError(
                f"the last kernel for {conv} must be {largest} and the last dilation 1, got "
                f"{list(options_of(kernel))} and {list(options_of(dilation))}"
            )
        self.conv, self.kernel, self.dilation, self.causal = conv, kernel, dilation, causal
        self.pads = tuple(pads) or (0,) * (2 * len(conv.kernel_size))
        # Layers with weights of their own for some kernels and dilations, by `key`.
        self.fitted = nn.ModuleDict()

    def decisions(self) -> tuple[Decision, ...]:
        return decided(self.kernel, self.dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if all(int(number.open.sum()) == 1 for number in self.decisions()):
            y = self._plain(_only(self.kernel), _only(self.dilation))(x)
        else:
            x = F.pad(x, self.pads) if any(self.pads) else x
            y = functional_call(self.conv, self._mixed(), x)
        return y

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """The convolution of these taps, with copies of the weights it uses."""
        own = self.refit(self, options) if self.refit is not None else {}
        made = self._plain(*self.taken(options), own)
        for module in made.modules():
            tensors: dict[str, Any] = dict(module._parameters)
            for name, value in tensors.items():
                if value is not None and not isinstance(value, nn.Parameter):
                    module._parameters[name] = like(getattr(self.conv, name), value)
        return made.train(self.training)

    def taken(self, options: Mapping[Decision, Option]) -> tuple[int, int]:
        """Kernel and dilation under `options`."""
        return taken(self.kernel, options), taken(self.dilation, options)

    def taps(self, kernel: int, dilation: int) -> tuple[slice, ...]:
        """The taps that are there, of each side."""
        found = []
        for size in self.conv.kernel_size:
            there = kept(size, min(kernel, size), dilation, self.causal)
            found.append(slice(there[0], there[-1] + 1, dilation))
        return tuple(found)

    def places(self, kernel: int, dilation: int) -> tuple[int, ...]:
        """The flat numbers of the taps that are there, of those of all sides."""
        every = torch.arange(self.conv.weight[0, 0].numel()).reshape(self.conv.kernel_size)
        return tuple(every[self.taps(kernel, dilation)].flatten().tolist())

    def combinations_of_taps(self) -> Iterator[tuple[int, int]]:
        """Every kernel with every dilation; all taps come last."""
        return product(options_of(self.kernel), options_of(self.dilation))

    def fit(self, kernel: int, dilation: int, weight: Tensor, bias: Tensor | None) -> None:
        """Give these taps weights of their own; all of them keep those of the layer."""
        own = {"weight": weight, "bias": bias}
        made, _ = self._cut(kernel, dilation)
        # It reads what the layer reads, which alone runs under soft thetas: in tables of hooks that
        # are one, hooks on either are told.
        vars(made).update({name: vars(self.conv)[name] for name in TABLES})
        vars(made)["_parameters"] = {
            name: value if value is None else like(getattr(self.conv, name), value)
            for name, value in own.items()
        }
        self.fitted[key(kernel, dilation)] = made

    def _plain(
        self, kernel: int, dilation: int, own: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """The layer of these taps, which shares all its weights but `own` with this one."""
        ndim = len(self.conv.kernel_size)
        whole = kernel >= max(self.conv.kernel_size) and dilation == 1
        if whole and not any(self.pads):
            return _with(self.conv, own) if own else self.conv
        conv, pads = self._cut(kernel, dilation)
        if key(kernel, dilation) in self.fitted:
            conv = cast(Convolution, self.fitted[key(kernel, dilation)])
        elif own:
            conv = _with(conv, own)
        if not any(pads):
            return conv
        return nn.Sequential(OrderedDict(pad=PAD[ndim](tuple(pads), 0.0), conv=conv))  # type: ignore[arg-type]

    def _cut(self, kernel: int, dilation: int) -> tuple[Convolution, list[int]]:
        """A layer of its class that shares these taps of `conv`, and what is padded before it."""
        conv, ndim, taps = self.conv, len(self.conv.kernel_size), self.taps(kernel, dilation)
        sizes = [len(range(*tap.indices(tap.stop))) for tap in taps]
        pads: list[int] = []  # as of `F.pad`: before and behind, the last side first
        for i in reversed(range(ndim)):
            step, at = conv.dilation[i], 2 * (ndim - 1 - i)
            before, behind = conv._reversed_padding_repeated_twice[at : at + 2]
            first, last = self.pads[at : at + 2]
            pads += [
                before + first - step * taps[i].start,
                behind + last - step * (conv.kernel_size[i] - taps[i].stop),
            ]
        even = pads[::2] == pads[1::2] and min(pads) >= 0
        index: Any = (..., *taps)
        made = _with(conv, {"weight": conv.weight[index]})
        vars(made).update(
            kernel_size=tuple(sizes),
            padding=tuple(pads[::-2]) if even else (0,) * ndim,
            dilation=tuple(
                step * dilation if size > 1 else 1
                for step, size in zip(conv.dilation, sizes, strict=True)
            ),
            _reversed_padding_repeated_twice=pads if even else [0] * (2 * ndim),
        )
        return made, [] if even else pads

    def _mixed(self) -> dict[str, Tensor]:
        """Weight and bias of the mixture, of all taps."""
        weight, bias = self.conv.weight, self.conv.bias
        theta = torch.outer(
            theta_of(self.kernel, weight), theta_of(self.dilation, weight)
        ).flatten()
        if not self.fitted:
            mask = torch.einsum("k,k...->...", theta, self._masks().to(theta))
            return {"weight": weight * mask.to(weight)}
        total = {"weight": torch.zeros_like(weight)}
        if bias is not None:
            total["bias"] = torch.zeros_like(bias)
        for share, (kernel, dilation) in zip(theta, self.combinations_of_taps(), strict=True):
            taps: Any = (..., *self.taps(kernel, dilation))
            own: Mapping[str, Any] = {"weight": weight[taps], "bias": bias}
            if key(kernel, dilation) in self.fitted:
                own = self.fitted[key(kernel, dilation)]._parameters
            total["weight"][taps] += share * own["weight"]
            if bias is not None:
                total["bias"] += share * own["bias"]
        return total

    def _masks(self) -> Tensor:
        """1 where a tap is there: (kernels times dilations, *K)."""
        masks = []
        for kernel, dilation in self.combinations_of_taps():
            mask = torch.zeros(self.conv.kernel_size)
            mask[self.taps(kernel, dilation)] = 1
            masks.append(mask)
        return torch.stack(masks)


def _with(conv: Convolution, own: Mapping[str, Tensor]) -> Convolution:
    """A layer of the class of `conv` that has these tensors, and all else with it."""
    made = sharing(conv, type(conv))
    vars(made)["_parameters"].update(own)
    return made


def key(kernel: int, dilation: int) -> str:
    """The name of some taps in `ElasticTaps.fitted`."""
    return f"k{kernel}_d{dilation}"


def fixed(conv: nn.Module) -> str | None:
    """Why the taps of a layer cannot be searched; None: they can."""
    if type(conv).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, Conv2d.forward):
        return "only those of Conv1d and Conv2d can, and of no class with a forward of its own"
    assert isinstance(conv, nn.Conv1d | nn.Conv2d)
    if max(conv.kernel_size) == 1:
        return "it has one tap"
    if conv.padding_mode != "zeros":
        return f"fewer taps need another padding, and padding_mode={conv.padding_mode!r} has none"
    return computed(conv)


def _only(number: Number) -> int:
    """The value of a number of one open option."""
    return number if isinstance(number, int) else int(str(number.best()))
