"""BatchNorm folded into the layers in front, as a file stores them."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.copying import copied
from nas.errors import UserError
from nas.quantization.layers import QuantizedLayer

_FOLDS = (QuantizedLayer, nn.Conv1d, nn.Conv2d, nn.Linear)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Not those of other classes without children: their code may not be made for it, either.
        return isinstance(m, QuantizedLayer) or not any(m.children())


def folded(network: nn.Module) -> nn.Module:
    """A copy in eval mode without the BatchNorms that alone read the output of a layer.

    ``g = gamma / sqrt(var + eps)``, ``w' = g w``, ``b' = g (b - mean) + beta``; of a quantised
    layer ``s' = |g| s``, and the levels of its weight stay as they are, but for the sign of g.

    Args:
        network: plain, of a forward pass that `torch.fx` can follow.

    Raises:
        UserError: it cannot be followed.
    """
    made = copied(network).eval()
    try:
        graph = _Tracer().trace(made)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"BatchNorm cannot be folded: torch.fx cannot follow the forward pass of "
            f"{type(network).__name__} ({said})"
        ) from error
    calls: dict[Any, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(made.get_submodule(node.target), _BatchNorm):
            continue
        source = node.args[0]
        while _is_identity(made, source):
            source = source.args[0] if len(source.users) == 1 else None
        alone = isinstance(source, fx.Node) and source.op == "call_module"
        if not alone or len(source.users) != 1 or calls[source.target] + calls[node.target] > 2:
            continue
        layer, norm = made.get_submodule(source.target), made.get_submodule(node.target)
        assert isinstance(norm, _BatchNorm)
        if isinstance(layer, _FOLDS) and norm.running_mean is not None:
            _fold(layer, norm)
            parent, _, name = str(node.target).rpartition(".")
            setattr(made.get_submodule(parent), name, nn.Identity())
    return made


def _is_identity(network: nn.Module, node: Any) -> bool:
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return is_call and isinstance(network.get_submodule(str(node.target)), nn.Identity)


@torch.no_grad()
def _fold(layer: Any, norm: _BatchNorm) -> None:
    assert isinstance(norm.running_mean, Tensor)
    assert isinstance(norm.running_var, Tensor)
    gain = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
    if norm.affine:
        gain = gain * norm.weight
    shift = shift * gain + (norm.bias if norm.affine else 0)
    across = gain.view(-1, *[1] * (layer.weight.ndim - 1))
    if isinstance(layer, QuantizedLayer):
        quantizer = layer.weight_quantizer
        signed = quantizer.integers(layer.weight) * across.sign()
        quantizer.step.mul_(gain.abs())
        # At the middle of each level, so that no rounding error moves a weight to another one.
        layer.weight.copy_(signed * quantizer.size.view_as(across))
    else:
        layer.weight.mul_(across)
    layer.bias = nn.Parameter(shift.clone(), requires_grad=layer.weight.requires_grad)
