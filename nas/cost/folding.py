"""Which BatchNorms a deployed network folds into the layer in front, in which architectures.

A norm folds into the convolution or linear layer whose output it alone reads, in every call of
both. Where a decision stands between the two, that depends on what is chosen.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nas.cost.base import AnyOf, Condition, LayerSpec, stored
from nas.cost.unrolled import ChoiceNode
from nas.supernet.candidates import by_place

# Stored tensor -> the modules that hold it, and the condition under which each of them exists.
Owners = Mapping[int, Mapping[nn.Module, AnyOf]]

_ALWAYS: AnyOf = frozenset({frozenset()})
_NORMS = {"native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"}


@dataclass(frozen=True, slots=True)
class _Source:
    """What made a tensor where `condition` holds; `key` is None unless it can take up a norm."""

    condition: Condition
    key: object = None
    path: str = ""
    has_bias: bool = False


class FoldRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches one dry run of `model` with all options unrolled; `layers` then says what folds.

    Args:
        nodes: the modules of `model` that run candidates.
        open_choices: the choices that the candidates that run now stand under, outermost first.
        path: paths of the modules that run now, outermost first.
    """

    def __init__(
        self,
        model: nn.Module,
        nodes: Sequence[ChoiceNode],
        open_choices: list[tuple[str, int] | None],
        path: list[str],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = dict(model.named_modules())
        self.model, self.open_choices, self.path = model, open_choices, path
        self.nodes = {node.path: node for node in nodes}
        self.made: dict[int, list[_Source]] = {}
        self.read: dict[int, list[tuple[Condition, str | None]]] = defaultdict(
            list
        )  # None: no norm
        self.norms: dict[str, list[tuple[Condition, list[_Source]]]] = defaultdict(list)
        self.kept: list[Any] = []  # an id is a tensor's only while the tensor lives
        self.handles: list[Any] = []

    def __enter__(self) -> Self:
        gathered: dict[str, dict[str, list[_Source]]] = {n: defaultdict(list) for n in self.nodes}
        # A node that is itself a candidate has to pass on before it is gathered from.
        for name, node in self.nodes.items():
            self.handles.append(node.module.register_forward_hook(self._pass_on(gathered[name])))
        for name, node in self.nodes.items():
            for condition, candidate in node.candidates:
                gather = self._gather(name, condition, gathered[name])
                self.handles.append(candidate.register_forward_hook(gather))
        # A result of the network is read by whoever called it.
        self.handles.append(self.model.register_forward_hook(lambda *args: self._reads(args[2])))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self.handles:
            handle.remove()

    def _gather(
        self, name: str, condition: Condition, gathered: dict[str, list[_Source]]
    ) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if self.path[-1] == name:  # not where another caller uses the same module
                for place, leaf in by_place(out).items():
                    for source in self._sources(leaf):
                        gathered[place].append(
                            replace(source, condition=source.condition | condition)
                        )

        return hook

    def _pass_on(self, gathered: dict[str, list[_Source]]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            for place, leaf in by_place(out).items():
                self._make(leaf, gathered[place])
            gathered.clear()

        return hook

    @property
    def _condition(self) -> Condition:
        return frozenset(filter(None, self.open_choices))

    def _sources(self, tensor: object) -> list[_Source]:
        return self.made.get(id(tensor), [_Source(self._condition)])

    def _make(self, tensor: Any, sources: Iterable[_Source]) -> None:
        self.made[id(tensor)] = list(sources)
        self.kept.append(tensor)

    def _reads(self, value: Any, norm: str | None = None) -> None:
        for tensor in tree_leaves(value):
            if id(tensor) in self.made:
                self.read[id(tensor)].append((self._condition, norm))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name, path = func.overloadpacket.__name__, self.path[-1]
        module = self.modules.get(path)
        # Without running statistics there is nothing constant to fold.
        if name in _NORMS and isinstance(module, _BatchNorm) and args[3] is not None:
            self.norms[path].append((self._condition, self._sources(args[0])))
            self._reads(args[0], norm=path)
        elif not (path in self.nodes and name in ("mul", "add", "slice")):
            # What mixes candidates is gone from the network that is deployed.
            self._reads(args)
        if name == "convolution":
            # A weight that is computed before each call has no identity of its own.
            layer = id(args[1]) if isinstance(args[1], nn.Parameter) else path
            self._make(out, [_Source(self._condition, layer, path, args[2] is not None)])
        elif name in ("mm", "addmm") and isinstance(module, nn.Linear):
            self._make(out, [_Source(self._condition, id(module.weight), path, name == "addmm")])
        return out

    def layers(
        self, owners: Owners, options: Mapping[str, int]
    ) -> Iterator[tuple[LayerSpec, AnyOf]]:
        """Tensors `folded` away, or `gained`, and the architectures in which they are.

        Folds that something may prevent are taken back where it does.

        Args:
            owners: of each stored tensor, by its id.
            options: decision name -> number of its options.
        """
        readers = self._readers()
        stays: dict[
            nn.Module, AnyOf
        ] = {}  # norms with tied tensors that may fold -> where they do not
        for norm, calls in self.norms.items():
            layers = {source.key: source for _, sources in calls for source in sources}
            for key, source in layers.items():
                if key is None:
                    continue
                folds, prevented = self._events(norm, key, readers[key])
                module = self.modules[norm]
                if any(len(owners[id(tensor)]) > 1 for _, tensor in _tensors(module)):
                    unless = _least(_not(folds, options) | prevented)
                    stays[module] = _both(stays.get(module, _ALWAYS), unless)
                for kind, opposite, spec in self._changes(norm, source, owners):
                    for name, active_if in ((kind, folds), (opposite, prevented)):
                        if active_if:
                            yield replace(spec, kind=name), active_if
        yield from self._tied(owners, stays)

    def _tied(
        self, owners: Owners, stays: Mapping[nn.Module, AnyOf]
    ) -> Iterator[tuple[LayerSpec, AnyOf]]:
        """A norm's tensor that other modules hold too goes where all of them fold that exist."""
        done: set[int] = set()
        paths = {module: path for path, module in self.modules.items()}
        for norm, (name, tensor) in ((m, t) for m in stays for t in _tensors(m)):
            held = owners[id(tensor)]
            if len(held) > 1 and id(tensor) not in done:
                done.add(id(tensor))
                spec = stored("folded", paths[norm], norm, name, tensor)
                yield (
                    spec,
                    _least(condition for active_if in held.values() for condition in active_if),
                )
                kept = (_both(active_if, stays.get(m, _ALWAYS)) for m, active_if in held.items())
                active_if = _least(condition for active_if in kept for condition in active_if)
                if active_if:
                    yield replace(spec, kind="gained"), active_if

    def _readers(self) -> dict[object, set[tuple[Condition, str | None]]]:
        """Key of each layer -> who reads what it makes, and under which condition."""
        found: dict[object, set[tuple[Condition, str | None]]] = defaultdict(set)
        for tensor, sources in self.made.items():
            for source, (condition, reader) in product(sources, self.read[tensor]):
                if source.key is not None:
                    found[source.key].add((condition | source.condition, reader))
        return found

    def _events(
        self, norm: str, key: object, readers: Iterable[tuple[Condition, str | None]]
    ) -> tuple[AnyOf, AnyOf]:
        """Where layer `key` feeds `norm`, and where it does but one has another partner too."""
        fed: set[Condition] = set()
        prevented: set[Condition] = set()
        for condition, sources in self.norms[norm]:
            for source in sources:
                (fed if source.key == key else prevented).add(condition | source.condition)
        prevented |= {condition for condition, reader in readers if reader != norm}
        folds = {
            condition
            for condition in _least(fed)
            if not any(other <= condition for other in prevented)
        }
        return frozenset(folds), _least(a | b for a, b in product(folds, prevented))

    def _changes(
        self, norm: str, source: _Source, owners: Owners
    ) -> Iterator[tuple[str, str, LayerSpec]]:
        module = self.modules[norm]
        for name, tensor in _tensors(module):
            if len(owners[id(tensor)]) == 1:
                yield "folded", "gained", stored("folded", norm, module, name, tensor)
        if not source.has_bias:
            mean: Tensor = module.running_mean  # one per channel
            owner = self.modules[source.path]
            yield "gained", "folded", stored("gained", source.path, owner, "bias", mean)


def _tensors(norm: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a norm stores."""
    hidden = norm._non_persistent_buffers_set
    yield from norm.named_parameters()
    yield from ((name, buffer) for name, buffer in norm.named_buffers() if name not in hidden)


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


def _least(active_if: Iterable[Condition]) -> AnyOf:
    """Without those that cannot happen, or that another one covers."""
    possible = {
        condition
        for condition in active_if
        if len({name for name, _ in condition}) == len(condition)
    }
    return frozenset(
        condition for condition in possible if not any(other < condition for other in possible)
    )
