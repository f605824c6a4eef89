"""The gradient of a theta of 1, from the norm that a candidate ends in.

The output of an affine norm is linear in its weight w and bias b, so that ``<dL/dout, out>`` is
``<dL/dw, w> + <dL/db, b>``. Autograd then need not keep the output, as it does not in a plain
network whose next layer, such as a ReLU, keeps something else.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_NORMS = ("BatchNorm", "LayerNorm", "GroupNorm")  # in the names of autograd's functions
_NAMES = ("weight", "bias")


class LastNorm:
    """The norm that gives the output of a candidate, as found in the graph of its first pass.

    The candidate must use it in the same way ever after: a pass that does not end in it is seen,
    and one that also uses it elsewhere is not.
    """

    def __init__(self) -> None:
        self.path: str | None = None  # of the norm in the candidate; None: not known to end in one
        self.looked = False

    def run(self, op: nn.Module, theta: Tensor, call: Callable[[], Any]) -> tuple[Any, bool]:
        """What `call`, which runs `op`, gives, and whether `theta` gets its gradient by that.

        Args:
            theta: 0-dim, exactly 1.
        """
        if self.path is None:
            out = call()
            if not self.looked:
                self._look(op, out)
            return out, False
        norm, used = op.get_submodule(self.path), _Used()
        own = {name: norm._parameters[name] for name in _NAMES}
        carried = {name: _Carried.apply(value, theta, used) for name, value in own.items()}
        try:
            norm._parameters.update(carried)
            out = call()
        finally:
            norm._parameters.update(own)
        read = _read(out)
        used.last = all(any(node is value.grad_fn for node in read) for value in carried.values())
        if not used.last:
            self.path = None
        return out, used.last

    def _look(self, op: nn.Module, out: Any) -> None:
        read = [getattr(node, "variable", None) for node in _read(out)]
        if not read:
            self.looked = True
            return
        for path, module in op.named_modules():
            own = [module._parameters.get(name) for name in _NAMES]
            if all(p is not None and any(p is one for one in read) for p in own):
                found = list(_uses(out.grad_fn, own))
                self.looked = True  # not before: frozen weights are not in the graph
                self.path = path if len(found) == len(own) else None


class _Used:
    """Whether a pass ended in the norm; else what theta would get from it is no gradient."""

    last = False


class _Carried(torch.autograd.Function):
    """A weight as it is, which was multiplied by a theta of 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, theta: Tensor, used: _Used) -> Tensor:
        ctx.save_for_backward(weight, theta)
        ctx.used = used
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,), (weight, theta) = gradients, ctx.saved_tensors
        score = (gradient * weight).sum().to(theta.dtype) if ctx.used.last else None
        # A second derivative sees that the weight was multiplied.
        moved = gradient * theta if torch.is_grad_enabled() and ctx.used.last else gradient
        return moved, score, None


def _read(out: Any) -> list[Any]:
    """What the norm that gave an output has read; [] where it is not the output of a norm."""
    node = out.grad_fn if isinstance(out, Tensor) else None
    if node is None or not any(name in node.name() for name in _NORMS):
        return []
    return [one for one, _ in node.next_functions if one is not None]


def _uses(node: Any, weights: list[Any]) -> Iterator[Any]:
    """Each use of some weights in the graph that ends in `node`."""
    seen, pending = {node}, [node]
    while pending:
        for one, _ in pending.pop().next_functions:
            if one is None:
                continue
            if any(getattr(one, "variable", None) is weight for weight in weights):
                yield one
            elif one not in seen:
                seen.add(one)
                pending.append(one)
