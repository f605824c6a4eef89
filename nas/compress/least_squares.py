"""Weights of smaller layers that compute what a trained layer does, as nearly as they can.

Each function gives the W' of its form with a small ``|W - W'|_G^2 = tr((W - W') G (W - W')^T)``,
see `nas.compress.moments`, and starts from what is usual without data: the truncated singular
value decomposition, or the weights that are left. A small ridge on the way from there keeps
directions that the data do not show as they were; so no result is worse than its start.

Shapes: W ``(O, F)``, or ``(O, C, *K)``; G ``(F, F)``.
"""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.func import vjp

RIDGE = 1e-9  # of the mean eigenvalue of what is inverted
ROUNDS, STEPS = 6, 20


def change(W: Tensor, made: Tensor, G: Tensor) -> Tensor:
    """``|W - W'|_G^2``, a 0-dim tensor."""
    left = (W - made).flatten(1)
    found: Tensor = ((left @ G) * left).sum()
    return found


def regressed(W: Tensor, G: Tensor, basis: Tensor, start: Tensor) -> Tensor:
    """X of least ``|W - X B|_G^2``, which has a closed form: ``(W G B^T) (B G B^T)^-1``.

    Shape: W ``(O, F)``, basis B ``(R, F)``, start and X ``(O, R)``.
    """
    seen = basis @ G
    inner = seen @ basis.mT
    inner.diagonal().add_(RIDGE * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
    rest = (W - start @ basis) @ seen.mT
    step: Tensor = torch.linalg.solve(inner, rest.mT)
    return start + step.mT


def part(W: Tensor, G: Tensor, columns: Tensor) -> Tensor:
    """The weights of some columns, where the others are 0: ``(O, len(columns))``.

    Of a group of channels, or of the taps that are left.
    """
    seen = G[columns]  # as `regressed`, whose basis would be rows of the identity
    inner = seen[:, columns]
    inner.diagonal().add_(RIDGE * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
    gone = W.clone()
    gone[:, columns] = 0
    step: Tensor = torch.linalg.solve(inner, seen @ gone.mT)
    return W[:, columns] + step.mT


def low_rank(W: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``U (U^T W)``, U the leading eigenvectors of ``W G W^T``: the best of that rank.

    Reduced rank regression of the outputs on the patches (Izenman 1975), here the principal
    components of the outputs (Zhang et al. 2015). Returns ``(O, rank)`` and ``(rank, F)``.
    """
    _, vectors = torch.linalg.eigh(W @ G @ W.mT)
    U = vectors[:, -rank:].flip(1)
    return U, U.mT @ W


def depthwise_pointwise(W: Tensor, G: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """``W'[o, c, k] = sum_m P[o, c, m] D[c, m, k]``: D ``(C, m, *K)`` and P ``(O, C m)``.

    From the singular value decomposition of each channel's ``(O, K)``, in turns: P in closed form,
    D by conjugate gradients.
    """
    outputs, inputs, *K = W.shape
    u, s, v = torch.linalg.svd(W.reshape(outputs, inputs, -1).transpose(0, 1), full_matrices=False)
    D = v[:, :multiplier]  # (C, m, prod(K))
    P = (u[..., :multiplier] * s[:, None, :multiplier]).transpose(0, 1)  # (O, C, m)
    flat = W.reshape(outputs, -1)
    eye = torch.eye(inputs, dtype=W.dtype)
    for turn in range(ROUNDS + 1):
        basis = torch.einsum("cmk,cd->cmdk", D, eye).reshape(-1, flat.shape[1])
        P = regressed(flat, G, basis, P.reshape(outputs, -1)).reshape(P.shape)
        if turn < ROUNDS:

            def made(D: Tensor, P: Tensor = P) -> Tensor:
                return torch.einsum("ocm,cmk->ock", P, D).flatten(1)

            D = descended(flat, G, made, D)
    return D.reshape(inputs, -1, *K), P.reshape(outputs, -1)


def separable(W: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``W'[o, c, i, j] = sum_r V[o, r, j] U[r, c, i]``: U ``(r, C, Kh)`` and V ``(O, r, Kw)``.

    A vertical and a horizontal convolution (Jaderberg et al. 2014), found as those of
    `depthwise_pointwise`.
    """
    outputs, inputs, high, wide = W.shape
    u, s, v = torch.linalg.svd(
        W.permute(1, 2, 0, 3).reshape(inputs * high, -1), full_matrices=False
    )
    root = s[:rank].sqrt()
    U = (u[:, :rank] * root).mT.reshape(rank, inputs, high)
    V = (v[:rank] * root[:, None]).reshape(rank, outputs, wide).transpose(0, 1)
    flat, eye = W.reshape(outputs, -1), torch.eye(wide, dtype=W.dtype)
    for turn in range(ROUNDS + 1):
        basis = torch.einsum("rci,jl->rjcil", U, eye).reshape(rank * wide, -1)
        V = regressed(flat, G, basis, V.reshape(outputs, -1)).reshape(V.shape)
        if turn < ROUNDS:

            def made(U: Tensor, V: Tensor = V) -> Tensor:
                return torch.einsum("orj,rci->ocij", V, U).flatten(1)

            U = descended(flat, G, made, U)
    return U, V


def descended(W: Tensor, G: Tensor, made: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Some steps of conjugate gradients from `start` towards the least ``|W - made(x)|_G^2``.

    Args:
        made: linear.
    """
    x = start
    pulled = vjp(made, x)[1]
    rest = pulled((W - made(x)) @ G)[0]  # minus half the gradient
    direction, size = rest, rest.square().sum()
    for _ in range(min(STEPS, prod(x.shape))):
        step = made(direction)
        seen = step @ G
        curvature = (seen * step).sum()
        if not curvature > 0 or not size > 0:  # the data say no more
            break
        along = size / curvature
        x = x + along * direction
        rest = rest - along * pulled(seen)[0]
        old, size = size, rest.square().sum()
        direction = rest + size / old * direction
    return x
