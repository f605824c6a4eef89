"""The pieces of a network in order: what was chosen, channels, sizes, share of each cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from nas.arch import Arch
from nas.cost.base import LayerCost, LayerSpec, NetworkCost
from nas.cost.trace import Example, trace
from nas.decision import decisions
from nas.discrete import discretize


@dataclass
class Part:
    """One piece: a choice with the option taken, or a fixed module of the supernet.

    `channels` and `size` are those of its last convolution or product; a piece without one (an
    identity, a pooling) has none. `costs` holds its part of every cost that adds up over layers.
    """

    name: str
    option: str = ""
    channels: int | None = None
    size: tuple[int, ...] = ()
    layers: int = 0
    costs: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"size": list(self.size)}


def anatomy(
    supernet: nn.Module,
    arch: Arch,
    example: Example,
    costs: Mapping[str, LayerCost | NetworkCost],
) -> list[Part]:
    """The parts of `supernet` with `arch`, in the order of its modules.

    Layers inside a choice, nested ones included, belong to the outermost; all others to the
    top-level module that they are in.

    Raises:
        UserError: as `discretize` and `trace`.
    """
    additive = {n: cost for n, cost in costs.items() if not isinstance(cost, NetworkCost)}
    chosen = _outermost(supernet, arch)
    found = {name: Part(name, option) for name, option in chosen.items()}
    for name, _ in supernet.named_children():
        if not any(choice == name or choice.startswith(f"{name}.") for choice in chosen):
            found[name] = Part(name)
    order = [name for name, _ in supernet.named_modules() if name in found]
    parts = {name: found[name] for name in order}
    for layer in trace(discretize(supernet, arch), example).layers:
        part = parts.setdefault(*_owner(layer.spec.module, parts))
        _add(part, layer.spec, additive)
    return [part for part in parts.values() if part.option or part.layers]


def _outermost(supernet: nn.Module, arch: Arch) -> dict[str, str]:
    names = [name for name, _ in decisions(supernet)]
    outer = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    return {name: str(arch.choices[name]) for name in outer}


def _owner(module: str, parts: Mapping[str, Part]) -> tuple[str, Part]:
    """The part that the module at this path belongs to: the longest name that begins its path."""
    fitting = [n for n in parts if n and (module == n or module.startswith(f"{n}."))]
    name = max(fitting, key=len, default=module.partition(".")[0])
    return name, Part(name)


def _add(part: Part, spec: LayerSpec, costs: Mapping[str, LayerCost]) -> None:
    if spec.is_call:
        part.channels, part.size = int(spec.out_channels), spec.out_size
    part.layers += spec.is_call
    for name, cost in costs.items():
        part.costs[name] = part.costs.get(name, 0.0) + float(cost(spec))
