"""What a network takes in one call: one tensor, several by position, or several by name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

# A batch x is run as ``network(x)``, (a, b) as ``network(a, b)``, and {"image": a, "age": b} as
# ``network(image=a, age=b)``.
Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Shapes = Any  # ``(C, *S)`` of one sample, or a tuple or a dict of these


def run(network: nn.Module, inputs: Inputs | tuple[Any, ...] | Mapping[str, Any]) -> Any:
    """What `network` gives for `inputs`."""
    if isinstance(inputs, Tensor):
        return network(inputs)
    return network(**inputs) if isinstance(inputs, Mapping) else network(*inputs)


def arguments(inputs: Inputs) -> tuple[Any, ...] | Mapping[str, Any]:
    """By position, or by name."""
    return (inputs,) if isinstance(inputs, Tensor) else inputs


def shapes_of(inputs: Inputs) -> Shapes:
    """``(C, *S)`` of one sample of a batch; of several inputs, of each."""
    found: Shapes = tree_map(lambda x: tuple(x.shape[1:]), inputs)
    return found


def samples_in(inputs: Inputs) -> int:
    """Samples of a batch."""
    return len(tree_leaves(inputs)[0])


def some(inputs: Inputs, which: slice | Tensor) -> Inputs:
    """Samples of a batch: ``x[which]``, of each input."""
    if isinstance(inputs, Tensor):
        return inputs[which]
    found: Inputs = tree_map(lambda x: x[which], inputs)
    return found


def zeros(inputs: Inputs, count: int = 1, device: Any = None) -> Inputs:
    """So many empty samples like those of a batch, where it is or on `device`."""
    found: Inputs = tree_map(
        lambda x: x.new_zeros((count, *x.shape[1:]), device=device or x.device), inputs
    )
    return found


def moved(inputs: Any, device: Any) -> Any:
    """A batch on another device; what is no tensor stays."""
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, inputs)


def device_of(inputs: Inputs) -> torch.device:
    """Where a batch is."""
    found: torch.device = tree_leaves(inputs)[0].device
    return found
