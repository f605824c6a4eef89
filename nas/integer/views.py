"""Operators that only move numbers: each becomes a list of which number goes where.

The numbers of a sample are counted 1, 2, ... and sent through the operator; what comes out says
where each of them went, and 0 where padding has put a zero.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from nas.integer.steps import Step, Steps, arguments_of, name_of, path_of, refuse

VIEWS = frozenset(
    {
        *("_unsafe_view", "alias", "chunk", "clone", "constant_pad_nd", "contiguous", "detach"),
        *("dropout", "expand", "flatten", "lift_fresh_copy", "pad", "permute", "reshape", "select"),
        *("slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unflatten"),
        *("unsqueeze", "view"),
    }
)


def read_view(steps: Steps, node: fx.Node) -> None:
    """Put the moves that `node` makes, one for each of its results."""
    (value,) = steps.read_by(node)
    base, index = value, torch.arange(prod(steps.shapes[value]))
    if (before := steps.by_output.get(value)) is not None and before.kind == "move":
        base, index = before.inputs[0], before.settings["index"]
    # Other numbers in each sample, so that it shows if they are mixed.
    apart = torch.arange(steps.batch)[:, None] * (prod(steps.shapes[base]) + 1)
    numbered = torch.where(index < 0, 0, index + 1 + apart)
    x = numbered.reshape(steps.batch, *steps.shapes[value])
    target: Any = node.target
    args = [x if isinstance(given, fx.Node) else given for given in node.args]
    made = target(*args, **node.kwargs)
    if isinstance(made, Tensor):
        _put(steps, node, node.name, made, base, apart)
        _note_padding(steps, node, value)
        return
    for number, part in enumerate(made):
        _put(steps, node, f"{node.name}_{number}", part, base, apart)


def read_item(steps: Steps, node: fx.Node) -> None:
    """One of several results of the operator before."""
    source, number = node.args[0], node.args[1]
    assert isinstance(source, fx.Node)
    if (step := steps.by_output.get(f"{source.name}_{number}")) is not None:
        steps.same[node.name] = steps.value(step.output)
    elif node.name not in steps.by_output:
        refuse(node)


def read_zeros(steps: Steps, node: fx.Node) -> None:
    """Zeros: nothing of the input is moved."""
    index = torch.full((prod(node.meta["val"].shape[1:]),), -1)
    steps.put(node, "move", [steps.start], index=index)


def _put(steps: Steps, node: fx.Node, name: str, made: Tensor, base: str, apart: Tensor) -> None:
    flat = made.reshape(len(made), -1)
    index = torch.where(flat == 0, 0, flat - apart) - 1 if len(flat) == steps.batch else None
    if index is None or not bool((index == index[:1]).all()):
        refuse(node, "it moves numbers from one sample to another")
    shape = tuple(made.shape[1:])
    steps.keep(Step("move", path_of(node), name, shape, (base,), {"index": index[0]}))
    if shape == steps.shapes[base] and torch.equal(index[0], torch.arange(prod(shape))):
        steps.same[name] = base


def _note_padding(steps: Steps, node: fx.Node, value: str) -> None:
    """Of zeros put around a value itself: how many are above and before it."""
    if name_of(node) not in ("pad", "constant_pad_nd"):
        return
    given, step = arguments_of(node), steps.by_output[node.name]
    if given.get("mode", "constant") != "constant" or given.get("value"):
        refuse(node, "padding with other than zeros")
    pads = given["pad"]
    if step.inputs == (value,) and len(pads) <= 2 * len(step.shape) - 2 and min(pads) >= 0:
        left, above = [*pads[::2], 0][:2]
        step.settings["around"] = (above, left)
