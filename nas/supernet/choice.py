"""`ChoiceBlock`: a layer whose operation is searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.errors import UserError
from nas.supernet.relax import RELAXATIONS, Relaxation, softmax
from nas.supernet.relaxed import RelaxedDecision
from nas.supernet.temperature import Schedule


@runtime_checkable
class Scalable(Protocol):
    """An op that multiplies its output by a number more cheaply than by touching every value."""

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale * self(x)`` for a 0-dim scale >= 0."""
        ...


class ChoiceBlock(RelaxedDecision):
    """One searchable layer: the theta-weighted sum of its candidate ops.

    ``y = sum_k theta[k] * op_k(x)``, ``theta = relax((alpha + noise) / tau)``. A candidate whose
    theta is exactly zero (hard sample, `choose`) is not run: its output would not be seen, and
    under softmax a theta of 0 gives neither its weights nor its alpha a gradient.

    Args:
        candidates: name -> op, or ops alone. All map x to the same output shape.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.

    Shape: ``(N, C_in, *S_in) -> (N, C_out, *S_out)``, S = ``(H, W)`` or ``(L,)``.

    Raises:
        UserError: no candidates, a candidate that is no module, or one module given twice.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Sequence[nn.Module],
        relax: Relaxation = softmax,
        gumbel: bool = False,
    ) -> None:
        named = candidates if isinstance(candidates, Mapping) else _named(candidates)
        _check(named)
        super().__init__(tuple(named), relax, gumbel)
        self.candidates = nn.ModuleDict(dict(named))

    def gated(self) -> Mapping[Option, nn.Module]:
        return {option: self.candidates[str(option)] for option in self.options}

    def forward(self, x: Tensor) -> Tensor:
        theta = self.theta
        values = [1.0] * len(self.options) if self.unrolled else self._values(theta)
        total: Tensor | None = None
        for value, weight, (name, op) in zip(values, theta, self.candidates.items(), strict=True):
            if value == 0:
                continue
            plain = value == 1 and not weight.requires_grad  # e.g. one path, alphas frozen
            term = op(x) if plain else self._term(op, x, weight)
            if total is not None and term.shape != total.shape:
                raise UserError(self._mismatch(x, name, term, total))
            total = term if total is None else total + term
        assert total is not None  # relaxations never close every option
        return total

    def _values(self, theta: Tensor) -> list[float]:
        # A compiled graph holds every candidate, and cannot look at values: of all paths it
        # needs none, see `nas.supernet.speed`.
        return [nan] * len(theta) if torch.compiler.is_compiling() else theta.tolist()

    def _term(self, op: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
        # While tracing, layers are read off plain calls, through the hooks of the candidates.
        # Not isinstance: for a Protocol that takes 25 us or more, per candidate and step.
        if hasattr(type(op), "scaled") and not self.unrolled:
            return cast(Scalable, op).scaled(x, weight)
        out: Tensor = op(x)
        return weight * out

    def _mismatch(self, x: Tensor, name: str, term: Tensor, total: Tensor) -> str:
        return (
            f"candidates of one choice block must give the same shape, but for an input "
            f"{tuple(x.shape)} {name!r} gives {tuple(term.shape)} and "
            f"{self.options[0]!r} {tuple(total.shape)}: change its stride, padding or channels"
        )


def _named(candidates: Sequence[nn.Module]) -> dict[str, nn.Module]:
    return {f"{i}_{type(op).__name__}": op for i, op in enumerate(candidates)}


def _check(candidates: Mapping[str, nn.Module]) -> None:
    if not candidates:
        raise UserError("a choice block needs at least one candidate op, got none")
    for name, op in candidates.items():
        if not isinstance(op, nn.Module):
            raise UserError(f"candidate {name!r} must be an nn.Module, got {type(op).__name__}")
        if not isinstance(name, str) or "." in name or not name:
            raise UserError(
                f"candidate name {name!r} must be a string, not empty and without a dot"
            )
        if hasattr(nn.ModuleDict(), name):
            raise UserError(
                f"candidate name {name!r} is an attribute of nn.ModuleDict: choose another"
            )
    if len({id(op) for op in candidates.values()}) < len(candidates):
        raise UserError(
            f"two of the candidates {list(candidates)} are the same module object: "
            "deepcopy one of them, or share an inner module instead"
        )


@dataclass(frozen=True)
class Relaxing:
    """How every decision of a model relaxes its choice, and tau over the search.

    Args:
        function: "softmax" or "straight_through", see `nas.supernet.relax`.
        gumbel: add Gumbel noise at every draw.
        temperature: progress of the alpha phase in [0, 1] -> tau.

    Raises:
        UserError: a function of another name.
    """

    function: str
    gumbel: bool
    temperature: Schedule

    def __post_init__(self) -> None:
        if self.function not in RELAXATIONS:
            raise UserError(f"relax.function={self.function!r} is not one of {sorted(RELAXATIONS)}")

    def __call__(self, model: nn.Module) -> None:
        """Set it on every decision of `model` that can be relaxed."""
        for module in model.modules():
            if isinstance(module, RelaxedDecision):
                module.relax, module.gumbel = RELAXATIONS[self.function], self.gumbel
