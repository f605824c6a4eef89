"""How much each option of each decision adds to the loss, measured one decision at a time."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision, decisions, free
from nas.errors import UserError
from nas.quantization.layers import SearchedBits

Loss = Callable[[nn.Module], float]
Sensitivity = Mapping[str, Mapping[Option, float]]


@torch.no_grad()
def sensitivity(model: nn.Module, loss: Loss) -> dict[str, dict[Option, float]]:
    """Decision -> option -> loss with that option, minus the loss without; others at their best.

    "Best" is the last option of a number, as 8 bits, and that of the largest alpha of others. As a
    model of a whole architecture the differences add up, which is exact where decisions do not
    act on each other; that is how post-training mixed precision is mostly chosen (Dong et al.
    2020, HAWQ-V2, with the trace of the Hessian instead of the loss itself).

    Args:
        model: a supernet with trained weights, e.g. of `nas.quantization.network.quantized`; its
            decisions are open afterwards.
        loss: of the model as it is chosen, over the same calibration data each time.

    Raises:
        UserError: nothing to decide, or a loss that is not finite.
    """
    own = dict(decisions(model))
    if not own:
        raise UserError("the model has no decision whose options could be compared")
    usual = {name: _usual(decision) for name, decision in own.items()}
    for name, decision in own.items():
        decision.choose(usual[name])
    base, found = loss(model), {}
    for name, decision in own.items():
        found[name] = dict.fromkeys(decision.options, 0.0)
        for option in decision.options:
            if option != usual[name]:
                decision.choose(option)
                found[name][option] = loss(model) - base
        decision.choose(usual[name])
    free(model)
    values = [value for options in found.values() for value in (*options.values(), base)]
    if not all(torch.isfinite(torch.tensor(values))):
        raise UserError(
            "a loss is not finite: the sensitivity of a trained network can be measured"
        )
    return found


def order_channels(model: nn.Module, losses: Callable[[nn.Module], Iterable[Tensor]]) -> None:
    """Rank the output channels of each layer whose channels may differ in bits, by the loss.

    The importance of a channel is ``sum_batches (g . e)^2``: g is the gradient of the loss by its
    weights, and e what rounding to the fewest bits adds to them. That is the Fisher estimate of the
    change of the loss (Theis et al. 2018, Fisher pruning, there with ``e = -w``). It starts as
    ``|e|^2 / |w|^2``, which knows no data.

    Args:
        model: a supernet with trained weights; its decisions are open afterwards.
        losses: of the model on some batches, one after the other, with their gradients.
    """
    layers = [m for m in model.modules() if isinstance(m, SearchedBits) and m.ranks_channels]
    if not layers:
        return
    for _, decision in decisions(model):
        decision.choose(_usual(decision))
    scores = [torch.zeros(len(layer.weight), device=layer.weight.device) for layer in layers]
    with torch.enable_grad():
        for loss in losses(model):
            found = torch.autograd.grad(loss, [m.weight for m in layers], allow_unused=True)
            for score, layer, grad in zip(scores, layers, found, strict=True):
                if grad is not None:  # a layer inside an operation that is not taken
                    score += (grad.flatten(1) * layer.rounding_error).sum(1).square()
    for layer, score in zip(layers, scores, strict=True):
        if bool(score.any()):
            layer.order(score)
    free(model)


def _usual(decision: Decision) -> Option:
    return decision.options[-1] if decision.ordered else decision.best()


@torch.no_grad()
def set_prior(model: nn.Module, found: Sensitivity, scale: float = 1.0) -> None:
    """``alpha_k = -scale * loss difference of option k``.

    `nas.selection.select` then gives the architecture of the least sum of differences inside the
    budgets, exactly; and a search starts from there, closer the larger `scale` is.
    """
    for name, decision in decisions(model):
        if name in found:
            values = [-scale * found[name][option] for option in decision.options]
            decision.alpha.copy_(torch.tensor(values))
