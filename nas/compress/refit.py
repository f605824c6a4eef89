"""Weights that make up for the channels that a trained network loses, by least squares.

A layer computes ``y = W p + b`` of each patch p of its input. Where only some channels are left of
p, the weights that change its outputs least over the data have a closed form:

    W' = argmin E |W p - W' p'|^2 = (W G)[:, kept] G[kept, kept]^-1,  G = E[p p^T],

with the covariance in the place of G, and ``b' = b + E[W p - W' p']``, where there is a bias (He et
al. 2017, Section 3.1, with what the given network reads). W' depends on the channels
that the layer reads and on nothing else, so that one pass serves all networks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.compress.layer import SearchedHeads, SearchedLayer, Slicing
from nas.compress.least_squares import part
from nas.compress.modules import KEPT, computed
from nas.compress.moments import Layer, Moments, flat_weight, in_parts, moments
from nas.copying import copied
from nas.decision import Searchable, decisions
from nas.inputs import Inputs
from nas.supernet.choice import ChoiceBlock

LARGEST = 2304  # values of a patch; layers that read more keep their weights
RIDGE = 0.01  # of the mean of G's diagonal: few samples do not show all directions

Tensors = Mapping[str, Tensor]


class Refit:
    """The weights of the layers of a supernet, under each option of the channels that they read.

    Copies of the supernet share it. All are solved for when the first is asked for.

    Args:
        supernet: as of `nas.compress.convert.searchable`, with the weights of a trained network,
            which stays as it is.
        batches: training inputs ``(N, ...)``, run through once.
    """

    def __init__(self, supernet: nn.Module, batches: Iterable[Inputs]) -> None:
        self.supernet, self.batches = supernet, batches
        self._solved: dict[str, list[tuple[Tensor, Tensors]]] | None = None
        self._own: dict[str, dict[str, Tensor]] = {}
        for path, layer in _fittable(supernet):
            self._own[path] = {n: x.detach().clone() for n, x in layer.named_parameters("", False)}
            layer.refit = _Of(self, path)

    def of(self, path: str, layer: SearchedLayer, option: int) -> Tensors:
        """Whole tensors of a layer whose inputs are those of an option; {}: its own.

        Its own are right again once it has been trained, or its channels put in another order.
        """
        reads = layer.reading("weight")
        if option == len(reads.counts) - 1 or not self._is_as_given(path, layer):
            return {}
        if self._solved is None:
            with torch.random.fork_rng(devices=[]):
                self._solved = dict(self._solve())
        kept, found = self._solved.get(path, {option: (torch.tensor([]), {})})[option]
        return found if torch.equal(kept, layer.left(reads, option)) else {}

    def _is_as_given(self, path: str, layer: SearchedLayer) -> bool:
        own = dict(layer.named_parameters("", False))
        return not any(
            x.is_meta or not torch.equal(x.detach().cpu(), self._own[path][name])
            for name, x in own.items()
        )

    def _solve(self) -> Iterator[tuple[str, list[tuple[Tensor, Tensors]]]]:
        supernet = copied(self.supernet)
        for _, decision in decisions(supernet):
            decision.choose(decision.options[-1])
        for block in supernet.modules():
            if isinstance(block, ChoiceBlock) and KEPT in block.options:
                block.register_forward_pre_hook(_run_candidates)
        layers = {layer: path for path, layer in _fittable(supernet)}
        batches = list(self.batches)
        for some in in_parts(list(layers)):  # type: ignore[arg-type]
            known = moments(supernet, some, batches, all_run=False)
            for layer in known:
                assert isinstance(layer, SearchedLayer)
                reads = layer.reading("weight")
                each = [layer.left(reads, option) for option in range(len(reads.counts) - 1)]
                found = [(kept, _fitted(layer, known[layer], kept)) for kept in each]
                yield layers[layer], found


class _Of:
    """What of a `Refit` is for one layer, and for its copies."""

    def __init__(self, refit: Refit, path: str) -> None:
        self.refit, self.path = refit, path

    def __call__(self, layer: SearchedLayer, option: int) -> Tensors:
        return self.refit.of(self.path, layer, option)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Of":
        return self


def _run_candidates(block: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Let the other operations in the place of a layer read what it reads."""
    assert isinstance(block, ChoiceBlock)
    for name, candidate in block.candidates.items():
        if name != KEPT:
            candidate(*inputs)


def _fittable(supernet: nn.Module) -> Iterator[tuple[str, SearchedLayer]]:
    """Layers that read searched channels, and whose weights nothing else changes."""
    plain = (SearchedLayer, SearchedHeads, ChoiceBlock)
    changed = {
        inner
        for module in supernet.modules()
        if isinstance(module, Searchable) and not isinstance(module, plain)
        for inner in module.modules()
    }
    for path, layer in supernet.named_modules():
        if isinstance(layer, SearchedLayer) and layer not in changed and _is_known(layer):
            yield path, layer


def _is_known(layer: Any) -> bool:
    """Whether a layer reads searched channels in the way that least squares is for."""
    if not isinstance(layer, Layer) or computed(layer) or getattr(layer, "groups", 1) > 1:
        return False
    slicings: Sequence[Slicing] = vars(layer)["slicings"]
    reads = [one.dim for one in slicings if one.tensor == "weight" and one.reads]
    return reads == [1] and layer.weight[0].numel() <= LARGEST


def _fitted(layer: Any, known: Moments, kept: Tensor) -> Tensors:
    """Weight and bias of a layer that reads the channels `kept`; others are as they were."""
    W, biased = flat_weight(layer)[0], layer.bias is not None
    taps = W.shape[1] // layer.weight.shape[1]
    columns = (kept[:, None] * taps + torch.arange(taps)).flatten()
    G = known.of_change(biased)[0].clone()
    G.diagonal().add_(RIDGE * G.diagonal().mean())
    made = W.clone()
    made[:, columns] = part(W, G, columns)
    found = {"weight": made.reshape(layer.weight.shape).to(layer.weight)}
    if layer.bias is not None:
        left = torch.zeros_like(W)
        left[:, columns] = made[:, columns]
        shift = (W - left) @ known.mean[0]
        found["bias"] = layer.bias.detach() + shift.to(layer.bias)
    return found
