"""What of a network is searched besides channels, in one go, and the names of its layers there."""

from collections.abc import Iterator, Sequence

from torch import nn

from nas.compress.depth import (
    Depth,
    Resolution,
    depth_found,
    searched_depth,
    searched_resolution,
)
from nas.compress.kernels import Kernels, kernels_found, searched_kernels
from nas.compress.operations import Operations, operations_found, searched_operations
from nas.compress.places import GIVEN, Finding
from nas.compress.rules import Rules
from nas.compress.taps import ElasticTaps
from nas.cost.dry_run import Example
from nas.inputs import Inputs
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import ElasticResolution


def searched_others(
    model: nn.Module, example: Example, rules: Rules, batches: Sequence[Inputs] | None
) -> tuple[nn.Module, list[Finding]]:
    """A copy of `model` in which blocks, operations, kernels and the resolution are searched.

    Args:
        batches: to fit weights on; None: from the weights that are there alone.

    Returns:
        The supernet, and what is searched in it, or is named and cannot be.
    """
    found: list[Finding] = []
    if isinstance(rules.depth, Depth):
        found += depth_found(model, example, rules.depth)
        model = searched_depth(model, example, rules.depth)
    if isinstance(rules.operations, Operations):
        found += operations_found(model, rules.operations)
        model = searched_operations(model, batches, rules.operations)
    if isinstance(rules.kernels, Kernels):
        found += kernels_found(model, example, rules.kernels)
        model = searched_kernels(model, example, rules.kernels, batches)
    if isinstance(rules.resolution, Resolution):
        model = searched_resolution(model, example, rules.resolution)
        assert isinstance(model, ElasticResolution)
        found.append(Finding("", model, "resolution", model.resolution.options))
    return model, found


def given_names(supernet: nn.Module) -> dict[str, str]:
    """Path of each module in a supernet -> the name of the layer that was given in its place.

    Modules inside another option have the name of the layer that they replace, then a space and the
    option.
    """
    return dict(_named(supernet, "", ""))


def _named(module: nn.Module, path: str, name: str) -> Iterator[tuple[str, str]]:
    yield path, name
    for key, child in module.named_children():
        below = f"{path}.{key}".lstrip(".")
        if isinstance(module, ElasticTaps | ElasticResolution):
            for own, inner in _named(child, below, name):
                yield own, name if isinstance(module, ElasticTaps) else inner
        elif isinstance(module, ChoiceBlock) and GIVEN in module.options:
            for option, op in child.named_children():
                inner = f"{below}.{option}"
                if option == GIVEN:
                    yield from _named(op, inner, name)
                else:
                    for own, _ in op.named_modules():
                        yield f"{inner}.{own}".rstrip("."), f"{name} {option}"
        else:
            yield from _named(child, below, f"{name}.{key}".lstrip("."))
