"""A supernet in which every variant of everything that varies is a module of its own, and runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.copying import copied
from nas.cost.base import Condition
from nas.decision import Decision, Searchable, decisions
from nas.discretization import outermost


class Unrolled(nn.Module):
    """All variants of one `Searchable`, each with the condition under which it exists.

    Runs them one after another on the channels that each reads, and gives zeros of their largest
    shape: values do not matter in a dry run, and whoever reads them takes what it needs.
    """

    def __init__(self, variants: Sequence[tuple[Condition, nn.Module, int | None]]) -> None:
        super().__init__()
        self.condition = [condition for condition, _, _ in variants]
        self.reads = [channels for _, _, channels in variants]
        labels = (
            "_".join(f"{name}.{k}" for name, k in sorted(condition)) for condition in self.condition
        )
        self.candidates = nn.ModuleDict(
            {
                f"{i}_{label.replace('.', '_')}": module
                for i, (label, (_, module, _)) in enumerate(zip(labels, variants, strict=True))
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        outs = [
            variant(x if channels is None or channels == x.shape[1] else x[:, :channels])
            for channels, variant in zip(self.reads, self.candidates.values(), strict=True)
        ]
        shape = [max(sizes) for sizes in zip(*(out.shape for out in outs), strict=True)]
        # Of no tensor: recorders would take an operator on an output for a reader of it.
        return torch.zeros(shape, dtype=outs[0].dtype, device=outs[0].device)


@dataclass(frozen=True)
class ChoiceNode:
    """A module of the unrolled supernet that runs candidates, each under its condition."""

    path: str
    module: nn.Module
    candidates: Sequence[tuple[Condition, nn.Module]]


def unroll(model: nn.Module) -> tuple[nn.Module, list[ChoiceNode]]:
    """A supernet like `model`, copied if numbers are searched, and its choice nodes.

    Conditions name decisions as in `model`. Tensors that variants slice are slices here too, each
    with its own identity, but a variant that stands in several places is one module.
    """
    names = {decision: name for name, decision in decisions(model)}
    memo: dict[int, Any] = {}
    made = _copy(model, names, memo) if _needs_copy(model) else model
    own = {id(memo.get(id(decision), decision)): name for decision, name in names.items()}
    return made, list(_nodes(made, own))


def _needs_copy(model: nn.Module) -> bool:
    return any(isinstance(m, Searchable) and not isinstance(m, Decision) for m in model.modules())


def _copy(module: nn.Module, names: Mapping[Decision, str], memo: dict[int, Any]) -> Any:
    for searchable in _unrollable(module):
        if id(searchable) not in memo:
            memo[id(searchable)] = Unrolled(list(_variants(searchable, names, memo)))
    return copied(module, memo)


def _unrollable(module: nn.Module) -> Iterator[Searchable]:
    """As `outermost`, but a decision runs its options itself: they are looked into."""
    for searchable in outermost(module):
        if isinstance(searchable, Decision):
            for child in searchable.children():
                yield from _unrollable(child)
        else:
            yield searchable


def _variants(
    searchable: Searchable, names: Mapping[Decision, str], memo: dict[int, Any]
) -> Iterator[tuple[Condition, nn.Module, int | None]]:
    for options in searchable.combinations():
        condition = frozenset((names[d], d.options.index(option)) for d, option in options.items())
        module = _copy(searchable.materialize(options), names, memo)
        yield condition, module, searchable.in_channels_used(options)


def _nodes(model: nn.Module, names: Mapping[int, str]) -> Iterator[ChoiceNode]:
    for path, module in model.named_modules():
        if isinstance(module, Unrolled):
            found = zip(module.condition, module.candidates.values(), strict=True)
            yield ChoiceNode(path, module, list(found))
        elif isinstance(module, Decision) and module.active_if():
            name = names[id(module.tied_to)]
            gated = module.active_if().values()
            yield ChoiceNode(
                path, module, [(frozenset({(name, k)}), m) for k, m in enumerate(gated)]
            )
