"""Weights that make up for the channels and taps that a trained network loses, by least squares.

A layer computes ``y = W p + b`` of each patch p of its input. Where only some values are left of
p, those of some channels and of some taps, the weights that change its outputs least over the data
have a closed form:

    W' = argmin E |W p - W' p'|^2 = (W G)[:, kept] G[kept, kept]^-1,  G = E[p p^T],

with the covariance in the place of G, and ``b' = b + E[W p - W' p']``, where there is a bias (He et
al. 2017, Section 3.1, with what the given network reads). W' depends on the channels
that the layer reads, on its taps and on nothing else, so that one pass serves all networks.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.compress.heads import SearchedHeads
from nas.compress.layer import SearchedLayer, Slicing
from nas.compress.least_squares import part
from nas.compress.modules import KEPT, computed
from nas.compress.moments import Layer, Moments, flat_weight, in_parts, moments
from nas.compress.taps import ElasticTaps
from nas.copying import copied
from nas.decision import Decision, Searchable, decisions
from nas.inputs import Inputs
from nas.supernet.choice import ChoiceBlock

LARGEST = 2304  # values of a patch; layers that read more keep their weights
RIDGE = 0.01  # of the mean of G's diagonal: few samples do not show all directions

Tensors = Mapping[str, Tensor]
Left = tuple[int, tuple[int, ...]]  # number of the option of what is read, and the taps


class Refit:
    """The weights of the layers of a supernet, under each option of what they read.

    Copies of the supernet share it. All are solved for when the first is asked for.

    Args:
        supernet: as of `nas.compress.convert.searchable`, with the weights of a trained network,
            which stays as it is.
        batches: training inputs ``(N, ...)``, run through once.
    """

    def __init__(self, supernet: nn.Module, batches: Iterable[Inputs]) -> None:
        self.supernet, self.batches = supernet, batches
        self._solved: dict[str, dict[Left, tuple[Tensor, Tensors]]] | None = None
        self._own: dict[str, dict[str, Tensor]] = {}
        for path, module in _fittable(supernet):
            own = _layer(module).named_parameters("", False)
            self._own[path] = {name: x.detach().clone() for name, x in own}
            module.refit = _Of(self, path)

    def of(
        self, path: str, module: SearchedLayer | ElasticTaps, options: Mapping[Decision, Option]
    ) -> Tensors:
        """Tensors, with all channels, of the taps that a layer has under `options`; {}: its own.

        Its own are right again once it has been trained, or its channels put in another order.
        """
        layer, left = _layer(module), _left(module, options)
        if left is None or not self._is_as_given(path, layer):
            return {}
        if self._solved is None:
            with torch.random.fork_rng(devices=[]):
                self._solved = dict(self._solve())
        kept, found = self._solved.get(path, {}).get(left, (torch.tensor([]), {}))
        return found if torch.equal(kept, _channels(layer, left[0])) else {}

    def _is_as_given(self, path: str, layer: nn.Module) -> bool:
        own = dict(layer.named_parameters("", False))
        return not any(
            x.is_meta or not torch.equal(x.detach().cpu(), self._own[path][name])
            for name, x in own.items()
        )

    def _solve(self) -> Iterator[tuple[str, dict[Left, tuple[Tensor, Tensors]]]]:
        supernet = copied(self.supernet)
        for _, decision in decisions(supernet):
            decision.choose(decision.options[-1])
        for block in supernet.modules():
            if isinstance(block, ChoiceBlock) and KEPT in block.options:
                block.register_forward_pre_hook(_run_candidates)
        paths = {_layer(module): (path, module) for path, module in _fittable(supernet)}
        batches = list(self.batches)
        for some in in_parts(list(paths)):
            for layer, known in moments(supernet, some, batches, all_run=False).items():
                path, module = paths[layer]
                yield path, solutions(module, known)


class _Of:
    """What of a `Refit` is for one layer, and for its copies."""

    def __init__(self, refit: Refit, path: str) -> None:
        self.refit, self.path = refit, path

    def __call__(
        self, module: SearchedLayer | ElasticTaps, options: Mapping[Decision, Option]
    ) -> Tensors:
        return self.refit.of(self.path, module, options)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Of":
        return self


def fitted(layer: Layer, known: Moments, columns: Tensor) -> dict[str, Tensor]:
    """Weight and bias of a layer that reads these values of a patch; others are as they were.

    Of a convolution in groups, these values of each group's.
    """
    W, G = flat_weight(layer), known.of_change(layer.bias is not None)
    made, left = W.clone(), torch.zeros_like(W)
    for group, (own, second) in enumerate(zip(W, G, strict=True)):
        ridged = second + torch.eye(len(second)) * (RIDGE * second.diagonal().mean())
        left[group, :, columns] = made[group, :, columns] = part(own, ridged, columns)
    found = {"weight": made.reshape(layer.weight.shape).to(layer.weight)}
    if layer.bias is not None:
        shift = torch.einsum("gof,gf->go", W - left, known.mean).flatten()
        found["bias"] = layer.bias.detach() + shift.to(layer.bias)
    return found


def solutions(module: nn.Module, known: Moments) -> dict[Left, tuple[Tensor, Tensors]]:
    """For all that may be left of what a layer reads: its channels, and the tensors."""
    layer = _layer(module)
    count, reads = layer.weight[0, 0].numel(), _reads(layer)
    taps: dict[tuple[int, ...], tuple[slice, ...]] = {tuple(range(count)): ()}
    if isinstance(module, ElasticTaps):
        taps = {module.places(*each): module.taps(*each) for each in module.combinations_of_taps()}
    found: dict[Left, tuple[Tensor, Tensors]] = {}
    for option in range(1 if reads is None else len(reads.counts)):
        kept = _channels(layer, option)
        for places, index in taps.items():
            columns = (kept[:, None] * count + torch.tensor(places)).flatten()
            if len(columns) < layer.weight[0].numel():
                tensors = fitted(layer, known, columns)
                taken: Any = (..., *index)
                tensors["weight"] = tensors["weight"][taken].clone()
                found[option, places] = kept, tensors
    return found


def _left(module: SearchedLayer | ElasticTaps, options: Mapping[Decision, Option]) -> Left | None:
    """What is left of what a layer reads under `options`; None: all, or they do not say."""
    layer = _layer(module)
    reads, option, places = _reads(layer), 0, tuple(range(layer.weight[0, 0].numel()))
    whole = True
    if reads is not None:
        width = layer.width(reads.width)
        if width not in options:
            return None
        option = width.options.index(options[width])
        whole = option == len(reads.counts) - 1
    if isinstance(module, ElasticTaps):
        taken = module.places(*module.taken(options))
        whole, places = whole and taken == places, taken
    return None if whole else (option, places)


def _layer(module: nn.Module) -> Any:
    return module.conv if isinstance(module, ElasticTaps) else module


def _reads(layer: nn.Module) -> Slicing | None:
    """How the channels that a layer reads cut its weight; None: it reads all, in each group."""
    own: tuple[Slicing, ...] = vars(layer).get("slicings", ())
    return next((one for one in own if one.tensor == "weight" and one.dim and one.reads), None)


def _channels(layer: Any, option: int) -> Tensor:
    """The channels of each group that it reads."""
    reads = _reads(layer)
    whole = torch.arange(layer.weight.shape[1])
    found: Tensor = whole if reads is None else layer.left(reads, option)
    return found


def _run_candidates(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Let the other operations in the place of a layer read what it reads."""
    assert isinstance(block, ChoiceBlock)
    for name, candidate in block.candidates.items():
        if name != KEPT:
            candidate(*inputs)


def _fittable(supernet: nn.Module) -> Iterator[tuple[str, SearchedLayer | ElasticTaps]]:
    """Layers that read searched channels or taps, and whose weights nothing else changes."""
    plain = (SearchedLayer, SearchedHeads, ChoiceBlock)
    changed = {
        inner
        for module in supernet.modules()
        if isinstance(module, Searchable) and not isinstance(module, plain)
        for inner in module.modules()
        if not (inner is module and isinstance(module, ElasticTaps))
    }
    for path, module in supernet.named_modules():
        kept = module not in changed and _is_known(module)
        if kept and isinstance(module, SearchedLayer | ElasticTaps):
            yield path, module


def _is_known(module: nn.Module) -> bool:
    """Whether a layer reads what is searched in the way that least squares is for."""
    layer = _layer(module)
    if not isinstance(layer, Layer) or computed(layer) or layer.weight[0].numel() > LARGEST:
        return False
    reads, groups = _reads(layer), getattr(layer, "groups", 1)
    if isinstance(module, ElasticTaps):
        return not module.fitted and (groups == 1 or reads is None)
    return groups == 1 and reads is not None
