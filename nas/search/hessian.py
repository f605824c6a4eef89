"""The largest curvature of a loss in the alphas, without forming the Hessian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def dominant_eigenvalue(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    steps: int = 20,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> float:
    """The eigenvalue of largest magnitude of the Hessian of ``loss()``, by power iteration.

    ``v <- Hv / |Hv|``, ``lambda = v^T H v``; ``Hv`` is the gradient of ``grad^T v`` (R-DARTS, Zela
    et al. 2020, Section 4.3).

    Args:
        loss: a scalar, twice differentiable in `parameters`.
        steps: at most so many products ``Hv``.
        tolerance: relative change of lambda at which to stop.
        generator: of the first v.
    """
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    gradient = torch.cat([g.flatten() for g in gradients])
    v = torch.randn(gradient.shape, generator=generator).to(gradient)
    v /= v.norm()
    value = 0.0
    for _ in range(steps):
        products = torch.autograd.grad(
            gradient @ v, parameters, retain_graph=True, materialize_grads=True
        )
        product = torch.cat([p.flatten() for p in products])
        before, value = value, float(v @ product)
        size = float(product.norm())
        if size == 0 or abs(value - before) <= tolerance * abs(value):
            break
        v = product / size
    return value
