"""Operations that take the place of a trained layer, and begin by computing nearly the same.

The number in a candidate's name says how many times fewer weights than the layer it has:

    low_rank_n   a layer of fewer outputs, then a pointwise one;  W' = U V
    grouped_n    the layer in n groups of channels;               W' is block diagonal
    separable_n  a vertical, then a horizontal convolution

But dw_pw_m is a depthwise convolution with m filters a channel, then a pointwise one; dw_pw: m = 1.
Each is fitted by least squares to the outputs of the layer on calibration data.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from nas.compress import least_squares
from nas.compress.modules import like
from nas.compress.moments import Layer, Moments, flat_weight
from nas.errors import UserError

CONV = {1: nn.Conv1d, 2: nn.Conv2d}
Built = tuple[OrderedDict[str, nn.Module], Tensor]  # the modules in a row, and W' (O, F)


@dataclass(frozen=True)
class Fit:
    """A candidate fitted to a layer.

    Attributes:
        module: the candidate, with weights of its own.
        error: mean squared change of the outputs, as a share of their variance.
    """

    module: nn.Module
    error: float


@dataclass(frozen=True)
class _Candidate:
    """How candidates of one name are made.

    Attributes:
        size: number in the name -> the number that it is built of (a rank); below 1: it does not
            fit.
        build: from the layer, W ``(O, C, *K)``, G and that number.
        convolutions: dimensions of the kernels that it is for; 0: linear layers too.
    """

    size: Callable[[Layer, int], int]
    build: Callable[[Layer, Tensor, Tensor, int], Built]
    convolutions: tuple[int, ...] = (0, 1, 2)


def unsuitable(name: str, layer: Layer) -> str | None:
    """Why a candidate cannot take the place of a layer; None: it can.

    Raises:
        UserError: there is no candidate of that name.
    """
    kind, number = parsed(name)
    ndim = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    if ndim not in kind.convolutions:
        return f"{name} is for convolutions of {kind.convolutions} dimensions"
    return None if kind.size(layer, number) >= 1 else f"{name} would have no fewer weights"


def fitted(name: str, layer: Layer, known: Moments) -> Fit:
    """The candidate of that name, fitted to `layer`.

    Its bias, where the layer has one, takes the mean of what changes along.

    Args:
        known: second moments of what the layer reads.
    """
    kind, number = parsed(name)
    W = flat_weight(layer)[0]
    biased = layer.bias is not None
    G = known.of_change(biased)[0]
    shaped = W.reshape(layer.weight.shape)
    modules, made = kind.build(layer, shaped, G, kind.size(layer, number))
    last = list(modules.values())[-1]
    if layer.bias is not None:
        shift = (W - made) @ known.mean[0]
        last.bias = like(layer.bias, layer.bias.detach() + shift.to(layer.bias))
    error = least_squares.change(W, made, G)
    variance = least_squares.change(W, torch.zeros_like(W), known.of_change(True)[0])
    module = last if len(modules) == 1 else nn.Sequential(modules)
    return Fit(module.train(layer.training), float(error.clamp_min(0) / variance))


def parsed(name: str) -> tuple["_Candidate", int]:
    """Kind and number of a candidate's name.

    Raises:
        UserError: there is no such candidate.
    """
    word, _, number = name.rpartition("_")
    if word in CANDIDATES and number.isdigit() and int(number) >= 1:
        return CANDIDATES[word], int(number)
    if name == "dw_pw":
        return CANDIDATES[name], 1
    raise UserError(
        f"space.rules.operations.candidates: there is no {name!r}, only "
        f"{', '.join(f'{kind}_N' for kind in CANDIDATES)}, N a whole number, e.g. low_rank_2"
    )


def _fewer(layer: Layer, times: int, of_rank: int) -> int:
    """The largest rank, each of so many weights, with so many times fewer weights."""
    return layer.weight.numel() // (times * of_rank)


def _low_rank(layer: Layer, W: Tensor, G: Tensor, rank: int) -> Built:
    U, V = least_squares.low_rank(W.flatten(1), G, rank)
    first = _layer(layer, V.reshape(rank, *W.shape[1:]), biased=False)
    return OrderedDict(first=first, pointwise=_pointwise(layer, U)), U @ V


def _groups(layer: Layer, groups: int) -> int:
    both = layer.weight.shape[0] % groups == layer.weight.shape[1] % groups == 0
    return groups if both and groups > 1 else 0


def _grouped(layer: Layer, W: Tensor, G: Tensor, groups: int) -> Built:
    flat = W.flatten(1)
    made, parts = torch.zeros_like(flat), []
    rows = torch.arange(len(flat)).chunk(groups)
    for own, columns in zip(rows, torch.arange(flat.shape[1]).chunk(groups), strict=True):
        parts.append(least_squares.part(flat[own], G, columns))
        made[own[0] : own[-1] + 1, columns] = parts[-1]
    weight = torch.cat(parts).reshape(len(W), -1, *W.shape[2:])
    return OrderedDict(grouped=_layer(layer, weight, groups=groups)), made


def _multiplier(layer: Layer, multiplier: int) -> int:
    outputs, inputs, *kernel = layer.weight.shape
    few = multiplier * inputs * (prod(kernel) + outputs) < layer.weight.numel()
    return multiplier if few and multiplier <= min(outputs, prod(kernel)) else 0


def _dw_pw(layer: Layer, W: Tensor, G: Tensor, multiplier: int) -> Built:
    D, P = least_squares.depthwise_pointwise(W, G, multiplier)
    inputs = W.shape[1]
    filters = D.reshape(-1, 1, *W.shape[2:])
    depthwise = _layer(layer, filters, groups=inputs, biased=False)
    per_channel = P.reshape(len(P), inputs, multiplier)
    made = torch.einsum("ocm,cmk->ock", per_channel, D.flatten(2)).flatten(1)
    return OrderedDict(depthwise=depthwise, pointwise=_pointwise(layer, P)), made


def _separable_rank(layer: Layer, times: int) -> int:
    outputs, inputs, high, wide = layer.weight.shape
    rank = _fewer(layer, times, inputs * high + outputs * wide)
    return min(rank, inputs * high, outputs * wide) if min(high, wide) > 1 else 0


def _separable(layer: Layer, W: Tensor, G: Tensor, rank: int) -> Built:
    U, V = least_squares.separable(W, G, rank)
    vertical = _layer(layer, U[..., None], biased=False, side=0)
    horizontal = _layer(layer, V[:, :, None], side=1)
    made = torch.einsum("orj,rci->ocij", V, U).flatten(1)
    return OrderedDict(vertical=vertical, horizontal=horizontal), made


CANDIDATES: dict[str, _Candidate] = {
    "low_rank": _Candidate(lambda layer, n: _fewer(layer, n, sum(_matrix(layer))), _low_rank),
    "grouped": _Candidate(_groups, _grouped, (1, 2)),
    "separable": _Candidate(_separable_rank, _separable, (2,)),
    "dw_pw": _Candidate(_multiplier, _dw_pw, (1, 2)),
}


def _matrix(layer: Layer) -> tuple[int, int]:
    return len(layer.weight), prod(layer.weight.shape[1:])


def _layer(
    layer: Layer, weight: Tensor, groups: int = 1, biased: bool = True, side: int | None = None
) -> nn.Module:
    """A layer like `layer` with another weight; along one side only, where a side is given."""
    biased = biased and layer.bias is not None
    outputs, inputs, *kernel = weight.shape
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(inputs, outputs, biased, device="meta")
    else:

        def along(values: Any, rest: int) -> Any:
            if side is None or isinstance(values, str):
                return values
            return tuple(
                v if i == side else rest for i, v in enumerate(cast(Sequence[int], values))
            )

        made = cast(Any, CONV[len(kernel)])(
            inputs * groups,
            outputs,
            kernel,
            along(layer.stride, 1),
            along(layer.padding, 0),
            along(layer.dilation, 1),
            groups,
            biased,
            layer.padding_mode,
            device="meta",
        )
    made.weight = like(layer.weight, weight)
    return cast(nn.Module, made)


def _pointwise(layer: Layer, weight: Tensor) -> nn.Module:
    """A linear layer over the channels of every position, with the bias of `layer`."""
    outputs, inputs = weight.shape
    biased = layer.bias is not None
    if isinstance(layer, nn.Linear):
        made: Any = nn.Linear(inputs, outputs, biased, device="meta")
    else:
        made = CONV[len(layer.kernel_size)](inputs, outputs, 1, bias=biased, device="meta")
    made.weight = like(layer.weight, weight.reshape(made.weight.shape))
    return cast(nn.Module, made)
