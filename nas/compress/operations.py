"""Which layers of a network may become another operation, and the network that searches it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

from torch import nn

from nas.compress.candidates import Fit, fitted, parsed, unsuitable
from nas.compress.modules import KEPT, Finding, Where, computed, swappable, swapped
from nas.compress.moments import Layer, in_parts, moments
from nas.config.schema import Count, Name, checked
from nas.copying import copied
from nas.inputs import Inputs
from nas.ops.convolution import Conv2d
from nas.supernet.choice import ChoiceBlock


@checked("space.rules.operations")
@dataclass(frozen=True)
class Operations(Where):
    """Layers whose operation is searched.

    Args:
        include, exclude: see `Where`.
        candidates: names, see `nas.compress.candidates`; where one does not fit, it is left out.
        largest: values of a patch that a layer may read; more take long to fit.
    """

    candidates: Sequence[Name] = ("low_rank_2", "low_rank_4", "grouped_2", "dw_pw")
    largest: Count = 4608

    def __post_init__(self) -> None:
        for name in self.candidates:
            parsed(name)


class Operation(ChoiceBlock):
    """Another operation in the place of a layer, or, as the last option, the given one.

    Attributes:
        errors: candidate -> `Fit.error` at the start.
    """

    ordered = True

    def __init__(self, layer: nn.Module, fits: Mapping[str, Fit]) -> None:
        by_size = sorted(fits, key=lambda n: sum(p.numel() for p in fits[n].module.parameters()))
        super().__init__({**{name: fits[name].module for name in by_size}, KEPT: layer})
        self.errors = {name: fit.error for name, fit in fits.items()}


def operations_found(model: nn.Module, rule: Operations | None = None) -> list[Finding]:
    """What `searched_operations` searches under this rule; of modules that are named, why not."""
    rule = rule or Operations()
    found = []
    for name, layer in _layers(model, rule):
        reasons = {candidate: unsuitable(candidate, layer) for candidate in rule.candidates}
        options = tuple(c for c, reason in reasons.items() if reason is None)
        if why_not := _unfit(layer, rule):
            options = ()
        elif not options:
            why_not = next(iter(reasons.values()), "there are no candidates")
        if options or rule.named:
            taken = (*options, KEPT) if options else ()
            found.append(Finding(name, layer, "operation", taken, why_not))
        if options and name in rule.include:
            found += [
                Finding(name, layer, "operation", (), reason)
                for reason in reasons.values()
                if reason is not None
            ]
    return found


def searched_operations(
    model: nn.Module, batches: Iterable[Inputs] | None, rule: Operations | None = None
) -> nn.Module:
    """A copy of `model` in which layers may be replaced by smaller operations.

    Args:
        batches: inputs ``(N, ...)`` to fit the candidates on: training data, unaugmented; None:
            they are fitted to the weights alone.
        rule: None: all linear layers and convolutions without groups.

    Example:
        >>> import nas, torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
        >>> supernet = searched_operations(net, [torch.randn(4, 8, 12, 12)])
        >>> supernet[0].options
        ('dw_pw', 'low_rank_4', 'low_rank_2', 'grouped_2', 'given')
        >>> 0 < supernet[0].errors["low_rank_2"] < supernet[0].errors["low_rank_4"] < 1
        True
        >>> nas.discretize(supernet, nas.Arch("Sequential", {"0": "low_rank_4"}))[0]
        Sequential(
          (first): Conv2d(8, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
          (pointwise): Conv2d(3, 16, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    model, rule = copied(model), rule or Operations()
    batches = None if batches is None else list(batches)
    found = [f for f in operations_found(model, rule) if f.options]
    swaps: dict[nn.Module, nn.Module] = {}
    for some in in_parts([cast(Layer, f.module) for f in found]):
        known = moments(model, some, batches)
        for layer in some:
            options = next(f.options for f in found if f.module is layer)[:-1]
            fits = {str(name): fitted(str(name), layer, known[layer]) for name in options}
            swaps[layer] = Operation(layer, fits)
    return swapped(model, swaps)


def _layers(model: nn.Module, rule: Operations) -> Iterator[tuple[str, Layer]]:
    for name, module in swappable(model):
        if isinstance(module, Layer) and rule.takes(name, module):
            yield name, module


def _unfit(layer: Layer, rule: Operations) -> str | None:
    """Why no candidate can take the place of a layer; None: one could."""
    plain = (nn.Linear, nn.Conv1d, nn.Conv2d, Conv2d)
    if type(layer).forward not in [kind.forward for kind in plain]:
        return "its class has a forward of its own"
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return "it has groups already"
    if (values := prod(layer.weight.shape[1:])) > rule.largest:
        return f"its outputs read {values} values, more than largest={rule.largest}"
    return computed(layer)
