"""A summary of a network, block by block: made from the supernet, shown as SVG and as CSV."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, write_atomic
from nas.cost.dry_run import Example
from nas.cost.expected import NetworkCost, entries
from nas.cost.layer import LayerCost
from nas.cost.trace import trace
from nas.decision import Decision, Searchable, decisions, sites
from nas.discretization import discretize
from nas.ops.blocks import SqueezeExcitation
from nas.quantities import amount, metric_name, metric_words, primary_metrics
from nas.report.templates import render

HEIGHT, FULL, GAP = 30, 200, 14  # of the SVG, in pixels: a row, a full bar, between columns
SHADES = (0.75, 0.4, 0.2, 0.55, 0.3, 0.12)  # of the bars of each cost: colours mean searches
LETTER = 7.2  # mean width of a letter of 12 pixels at most, in any sans-serif
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass
class BlockSummary:
    """One block: a choice with its option, or a fixed module of the supernet, with option "".

    `channels` and `size` are those of the output of its last convolution or linear layer; None and
    () without one (identity, pooling). `costs` holds its share of every additive cost.
    """

    name: str
    option: str = ""
    channels: int | None = None
    size: tuple[int, ...] = ()
    layers: int = 0
    costs: dict[str, Annotated[float, Field(allow_inf_nan=False)]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As result.json lists it."""
        return asdict(self) | {"size": list(self.size)}

    @property
    def output(self) -> str:
        """`16 x 14 x 14`: channels and size of the output; "" without a layer."""
        if self.channels is None:
            return ""
        size = () if self.size == (1,) else self.size  # a linear layer of a single row
        return " x ".join(str(n) for n in (self.channels, *size))


Blocks = Sequence[BlockSummary]


@cache
def _adapter() -> TypeAdapter[tuple[BlockSummary, ...]]:
    return TypeAdapter(tuple[BlockSummary, ...])


def read_blocks(result: Mapping[str, Any]) -> tuple[BlockSummary, ...]:
    """The blocks that result.json lists; () if it lists none.

    Raises:
        ValueError: they have another form.
    """
    return _adapter().validate_python(result.get("parts") or ())


def summarize(
    supernet: nn.Module,
    arch: Arch,
    example: Example,
    costs: Mapping[str, LayerCost | NetworkCost],
) -> list[BlockSummary]:
    """The blocks of `supernet` with `arch`, in the order of its modules.

    Layers inside a choice, nested ones included, belong to the outermost choice, those of an
    elastic layer to that layer, all others to their top-level module.

    Raises:
        UserError: as `discretize` and `trace`.
    """
    additive = {n: cost for n, cost in costs.items() if not isinstance(cost, NetworkCost)}
    names = {decision: name for name, decision in decisions(supernet)}
    bare = set(_bare_decisions(supernet))
    every = _chosen(supernet, "", arch, names)
    chosen = {path: option for path, option in every if path not in bare}
    found = {name: BlockSummary(name, option) for name, option in chosen.items()}
    for name, _ in supernet.named_children():
        if not any(choice == name or choice.startswith(f"{name}.") for choice in chosen):
            found[name] = BlockSummary(name)
    blocks = {name: found[name] for name, _ in supernet.named_modules() if name in found}
    network = discretize(supernet, arch)
    # Convolutions of squeeze-and-excitation compute factors of the output, not the output.
    gates = tuple(
        f"{name}." for name, m in network.named_modules() if isinstance(m, SqueezeExcitation)
    )
    traced = trace(network, example)
    for spec in (layer.spec for layer in traced.layers if layer.spec.is_call):
        block = blocks.setdefault(*_owner(spec.module, blocks))
        block.layers += 1
        if not spec.module.startswith(gates):
            block.channels, block.size = spec.out_channels, spec.out_size
    for name, cost in additive.items():
        for layer in entries(traced, cost):
            block = blocks.setdefault(*_owner(layer.spec.module, blocks))
            block.costs[name] = block.costs.get(name, 0.0) + float(cost(layer.spec))
    # Decisions inside of a block that a searched depth leaves out are in no network.
    present = {name for name, _ in network.named_modules()}
    present |= {name for decision, name in names.items() if not decision.active_if()}
    return [
        block
        for block in blocks.values()
        if block.layers or any(block.costs.values()) or (block.option and block.name in present)
    ]


def _bare_decisions(supernet: nn.Module) -> Iterator[str]:
    """Paths of decisions that others are tied to and that hold no module: the others are listed."""
    followed = {site.tied_to for _, site in sites(supernet) if site.tied_to is not site}
    for path, site in sites(supernet):
        if site in followed and not any(site.children()):
            yield path


def _chosen(
    module: nn.Module, path: str, arch: Arch, names: Mapping[Decision, str]
) -> Iterator[tuple[str, str]]:
    """Path and option of every choice of ops and of every searched number.

    The numbers of one elastic layer make one text, e.g. "kernel 5, expand 4".
    """
    if isinstance(module, Decision):
        yield path, str(arch.choices[names[module.tied_to]])
        return
    own = module.decisions() if isinstance(module, Searchable) else ()
    numbers = {decision for decision in own if not decision.active_if()}
    inside = [(key, child) for key, child in module.named_children() if child not in numbers]
    deeper = (m for _, child in inside for m in child.modules() if m not in numbers)
    if numbers and not any(isinstance(m, Searchable) for m in deeper):
        # A width is listed at the layer that makes it, not again at those that read it.
        made = [names[d] for d in own if d in numbers and names[d].startswith(f"{path}.")]
        yield path, ", ".join(f"{n.rpartition('.')[2]} {arch.choices[n]}" for n in made)
        return
    for decision in numbers:
        yield names[decision], str(arch.choices[names[decision]])
    for key, child in inside:
        yield from _chosen(child, f"{path}.{key}".lstrip("."), arch, names)


def _owner(module: str, blocks: Mapping[str, BlockSummary]) -> tuple[str, BlockSummary]:
    """The block of the module at this path: the longest name that begins the path.

    What the forward pass of the network itself does, outside of its modules, is "(network)".
    """
    fitting = [n for n in blocks if n and (module == n or module.startswith(f"{n}."))]
    name = max(fitting, key=len, default=module.partition(".")[0] or "(network)")
    return name, BlockSummary(name)


def costs_in(blocks: Blocks) -> list[str]:
    """The additive costs that the blocks have shares of."""
    return list(dict.fromkeys(name for block in blocks for name in block.costs))


def share(blocks: Blocks, block: BlockSummary, cost: str) -> float:
    """The block's share of the network's cost, in 0..1."""
    total = sum(other.costs.get(cost, 0.0) for other in blocks)
    return block.costs.get(cost, 0.0) / total if total else 0.0


def csv_text(blocks: Blocks) -> str:
    """network.csv: each block with its amount and share of every additive cost."""
    costs = costs_in(blocks)
    shares = [f"{name}_share" for name in costs]
    rows: list[list[Any]] = []
    for block in blocks:
        size = "x".join(str(n) for n in block.size)
        own = [block.name, block.option, block.channels, size, block.layers]
        amounts = [block.costs.get(name, 0) for name in costs]
        rows.append([*own, *amounts, *(round(share(blocks, block, name), 6) for name in costs)])
    header = ["block", "operation", "channels", "size", "layers", *costs, *shares]
    return csv_table(header, rows)


def svg(blocks: Blocks, costs: Sequence[str], title: str = "", alone: bool = False) -> str:
    """network.svg: boxes in the order of the network, bars for the shares of these costs.

    It has the ink of the page around it (``currentColor``) in shades; text is text.

    Args:
        alone: as a file: with its title, its size and colours for light and dark.
    """
    rows = [(_short(b.name), _short(b.option or "fixed", 36), b) for b in blocks]
    names, labels, outputs = (
        [r[0] for r in rows],
        [r[1] for r in rows],
        [b.output for b in blocks],
    )
    box, box_width = _width(names) + GAP, _width(labels) + GAP
    output = box + box_width + GAP
    bars = output + _width(outputs) + GAP
    width = bars + FULL + 40  # the figure behind a full bar
    if alone:
        width = max(width, _width([title])) + 2 * GAP
    head = 50 if alone else 26
    drawn = render(
        "network.svg",
        title=title,
        alone=alone,
        left=-GAP if alone else 0,
        width=width,
        height=head + HEIGHT * len(blocks) + 6,
        head=head,
        row_height=HEIGHT,
        box=box,
        box_width=box_width,
        output=output,
        bars=bars,
        full=FULL,
        letter=LETTER,
        rows=rows,
        costs=list(zip(costs, SHADES, strict=False)),
        share=partial(share, blocks),
    )
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", drawn)


def write_drawing(run: RunDir, result: Mapping[str, Any]) -> None:
    """Write network.svg and network.csv of a finished run with this result.json.

    Raises:
        ValueError: its blocks have another form.
    """
    blocks, units = read_blocks(result), result.get("units", {})
    test, _ = primary_metrics(result)
    figures = [f"{metric_name(test)} {metric_words(test, result['metrics'][test])}"]
    figures += [f"{n} {amount(v, units.get(n, ''))}" for n, v in result["costs"].items()]
    title = f"{result['space']} for {result['data']}: {', '.join(figures)}"
    write_atomic(run.drawing, svg(blocks, costs_in(blocks), title, alone=True) + "\n")
    write_atomic(run.drawing.with_suffix(".csv"), csv_text(blocks))


def _width(texts: Sequence[str]) -> int:
    """Pixels that the longest text takes at most."""
    return round(LETTER * max((len(text) for text in texts), default=0))


def _short(text: str, most: int = 20) -> str:
    return text if len(text) <= most else f"...{text[-most + 3 :]}"
