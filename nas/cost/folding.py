"""Which BatchNorms a deployed network folds into the layer in front, in which architectures.

A norm folds into the convolution or linear layer whose output it alone reads, in every call of
both; a second norm behind it does so too. Where a decision stands between the two, that depends on
what is chosen.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product

from nas.cost.layer import LayerSpec
from nas.cost.operators import Operator
from nas.cost.polynomial import AnyOf, Condition, consistent
from nas.cost.trace import Layer, StoredTensor, Trace

_ALWAYS: AnyOf = frozenset({frozenset()})

Key = int | str  # identity of the weight of a layer; of a norm, its path


def folds(traced: Trace) -> Iterator[Layer]:
    """Tensors that are `folded` away, or `gained`, and where.

    A fold that something may prevent is taken back where it does.
    """
    return _Folding(traced).layers()


class _Folding:
    """What the operators of a trace say of layers and of the norms behind them."""

    def __init__(self, traced: Trace) -> None:
        self.options = traced.options
        self.held: dict[str, list[StoredTensor]] = defaultdict(list)  # by the path of a norm
        self.layers_by_key: dict[Key, Operator] = {}
        # Who reads what a layer makes, and where: the path of a norm, or None for another reader.
        self.readers: dict[Key, set[tuple[Condition, str | None]]] = defaultdict(set)
        # What the input of a norm is made by, and where: a layer, a norm, or None for others.
        self.inputs: dict[str, set[tuple[Condition, Key | None]]] = defaultdict(set)
        self.bias: dict[str, LayerSpec] = {}
        # Where a norm folds, and where something prevents that, as far as is known by now.
        self.folded: dict[Key, tuple[AnyOf, AnyOf]] = {}
        makers: dict[int, Key] = {}
        for operator in traced.operators:
            self._read(operator, makers)
            if operator.weight is not None:
                self.layers_by_key[operator.weight] = operator
                makers |= dict.fromkeys(operator.makes, operator.weight)
            elif operator.norm_bias is not None:
                makers |= dict.fromkeys(operator.makes, operator.module)
        for condition, buffer in traced.outputs:  # read by the caller of the network
            if buffer in makers:
                self.readers[makers[buffer]].add((condition, None))
        for tensor in traced.stored:
            for path in tensor.holders.keys() & self.inputs.keys():
                self.held[path].append(tensor)

    def _read(self, operator: Operator, makers: Mapping[int, Key]) -> None:
        norm = None
        if operator.norm_bias is not None:
            norm = operator.module
            self.bias[norm] = operator.norm_bias
            if not operator.reads:
                self.inputs[norm].add((operator.condition, None))
        for condition, buffer in operator.reads:
            where, key = condition | operator.condition, makers.get(buffer)
            if norm is not None:
                self.inputs[norm].add((where, key))
            if key is not None:
                self.readers[key].add((where, norm))

    def layers(self) -> Iterator[Layer]:
        """The entries of all norms."""
        stays: dict[str, AnyOf] = {}  # norms with tied tensors -> where they do not fold
        for norm, sources in self.inputs.items():
            # In the order of the operators, as a set has none.
            keys = {key for _, key in sources}
            known = [*self.layers_by_key, *self.folded]
            cases = {key: self._where(norm, key) for key in known if key in keys}
            for key, (where, prevented) in cases.items():
                before = self.folded.get(norm, (frozenset(), frozenset()))
                self.folded[norm] = _least(before[0] | where), _least(before[1] | prevented)
                if any(len(tensor.holders) > 1 for tensor in self.held[norm]):
                    unless = _least(_not(where, self.options) | prevented)
                    stays[norm] = _both(stays.get(norm, _ALWAYS), unless)
                for kind, opposite, spec in self._changes(norm, self.layers_by_key.get(key)):
                    for name, active_if in ((kind, where), (opposite, prevented)):
                        if active_if:
                            yield Layer(replace(spec, kind=name), active_if)
        yield from self._tied(stays)

    def _tied(self, stays: Mapping[str, AnyOf]) -> Iterator[Layer]:
        """A norm's tensor that other modules hold too goes where all of them fold that exist."""
        done: set[int] = set()
        for norm, tensor in ((path, tensor) for path in stays for tensor in self.held[path]):
            if len(tensor.holders) > 1 and id(tensor) not in done:
                done.add(id(tensor))
                spec = replace(tensor.spec, kind="folded", module=norm)
                yield Layer(spec, _least(tensor.active_if))
                kept = (
                    condition
                    for holder, active_if in tensor.holders.items()
                    for condition in _both(active_if, stays.get(holder, _ALWAYS))
                )
                if active_if := _least(kept):
                    yield Layer(replace(spec, kind="gained"), active_if)

    def _where(self, norm: str, key: Key) -> tuple[AnyOf, AnyOf]:
        """Where `key` feeds `norm`, and where it does but one has another partner too.

        A norm in front counts only where it folds itself.
        """
        fed = {condition for condition, source in self.inputs[norm] if source == key}
        prevented = {condition for condition, source in self.inputs[norm] if source != key}
        prevented |= {condition for condition, reader in self.readers[key] if reader != norm}
        if key in self.folded:
            where, unless = self.folded[key]
            fed, prevented = {*_both(frozenset(fed), where)}, prevented | unless
        folded = {c for c in _least(fed) if not any(other <= c for other in prevented)}
        return frozenset(folded), _least(a | b for a, b in product(folded, prevented))

    def _changes(self, norm: str, layer: Operator | None) -> Iterator[tuple[str, str, LayerSpec]]:
        for tensor in self.held[norm]:
            if len(tensor.holders) == 1:
                yield "folded", "gained", tensor.spec
        # Behind another norm there is a bias: that one's.
        if layer is not None and not layer.has_bias:
            yield "gained", "folded", replace(self.bias[norm], module=layer.module)


def _both(first: AnyOf, second: AnyOf) -> AnyOf:
    return _least(a | b for a, b in product(first, second))


def _not(active_if: AnyOf, options: Mapping[str, int]) -> AnyOf:
    """Where none of `active_if` holds: each condition has one choice that is not taken."""
    found = _ALWAYS
    for condition in active_if:
        others = (
            (name, k) for name, taken in condition for k in range(options[name]) if k != taken
        )
        found = _both(found, frozenset(frozenset({choice}) for choice in others))
    return found


def _least(conditions: Iterable[Condition]) -> AnyOf:
    """Without those that cannot hold, or that another one covers."""
    possible = {condition for condition in conditions if consistent(condition)}
    # Of thousands most are equally long, and nothing covers the shortest.
    shortest = min(map(len, possible), default=0)
    return frozenset(
        c for c in possible if len(c) == shortest or not any(other < c for other in possible)
    )
