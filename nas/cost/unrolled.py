"""A supernet in which every variant of everything that varies is a module of its own, and runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.copying import copied
from nas.cost.base import Gates
from nas.decision import Decision, Varying, decisions
from nas.discretization import outermost


class Unrolled(nn.Module):
    """All variants of one `Varying`, each with the gates under which it is the one that exists.

    Runs them one after another on the channels that each reads, and gives zeros of their largest
    shape: values do not matter in a dry run, and whoever reads them takes what it needs.
    """

    def __init__(self, variants: Sequence[tuple[Gates, nn.Module, int | None]]) -> None:
        super().__init__()
        self.gates = [gates for gates, _, _ in variants]
        self.reads = [channels for _, _, channels in variants]
        labels = ("_".join(f"{name}.{k}" for name, k in sorted(gates)) for gates in self.gates)
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
class Mixer:
    """A module of the unrolled supernet that runs candidates, each under its gates."""

    path: str
    module: nn.Module
    candidates: Sequence[tuple[Gates, nn.Module]]


def unroll(model: nn.Module) -> tuple[nn.Module, list[Mixer]]:
    """A supernet like `model` and its mixers; a copy where something but a choice of ops varies.

    Gates name decisions as in `model`. Tensors that variants slice are slices here too, each with
    its own identity, but a variant that stands in several places is one module.
    """
    names = {decision: name for name, decision in decisions(model)}
    memo: dict[int, Any] = {}
    made = _copy(model, names, memo) if _needs_copy(model) else model
    own = {id(memo.get(id(decision), decision)): name for decision, name in names.items()}
    return made, list(_mixers(made, own))


def _needs_copy(model: nn.Module) -> bool:
    return any(isinstance(m, Varying) and not isinstance(m, Decision) for m in model.modules())


def _copy(module: nn.Module, names: Mapping[Decision, str], memo: dict[int, Any]) -> Any:
    for varying in _unrollable(module):
        if id(varying) not in memo:
            memo[id(varying)] = Unrolled(list(_variants(varying, names, memo)))
    return copied(module, memo)


def _unrollable(module: nn.Module) -> Iterator[Varying]:
    """As `outermost`, but a decision runs its options itself: they are looked into."""
    for varying in outermost(module):
        if isinstance(varying, Decision):
            for child in varying.children():
                yield from _unrollable(child)
        else:
            yield varying


def _variants(
    varying: Varying, names: Mapping[Decision, str], memo: dict[int, Any]
) -> Iterator[tuple[Gates, nn.Module, int | None]]:
    for options in varying.combinations():
        gates = frozenset((names[d], d.options.index(option)) for d, option in options.items())
        module = _copy(varying.variant(options), names, memo)
        yield gates, module, varying.reads(options)


def _mixers(model: nn.Module, names: Mapping[int, str]) -> Iterator[Mixer]:
    for path, module in model.named_modules():
        if isinstance(module, Unrolled):
            found = zip(module.gates, module.candidates.values(), strict=True)
            yield Mixer(path, module, list(found))
        elif isinstance(module, Decision) and module.gated():
            name = names[id(module.tied_to)]
            gated = module.gated().values()
            yield Mixer(path, module, [(frozenset({(name, k)}), m) for k, m in enumerate(gated)])
