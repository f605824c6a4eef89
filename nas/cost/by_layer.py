"""What any module costs, layer by layer, as a table."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from math import ceil
from pathlib import Path

from torch import nn
from torch.nn.parameter import is_lazy

from nas.cost.activations import tensors
from nas.cost.analytic import MACs, Params
from nas.cost.device import Device, Roofline, load
from nas.cost.dry_run import Example
from nas.cost.expected import entries
from nas.cost.layer import LayerCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import Trace, trace
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.quantities import amount
from nas.tables import Grid

_TEXTS = ("layer", "type", "output")  # its columns of text


@dataclass(frozen=True)
class CostsOfLayer:
    """The costs of a module that computes or stores something outside of the modules in it.

    Attributes:
        name: path of the module; "" is the network itself.
        type: class of the module.
        shape: of its last output, batch included; of several tensors the first; () if it was not
            called.
        params: parameters that it stores. A shared one counts where it comes first.
        macs: multiply-accumulates of all its calls.
        share: of the network's multiply-accumulates, 0 to 1.
        memory: bytes of all activations of the network that live at once while this module runs.
        roofline: least seconds on the device; None without a device.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    params: int
    macs: int
    share: float
    memory: int
    roofline: float | None


@dataclass(frozen=True, repr=False)
class Costs:
    """What a network costs: prints as a table of 80 columns, and is a table in a notebook.

    Attributes:
        title: the class of the network, the shapes of the example, and the device.
        params: stored parameters, shared ones once.
        macs: multiply-accumulates for the example.
        peak_memory: bytes of the activations that live at once, at most.
        roofline: least seconds for the example on the device; None without a device.
        layers: in the order of the modules.
        open: names of the choices of a supernet that are not made.
    """

    title: str
    params: int
    macs: int
    peak_memory: int
    roofline: float | None
    layers: tuple[CostsOfLayer, ...]
    open: tuple[str, ...]

    def __repr__(self) -> str:
        return self._grid().text()

    def _repr_html_(self) -> str:
        return self._grid().html()

    def _grid(self) -> Grid:
        head, *rows = self._rows()
        short = {"type": len("BatchNorm2d")}
        return Grid(list(self._lines()), head, rows, _TEXTS, folded=("layer",), shortened=short)

    def _lines(self) -> Iterator[str]:
        """What stands above the table."""
        yield self.title
        total = f"{self.params:,} parameters, {self.macs:,} MACs"
        total += f", peak memory {amount(self.peak_memory, 'B')}"
        yield total if self.roofline is None else f"{total}, roofline {amount(self.roofline, 's')}"
        if self.open:
            yield (
                f"open choices: {', '.join(self.open)}; counted is the option of the largest "
                "alpha of each, nas.apply takes another"
            )

    def _rows(self) -> Iterator[list[str]]:
        """The head of the table, and a row for each layer, without zeros."""
        last = [] if self.roofline is None else ["roofline"]
        yield [*_TEXTS, "params", "MACs", "share", "memory", *last]
        for x in self.layers:
            numbers = [f"{x.params:,}" * (x.params > 0)]
            numbers += [text * (x.macs > 0) for text in (f"{x.macs:,}", f"{x.share:.1%}")]
            numbers += [amount(x.memory, "B") * (x.memory > 0)]
            numbers += [amount(x.roofline or 0, "s") * bool(x.roofline) for _ in last]
            yield [x.name or "(network)", x.type, "x".join(map(str, x.shape)), *numbers]


def cost_of(
    model: nn.Module,
    example: Example,
    device: Device | str | Path | None = None,
    memory: PeakMemory | None = None,
) -> Costs:
    """The exact costs of any module, layer by layer, from one forward pass without the work.

    The model stays as it is, and is counted as in eval mode. In a supernet the choices that are
    made hold; for an open one the option of the largest alpha is counted, and the table says so.
    Nothing is printed: `print` shows the table, and a notebook shows what is returned.

    Args:
        example: as for `nas.trace`. All of it is counted: of 8 samples the costs of 8.
        device: adds the roofline there: a `nas.cost.device.Device`, its YAML file, or the name of
            a shipped one, e.g. "cortex_m7".
        memory: how memory is counted; by default `nas.cost.memory.PeakMemory()`, 32 bits for each
            activation.

    Raises:
        UserError: `model` is no module, its forward pass fails, a layer with weights is of an
            unknown kind, or no such device.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5408, 10))
        >>> costs = nas.cost_of(model, (1, 28, 28))
        >>> costs.params, costs.macs, costs.peak_memory
        (54170, 102752, 24768)
        >>> print(costs)
        Sequential for 1x1x28x28
        54,170 parameters, 102,752 MACs, peak memory 24.8 kB
        layer type   output    params   MACs share  memory
        0     Conv2d 1x8x26x26     80 48,672 47.4% 24.8 kB
        1     ReLU   1x8x26x26                     21.6 kB
        3     Linear 1x10      54,090 54,080 52.6% 21.7 kB
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model={model!r} must be a torch.nn.Module")
    target = load(device) if isinstance(device, str | Path) else device
    own = dict(decisions(model))
    lazy = any(map(is_lazy, chain(model.parameters(), model.buffers())))
    # A copy, where tracing would give lazy modules their weights.
    network = discretize(model) if own or lazy else model
    traced = trace(network, example)
    memory = memory or PeakMemory()
    layers = tuple(_layers(network, traced, memory, target))
    shapes = ", ".join("x".join(map(str, x.shape)) for x in tensors(traced.inputs))
    return Costs(
        f"{type(model).__name__} for {shapes}" + (f" on {target.name}" if target else ""),
        sum(layer.params for layer in layers),
        sum(layer.macs for layer in layers),
        ceil(float(memory.expected(network, traced)())),
        sum(layer.roofline or 0.0 for layer in layers) if target else None,
        layers,
        tuple(name for name, decision in own.items() if decision.open.sum() > 1),
    )


def _layers(
    network: nn.Module, traced: Trace, memory: PeakMemory, device: Device | None
) -> Iterator[CostsOfLayer]:
    params, macs = _by_module(traced, Params()), _by_module(traced, MACs())
    seconds = _by_module(traced, Roofline(device)) if device else {}
    live = {operator.module: 0 for operator in traced.operators if not operator.view}
    for step, terms in memory.by_step(traced):
        if step.module in live:
            live[step.module] = max(live[step.module], ceil(terms.get(frozenset(), 0)))
    total = sum(macs.values())
    for name, module in network.named_modules():
        if params[name] or macs[name] or name in live:
            yield CostsOfLayer(
                name,
                type(module).__name__,
                traced.shapes.get(name, ()),
                int(params[name]),
                int(macs[name]),
                macs[name] / total if total else 0.0,
                live.get(name, 0),
                seconds[name] if device else None,
            )


def _by_module(traced: Trace, cost: LayerCost) -> dict[str, float]:
    """Path of a module -> what its layers cost."""
    found: dict[str, float] = defaultdict(float)
    for layer in entries(traced, cost):
        found[layer.spec.module] += cost(layer.spec)
    return found
