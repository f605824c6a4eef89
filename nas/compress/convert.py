"""Any network -> a supernet in which the channels of its own layers are searched."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import accumulate, chain
from math import lcm

import torch
from torch import Tensor, nn

from nas.compress.atoms import FIXED
from nas.compress.dependencies import Cut, Group, groups_of
from nas.compress.layer import Slicing, Width, search_heads, searched
from nas.compress.trial import Trial
from nas.config.schema import Count, Share, checked
from nas.copying import copied
from nas.cost.dry_run import Example, Inputs, init_lazy, inputs_of
from nas.errors import UserError


@checked("space.rules.channels")
@dataclass(frozen=True)
class Channels:
    """Which numbers of channels are offered.

    Args:
        choices: about how many, in equal steps from ``1 / choices`` to all.
        divisor: they are multiples of this, or of a half, a quarter, ... of it where a layer is
            too narrow for so many choices.
        least: the smallest share of the channels.
    """

    choices: Count = 8
    divisor: Count = 8
    least: Share = 0.0


@dataclass(frozen=True)
class Rules:
    """What of a network is searched.

    A pattern (as of a shell: ``layer3.*``) fits a layer by its path or by the name of its class.

    Args:
        include: the layers that make the channels that are searched, all of one group.
        exclude: layers whose channels stay, even if they are included.
        channels: None: no channels are searched.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    channels: Channels | None = field(default_factory=Channels)


@dataclass(frozen=True)
class Row:
    """What is searched of one group of channels, or why it is not.

    Attributes:
        layers: that make these channels, or pass them on.
        channels: how many there are.
        decision: the name of the decision in the supernet; None: they stay.
        options: of the decision.
        why: the channels stay.
    """

    layers: tuple[str, ...]
    channels: int
    decision: str | None = None
    options: tuple[int, ...] = ()
    why: str | None = None


@dataclass(frozen=True)
class Converted:
    """A supernet, and the table of what is searched in it."""

    supernet: nn.Module
    rows: tuple[Row, ...]


def searchable(model: nn.Module, example: Example, rules: Rules = Rules()) -> nn.Module:
    """A copy of a network in which the channels of its layers are searched.

    Its layers keep their classes, paths and weights; those whose channels are searched read
    decisions, which layers share whose channels must go together. The widest options are the
    network that was given. `nas.discretize` gives a plain network of the same classes and the same
    keys, with smaller tensors. `model` stays as it is.

    Args:
        model: any network that runs on `example`.
        example: as for `nas.trace`.
        rules: what is searched.

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
    return converted(model, example, rules).supernet


def converted(model: nn.Module, example: Example, rules: Rules = Rules()) -> Converted:
    """As `searchable`, with the table of what is searched, and what is not and why."""
    _check(model)
    supernet = copied(model)
    inputs = inputs_of(example, supernet)
    init_lazy(supernet, inputs)
    groups = [_ruled(group, supernet, rules) for group in groups_of(supernet, inputs)]
    rows = _attach(supernet, _tried(supernet, inputs, groups, rules), rules)
    if not any(row.decision for row in rows):
        reasons = dict.fromkeys(f"{row.layers[0]}: {row.why}" for row in rows)
        raise UserError(
            f"no channels of {type(model).__name__} can be searched: "
            f"{'; '.join(list(reasons)[:5]) or 'it has no layers with weights'}"
        )
    return Converted(supernet, tuple(rows))


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"{name} is scripted, its code is no longer Python: give the nn.Module it was made of"
        )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UserError(
            f"{name} is compiled: give the module it was made of, and compile the result"
        )
    if not isinstance(model, nn.Module):
        raise UserError(f"model must be an nn.Module, got {name}")


def _ruled(group: Group, model: nn.Module, rules: Rules) -> Group:
    """The group, with the reason why the rules leave it out."""
    if group.why is not None:
        return group

    def fits(layer: str, patterns: Sequence[str]) -> bool:
        names = (layer, type(model.get_submodule(layer)).__name__)
        return any(fnmatch(name, pattern) for name in names for pattern in patterns)

    why = None
    for layer in group.makers:
        if not fits(layer, rules.include):
            why = f"{layer} is not in include={list(rules.include)}"
        if fits(layer, rules.exclude):
            why = f"{layer} is in exclude={list(rules.exclude)}"
    if rules.channels is None:
        why = "channels=null"
    return replace(group, why=why)


def _tried(
    model: nn.Module, inputs: Inputs, groups: Sequence[Group], rules: Rules
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
    trial = Trial(model, inputs)
    while any(group.why is None for group in groups):
        supernet = trial.copy()
        rows = _attach(supernet, groups, rules)
        failing = trial.failing(supernet)
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
    by_layer: dict[str, list[tuple[Width, Cut, int]]] = defaultdict(list)
    for together in _joined([group for group in groups if group.why is None]):
        assert rules.channels is not None
        sizes = _options(max(together, key=lambda g: g.units * g.width), rules.channels)
        first = [_first(model, group, _shares(group, sizes)) for group in together]
        starts = accumulate((group.units for group in together), initial=0)
        layer = model.get_submodule(together[0].cuts[0].layer)
        device = next(chain(layer.parameters(), layer.buffers())).device
        width = Width(sizes, torch.cat(first), [len(one) for one in first]).to(device)
        for group, start in zip(together, starts, strict=False):
            widths[id(group)] = width
            for cut in group.cuts:
                by_layer[cut.layer].append((width, cut, start))
            for host in group.hosts:
                search_heads(model.get_submodule(host), width)
    for path, module in model.named_modules():
        if path in by_layer:
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
            size = tensor.detach().abs().transpose(0, cut.dim).flatten(1).sum(1).float().cpu()
            units = torch.from_numpy(cut.units)
            own = torch.zeros(group.units).index_add(0, units[units >= 0], size[units >= 0])
            scores += own / own.mean().clamp_min(1e-12)
    rank = torch.empty(group.units, dtype=torch.long)
    rank[scores.argsort(descending=True, stable=True)] = torch.arange(group.units)
    return torch.searchsorted(torch.tensor(kept), rank, right=True)


def _search(module: nn.Module, cuts: Sequence[tuple[Width, Cut, int]]) -> None:
    """Let a layer read the decisions that cut it."""
    names: dict[int, str] = {}
    widths: dict[str, Width] = {}
    for reads in (False, True):
        for width, cut, _ in cuts:
            if id(width) in names or cut.reads != reads:
                continue
            name = "inputs" if reads else "channels"
            while hasattr(module, name) or name in widths:
                name += "_"
            names[id(width)] = name
            widths[name] = width
    by_place: dict[tuple[str, int], list[tuple[Width, Cut, int]]] = defaultdict(list)
    for width, cut, start in cuts:
        by_place[cut.tensor, cut.dim].append((width, cut, start))
    slicings = []
    for (tensor, dim), several in by_place.items():
        width = several[0][0]
        units = torch.full((len(several[0][1].units),), FIXED)
        for _, cut, start in several:
            own = torch.from_numpy(cut.units)
            units = torch.where(own >= 0, own + start, units)
        first = torch.cat([width.first.cpu(), torch.tensor([-1])])[units]
        counts = tuple(int((first <= k).sum()) for k in range(len(width.options)))
        reads = any(cut.reads for _, cut, _ in several)
        slicings.append(Slicing(tensor, dim, names[id(width)], units.numpy(), counts, reads))
    searched(module, slicings, widths)
