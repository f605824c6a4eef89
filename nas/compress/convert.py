"""Any network -> a supernet in which parts of its own layers are searched, channels above all."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from math import lcm

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.compress.atoms import FIXED
from nas.compress.dependencies import Cut, Group, groups_of
from nas.compress.heads import search_heads
from nas.compress.layer import Slicing, Width, searched
from nas.compress.modules import Finding, Where, uncompiled
from nas.compress.operations import Operation
from nas.compress.rules import KINDS, Channels, Rules, own_names, searched_others
from nas.compress.verify import Verifier
from nas.copying import copied
from nas.cost.dry_run import Example, init_lazy, inputs_of
from nas.cost.dry_run import Inputs as Arguments
from nas.decision import decisions
from nas.errors import UserError
from nas.inputs import Inputs, moved
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import once_in_a_pass


@dataclass(frozen=True)
class Row:
    """What is searched of one group of channels, or of one module, or why it is not.

    Attributes:
        layers: that make these channels, or pass them on; the module.
        channels: how many there are; None: it is about something else.
        decision: the name of the decision in the supernet; None: nothing is searched.
        options: of the decision.
        why: the reason for that.
        kind: what is searched: channels, depth, operation, kernel, dilation or resolution.
    """

    layers: tuple[str, ...]
    channels: int | None
    decision: str | None = None
    options: tuple[Option, ...] = ()
    why: str | None = None
    kind: str = "channels"


@dataclass(frozen=True)
class Converted:
    """A supernet, and the table of what is searched in it."""

    supernet: nn.Module
    rows: tuple[Row, ...]


def searchable(
    model: nn.Module,
    example: Example,
    rules: Rules | None = None,
    batches: Sequence[Inputs] | None = None,
) -> nn.Module:
    """A copy of a network in which the channels of its layers are searched, and what rules add.

    Its layers keep their classes, paths and weights; those whose channels are searched read
    decisions, which layers share whose channels must go together. The widest options are the
    network that was given. `nas.discretize` gives a plain network of the same classes and the same
    keys, with smaller tensors. `model` stays as it is.

    Args:
        model: any network that runs on `example`.
        example: as for `nas.trace`.
        rules: what is searched; None: channels.
        batches: inputs ``(N, ...)``, training data, that operations and kernels may be fitted on;
            None: they are fitted to the weights alone.

    Raises:
        UserError: nothing can be searched, or the network does not run.

    Example:
        >>> import nas
        >>> from torch import nn
        >>> from nas.compress.convert import searchable
        >>> net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10))
        >>> supernet = searchable(net, (3, 10, 10))
        >>> [(name, decision.options) for name, decision in nas.decisions(supernet)]
        [('0.channels', (2, 4, 6, 8, 10, 12, 14, 16))]
        >>> nas.discretize(supernet, nas.Arch("mine", {"0.channels": 4}))
        Sequential(
          (0): Conv2d(3, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
          (2): Flatten(start_dim=1, end_dim=-1)
          (3): Linear(in_features=256, out_features=10, bias=True)
        )
    """
    return converted(model, example, rules, batches).supernet


def converted(
    model: nn.Module,
    example: Example,
    rules: Rules | None = None,
    batches: Sequence[Inputs] | None = None,
) -> Converted:
    """As `searchable`, with the table of what is searched, and what is not and why."""
    check_plain(model)
    rules = rules or Rules()
    tensors = chain(model.parameters(), model.buffers())
    device = next((x.device for x in tensors), torch.device("cpu"))
    supernet = uncompiled(copied(model, device="cpu"))
    rules.check_patterns(supernet)
    inputs = moved(inputs_of(example, supernet), "cpu")
    batches = None if batches is None else [moved(batch, "cpu") for batch in batches]
    init_lazy(supernet, inputs)
    # Before channels: those of operations in the place of a layer must go with its own.
    supernet, others = searched_others(supernet, inputs, rules, batches)
    rows = []
    if rules.channels is not None:
        names = own_names(supernet)
        spared = Where(rules.exclude)
        excluded = [p for p, n in names.items() if spared.takes(n, supernet.get_submodule(p))]
        found = groups_of(supernet, inputs, excluded)
        groups = [_ruled(group, supernet, names, rules) for group in found]
        rows = _attach(supernet, _verified(supernet, inputs, groups, rules), rules)
        rows = [_shown(row, names) for row in rows if _is_own(row, names)]
    rows += _others(supernet, others, own_names(supernet))
    if not any(row.decision for row in rows):
        reasons = dict.fromkeys(f"{row.layers[0]}: {row.why}" for row in rows)
        kinds = ", ".join(kind for kind in KINDS if getattr(rules, kind) is not None)
        raise UserError(
            f"no {kinds or 'kind'} of {type(model).__name__} can be searched: "
            f"{'; '.join(list(reasons)[:5]) or 'it has no such layers'}"
        )
    once_in_a_pass(supernet)
    return Converted(supernet.to(device), tuple(rows))


def _is_own(row: Row, names: Mapping[str, str]) -> bool:
    """Whether these channels are in the network that was given, not inside another operation."""
    return any(" " not in names[layer] for layer in row.layers)


def _shown(row: Row, names: Mapping[str, str]) -> Row:
    """The row with the names of the layers that were given."""
    layers = dict.fromkeys(names[layer] for layer in row.layers)
    shown = (layer or "the network" for layer in layers if " " not in layer)
    return replace(row, layers=tuple(shown))


def _others(supernet: nn.Module, found: Sequence[Finding], names: Mapping[str, str]) -> list[Row]:
    """The rows of what is no channels: what is searched, then what is named and cannot be."""
    rows = []
    for path, decision in decisions(supernet):
        if not isinstance(decision, Width):
            kind = path.rpartition(".")[2]
            if isinstance(decision, ChoiceBlock):
                kind = "operation" if isinstance(decision, Operation) else "depth"
            layer = names[path] or "the input"
            rows.append(Row((layer,), None, path, decision.options, kind=kind))
    return rows + [Row((f.name,), None, why=f.why_not, kind=f.kind) for f in found if f.why_not]


EXPORTED = "comes from torch.export and has no layers any more: give the nn.Module it was made of"


def check_plain(model: nn.Module) -> None:
    """Refuse a network whose code or weights are not its own.

    Raises:
        UserError: it is scripted, exported, or wrapped for several devices, or has no values.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be an nn.Module, got {type(model).__name__}")
    whole = type(model).__name__
    for path, module in model.named_modules():
        name = f"{whole}.{path}".rstrip(".")
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{name} is scripted, its code is no longer Python: give the nn.Module it was made "
                "of"
            )
        if isinstance(module, torch.fx.GraphModule) and any(
            isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
        ):
            raise UserError(f"{name} {EXPORTED}")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise UserError(f"{name} is wrapped for several devices: give its .module")
        for key, tensor in chain(
            module.named_parameters("", False), module.named_buffers("", False)
        ):
            if tensor.is_meta:
                raise UserError(
                    f"{name}.{key} is on the meta device, without values: give the network with "
                    "its weights, on a CPU or a GPU"
                )


def _ruled(group: Group, model: nn.Module, names: Mapping[str, str], rules: Rules) -> Group:
    """The group, with the reason why the rules leave it out.

    Args:
        names: see `own_names`; rules speak of these.
    """
    if group.why is not None:
        return group
    layers = {names[path]: model.get_submodule(path) for path in group.makers}
    own = {name: layer for name, layer in layers.items() if " " not in name}
    why = None if own else "they are inside an operation that may take a layer's place"
    for name, layer in own.items():
        if not Where(rules.include).takes(name, layer):
            why = f"{name} is not in include={list(rules.include)}"
        if Where(rules.exclude).takes(name, layer):
            why = f"{name} is in exclude={list(rules.exclude)}"
    return replace(group, why=why)


def _verified(
    model: nn.Module, inputs: Arguments, groups: Sequence[Group], rules: Rules
) -> Sequence[Group]:
    """The groups, with the reason why some cannot be cut though they look as if they could."""
    mixed = {
        id(group)
        for together in _joined([group for group in groups if group.why is None])
        for group in together
        if len(together) > 1 and any(one.hosts for one in together)
    }
    why = "heads of attention meet other channels"
    groups = [replace(group, why=why) if id(group) in mixed else group for group in groups]
    verifier = Verifier(model, inputs)
    while any(group.why is None for group in groups):
        supernet = verifier.copy()
        rows = _attach(supernet, groups, rules)
        failing = verifier.failing(supernet)
        if not failing:
            break
        names = {row.layers: row.decision for row in rows}
        groups = [
            replace(group, why=failing[name])
            if (name := names.get(group.makers)) in failing
            else group
            for group in groups
        ]
    return groups


def _attach(model: nn.Module, groups: Sequence[Group], rules: Rules) -> list[Row]:
    """Give the layers their decisions; the table of all groups."""
    widths: dict[int, Width] = {}
    by_layer: dict[str, list[_Placed]] = defaultdict(list)
    for together in _joined([group for group in groups if group.why is None]):
        assert isinstance(rules.channels, Channels)
        sizes = _options(max(together, key=lambda g: g.units * g.width), rules.channels)
        first = [_first(model, group, _shares(group, sizes)) for group in together]
        starts = accumulate((group.units for group in together), initial=0)
        width = Width(sizes, torch.cat(first), [len(one) for one in first])
        for group, start in zip(together, starts, strict=False):
            widths[id(group)] = width
            for cut in (*group.cuts, *group.inputs):
                by_layer[cut.layer].append((width, cut, start))
            for host in group.hosts:
                search_heads(model.get_submodule(host), width)
    for path, module in model.named_modules():
        _search(module, by_layer[path])
    found = {
        id(module): name for name, module in model.named_modules() if isinstance(module, Width)
    }
    rows = []
    for group in groups:
        own, channels = widths.get(id(group)), group.units * group.width
        if own is not None:
            rows.append(Row(group.makers, channels, found[id(own)], own.options))
        elif group.makers:  # else they are the network's inputs
            rows.append(Row(group.makers, channels, why=group.why))
    return list(dict.fromkeys(rows))


def _joined(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups that meet in one dimension of a layer, as in a concatenation, are one decision."""
    sets = {id(group): [group] for group in groups}
    first: dict[tuple[str, str, int], Group] = {}
    for group in groups:
        for cut in group.cuts:
            other = first.setdefault((cut.layer, cut.tensor, cut.dim), group)
            mine, theirs = sets[id(group)], sets[id(other)]
            if mine is not theirs:
                theirs += mine
                sets |= {id(member): theirs for member in mine}
    seen: set[int] = set()
    for group in groups:
        together = sets[id(group)]
        if id(together) not in seen:
            seen.add(id(together))
            yield together


def _options(group: Group, rules: Channels) -> list[int]:
    """Numbers of channels, ascending."""
    channels, divisor = group.units * group.width, rules.divisor
    while divisor > 1 and lcm(divisor, group.width) * rules.choices > channels:
        divisor //= 2
    step = lcm(divisor, group.width)
    shares = (channels * k / rules.choices for k in range(1, rules.choices + 1))
    sizes = {
        max(step, round(share / step) * step) for share in shares if share >= rules.least * channels
    }
    return sorted({size for size in sizes if size < channels} | {channels})


def _shares(group: Group, sizes: Sequence[int]) -> list[int]:
    """How many units of the group each option keeps."""
    return [max(1, round(group.units * size / sizes[-1])) for size in sizes]


def _first(model: nn.Module, group: Group, kept: Sequence[int]) -> Tensor:
    """For each unit the first option that keeps it: the most important ones come first."""
    scores = torch.zeros(group.units)
    for cut in group.cuts:
        tensor = model.get_submodule(cut.layer)._parameters.get(cut.tensor)
        if tensor is not None and tensor.ndim > 1:
            size = tensor.detach().abs().transpose(0, cut.dim).flatten(1).sum(1).float()
            units = torch.from_numpy(cut.units)
            own = torch.zeros(group.units).index_add(0, units[units >= 0], size[units >= 0])
            scores += own / own.mean().clamp_min(1e-12)
    rank = torch.empty(group.units, dtype=torch.long)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(group.units)
    return torch.searchsorted(torch.tensor(kept), rank, right=True)


_Placed = tuple[Width, Cut, int]  # the units of the cut begin there in the width


def _search(module: nn.Module, cuts: Sequence[_Placed]) -> None:
    """Let a layer read the decisions that cut it."""
    names: dict[int, str] = {}
    widths: dict[str, Width] = {}
    for reads in (False, True):
        for width, cut, _ in cuts:
            if id(width) in names or cut.reads != reads or not cut.tensor:
                continue
            name = "inputs" if reads else "channels"
            while hasattr(module, name) or name in widths:
                name += "_"
            names[id(width)] = name
            widths[name] = width
    by_place: dict[tuple[str, int], list[_Placed]] = defaultdict(list)
    for width, cut, start in cuts:
        if id(width) in names:
            by_place[cut.tensor, cut.dim].append((width, cut, start))
    slicings = []
    for (tensor, dim), several in by_place.items():
        width = several[0][0]
        units = torch.full((len(several[0][1].units),), FIXED)
        for _, cut, start in several:
            own = torch.from_numpy(cut.units)
            units = torch.where(own >= 0, own + start, units)
        first = torch.cat([width.first, torch.tensor([-1])])[units]
        counts = tuple(int((first <= k).sum()) for k in range(len(width.options)))
        reads = any(cut.reads for _, cut, _ in several)
        slicings.append(Slicing(tensor, dim, names[id(width)], units.numpy(), counts, reads))
    if widths:
        given = next((one for one in slicings if not one.tensor), None)
        searched(module, [one for one in slicings if one.tensor], widths, given)
