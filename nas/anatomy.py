"""The pieces of a network in order: what was chosen, channels, sizes, share of each cost."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from nas.arch import Arch
from nas.cost.base import LayerCost, LayerSpec, NetworkCost
from nas.cost.trace import Example, trace
from nas.decision import Decision, Varying, decisions, sites
from nas.discretization import discretize
from nas.ops.blocks import SqueezeExcitation


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

    Layers inside a choice, nested ones included, belong to the outermost, those of an elastic layer
    to it; all others to the top-level module that they are in.

    Raises:
        UserError: as `discretize` and `trace`.
    """
    additive = {n: cost for n, cost in costs.items() if not isinstance(cost, NetworkCost)}
    names = {decision: name for name, decision in decisions(supernet)}
    apart = set(_apart(supernet))
    every = _chosen(supernet, "", arch, names)
    chosen = {path: option for path, option in every if path not in apart}
    found = {name: Part(name, option) for name, option in chosen.items()}
    for name, _ in supernet.named_children():
        if not any(choice == name or choice.startswith(f"{name}.") for choice in chosen):
            found[name] = Part(name)
    order = [name for name, _ in supernet.named_modules() if name in found]
    parts = {name: found[name] for name in order}
    network = discretize(supernet, arch)
    # Their convolutions make factors for what passes, not what passes.
    gates = tuple(
        f"{name}." for name, m in network.named_modules() if isinstance(m, SqueezeExcitation)
    )
    for layer in trace(network, example).layers:
        part = parts.setdefault(*_owner(layer.spec.module, parts))
        _add(part, layer.spec, additive, shapes=not layer.spec.module.startswith(gates))
    # What is decided in a block that a searched depth leaves out is in no network.
    there = {name for name, _ in network.named_modules()}
    there |= {name for decision, name in names.items() if not decision.gated()}
    return [p for p in parts.values() if p.layers or (p.option and p.name in there)]


def _apart(supernet: nn.Module) -> Iterator[str]:
    """Paths of decisions that only lead: each stands in the network where its followers do."""
    followed = {site.tied_to for _, site in sites(supernet) if site.tied_to is not site}
    for path, site in sites(supernet):
        if site in followed and not any(site.children()):
            yield path


def _chosen(
    module: nn.Module, path: str, arch: Arch, names: Mapping[Decision, str]
) -> Iterator[tuple[str, str]]:
    """Path and option of every choice of ops and of every number that is searched.

    Those of one elastic layer are told together, e.g. "kernel 5, expand 4".
    """
    if isinstance(module, Decision):
        yield path, str(arch.choices[names[module.tied_to]])
        return
    own = module.decides() if isinstance(module, Varying) else ()
    numbers = {decision for decision in own if not decision.gated()}
    inside = [(key, child) for key, child in module.named_children() if child not in numbers]
    deeper = (m for _, child in inside for m in child.modules() if m not in numbers)
    if numbers and not any(isinstance(m, Varying) for m in deeper):
        # A width is told where it is made, not again where it is read.
        told = [names[d] for d in own if d in numbers and names[d].startswith(f"{path}.")]
        yield path, ", ".join(f"{n.rpartition('.')[2]} {arch.choices[n]}" for n in told)
        return
    for decision in numbers:
        yield names[decision], str(arch.choices[names[decision]])
    for key, child in inside:
        yield from _chosen(child, f"{path}.{key}".lstrip("."), arch, names)


def _owner(module: str, parts: Mapping[str, Part]) -> tuple[str, Part]:
    """The part that the module at this path belongs to: the longest name that begins its path."""
    fitting = [n for n in parts if n and (module == n or module.startswith(f"{n}."))]
    name = max(fitting, key=len, default=module.partition(".")[0])
    return name, Part(name)


def _add(part: Part, spec: LayerSpec, costs: Mapping[str, LayerCost], shapes: bool) -> None:
    if spec.is_call and shapes:
        part.channels, part.size = int(spec.out_channels), spec.out_size
    part.layers += spec.is_call
    for name, cost in costs.items():
        part.costs[name] = part.costs.get(name, 0.0) + float(cost(spec))
