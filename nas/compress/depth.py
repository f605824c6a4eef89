"""Depth and input resolution of a network: blocks that may go, and sizes that it may run at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from nas.compress.modules import KEPT, Finding, Where, swappable, swapped
from nas.config.schema import Count, checked
from nas.copying import copied
from nas.cost.dry_run import Example, inputs_of
from nas.errors import UserError
from nas.inputs import run
from nas.recalibrate import kept_modes
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import Elastic, ElasticResolution

IDENTITY = "identity"
# What may stand between a block's input, once it has been added, and its output: no products, no
# norms over a batch. The names of autograd's nodes, before "Backward".
PASSING = (
    *("Add", "Clone", "Alias", "View", "UnsafeView", "ReshapeAlias", "Permute", "Transpose"),
    *("Unsqueeze", "Squeeze", "CopySlices", "NativeDropout", "NativeLayerNorm"),
    *("Relu", "Hardtanh", "Hardswish", "Silu", "Gelu", "LeakyRelu", "Elu"),
)


@checked("space.rules.depth")
@dataclass(frozen=True)
class Depth(Where):
    """Blocks that may go.

    Where no block is named, they are the residual ones (which add their input to what they make)
    that hold no other. A block that is named need only keep the shape, and have weights.

    Args:
        include, exclude: see `Where`.
    """


@checked("space.rules.resolution")
@dataclass(frozen=True)
class Resolution:
    """Sizes of the input.

    Args:
        sizes: sides in pixels, or the length of sequences, besides the given one; None: a half and
            three quarters of it.
    """

    sizes: Sequence[Count] | None = None


def depth_found(model: nn.Module, example: Example, rule: Depth | None = None) -> list[Finding]:
    """What `searched_depth` searches under this rule; of modules that are named, also why not."""
    return _found(model, _observed(model, example), rule or Depth())


def _found(model: nn.Module, seen: Mapping[str, "_Block"], rule: Depth) -> list[Finding]:
    found = []
    for name, module in swappable(model):
        if not name or not rule.takes(name, module):
            continue
        block = seen.get(name, _Block("it does not run"))
        why_not = block.why_not
        if not any(True for _ in module.parameters()):
            why_not = "it has no weights"
        if why_not is not None and rule.named:
            found.append(Finding(name, module, "depth", (), why_not))
        elif why_not is None and (rule.named or block.residual):
            found.append(Finding(name, module, "depth", (IDENTITY, KEPT)))
    if rule.named:
        return found
    # The innermost: a row of residual blocks is one, too.
    return [f for f in found if not any(g.name.startswith(f"{f.name}.") for g in found)]


def searched_depth(model: nn.Module, example: Example, rule: Depth | None = None) -> nn.Module:
    """A copy of `model` in which blocks may go, each on its own.

    Args:
        example: as of `nas.trace`.
        rule: None: all residual blocks.

    Raises:
        UserError: the network's code needs more of a block than to call it.

    Example:
        >>> import nas
        >>> from torchvision.models import resnet18
        >>> supernet = searched_depth(resnet18(), (3, 32, 32))
        >>> [name for name, _ in nas.decisions(supernet)]
        ['layer1.0', 'layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']
    """
    model, seen = copied(model), _observed(model, example)
    found = [f for f in _found(model, seen, rule or Depth()) if f.options]
    blocks = {}
    for name, module, *_ in found:
        skip = First() if seen[name].several else nn.Identity()
        blocks[module] = Skippable({IDENTITY: skip, KEPT: module})
        blocks[module].choose(KEPT)
    made = swapped(model, blocks)
    try:
        with kept_modes(made), torch.no_grad(), torch.random.fork_rng(devices=[]):
            run(made.eval(), inputs_of(example, model))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the code of {type(model).__name__} does more with some of its blocks than to call "
            f"them, exclude those of {', '.join(f.name for f in found)} that it does it with: "
            f"{reason}"
        ) from None
    for block in blocks.values():
        block.free()
    return made


class Skippable(ChoiceBlock):
    """A block that may go, and as the last option is there."""

    ordered = True


class First(nn.Module):
    """The identity of its first argument, whatever else it is given."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def searched_resolution(
    model: nn.Module, example: Example, rule: Resolution | None = None
) -> nn.Module:
    """A copy of `model` whose input is resized to a searched size first.

    Args:
        example: as of `nas.trace`, of one square image or one sequence.

    Raises:
        UserError: `example` is something else, or the network does not run at a size.

    Example:
        >>> import nas
        >>> from torchvision.models import resnet18
        >>> supernet = searched_resolution(resnet18(), (3, 64, 64))
        >>> [(name, decision.options) for name, decision in nas.decisions(supernet)]
        [('resolution', (32, 48, 64))]
    """
    rule, inputs = rule or Resolution(), inputs_of(example, model)
    x = inputs[0] if isinstance(inputs, tuple) and len(inputs) == 1 else None
    if not isinstance(x, Tensor) or x.ndim not in (3, 4) or len(set(x.shape[2:])) != 1:
        shapes = tree_map(lambda x: tuple(x.shape), inputs)
        raise UserError(
            f"the input resolution of one square image or one sequence can be searched, not of "
            f"{shapes}: leave space.rules.resolution out"
        )
    side = x.shape[-1]
    usual = [side // 2, side * 3 // 4] if rule.sizes is None else rule.sizes
    if large := [size for size in usual if size > side]:
        raise UserError(
            f"space.rules.resolution.sizes={list(usual)}: {large[0]} is larger than the input's "
            f"{side}: leave it out"
        )
    sizes = sorted({*(size for size in usual if 0 < size < side), side})
    if len(sizes) == 1:
        raise UserError(
            f"space.rules.resolution.sizes={list(usual)} has none below the input's {side}"
        )
    made = ElasticResolution(copied(model), Elastic(sizes)).train(model.training)
    for size in sizes:
        made.resolution.choose(size)
        try:
            with kept_modes(made), torch.no_grad():
                made.eval()(x)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"{type(model).__name__} does not run at size {size}, leave it out of "
                f"space.rules.resolution.sizes: {reason}"
            ) from None
    made.resolution.free()
    return made


@dataclass(frozen=True)
class _Block:
    """What is seen of a module that runs.

    Attributes:
        why_not: the reason why the network needs it.
        several: whether it takes several arguments.
        residual: whether it adds its input to what it makes.
    """

    why_not: str | None = None
    several: bool = False
    residual: bool = False


def _observed(model: nn.Module, example: Example) -> dict[str, _Block]:
    """What is seen of each module that runs, by name."""
    twin = copied(model).eval().requires_grad_(True)
    names = {module: name for name, module in swappable(twin)}
    seen: dict[str, _Block] = {}
    inputs: list[Tensor | None] = []  # of the modules that run

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args and isinstance(args[0], Tensor) else None
        # A copy, so that its node in autograd's graph is the start of this module alone; by a
        # second one that node is kept where the module works in place.
        start = None if x is None else x.clone()
        inputs.append(start)
        return (args if start is None else (start.clone(), *args[1:])), kwargs

    def leave(module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        x, block = inputs.pop(), seen.get(names[module])
        why_not, residual = None, False
        if x is None or not isinstance(out, Tensor):
            why_not = "it does not make one tensor of one that comes first"
        elif out.shape != x.shape:
            why_not = f"its output {tuple(out.shape)} has another shape than its input"
        else:
            residual = _added(x.grad_fn, out)
        several = len(args) + len(kwargs) > 1
        if block is not None:  # it runs several times
            why_not = block.why_not or why_not
            several, residual = block.several or several, block.residual and residual
        seen[names[module]] = _Block(why_not, several, residual)

    for module in names:
        module.register_forward_pre_hook(enter, with_kwargs=True)
        module.register_forward_hook(leave, with_kwargs=True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        run(twin, tree_map(_with_gradient, inputs_of(example, model)))
    return seen


def _with_gradient(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return torch.randn_like(x).requires_grad_()
    return x


def _added(start: Any, out: Tensor) -> bool:
    """Whether a sum leads from the node `start` of autograd's graph to `out`, without a product."""
    pending, seen = [(out.grad_fn, False)], set()
    while pending:
        node, summed = pending.pop()
        if node is None or (node, summed) in seen:
            continue
        seen.add((node, summed))
        if node is start:
            if summed:
                return True
            continue
        kind = type(node).__name__.partition("Backward")[0]
        if kind in PASSING:
            found = summed or kind == "Add"
            pending += [(before, found) for before, _ in node.next_functions]
    return False
