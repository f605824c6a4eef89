"""`ChoiceBlock`: a layer whose operation is searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.errors import UserError
from nas.supernet.auxiliary import add_skips
from nas.supernet.dirichlet import dirichlet_noise, log_dirichlet
from nas.supernet.relax import RELAXATIONS, Relaxation, gumbel_noise, softmax
from nas.supernet.temperature import Schedule


@runtime_checkable
class Scalable(Protocol):
    """An op that multiplies its output by a number more cheaply than by touching every value."""

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """``scale * self(x)`` for a 0-dim scale >= 0."""
        ...


class Relaxed(Decision):
    """A decision whose theta is a function of its logits: ``relax((alpha + noise) / tau)``.

    Args:
        options: the names of the alternatives.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.
        lead: a decision to follow, see `Decision`.
    """

    def __init__(
        self,
        options: Sequence[Option],
        relax: Relaxation = softmax,
        gumbel: bool = False,
        lead: Decision | None = None,
    ) -> None:
        super().__init__(options, lead)
        self.relax, self.gumbel = relax, gumbel
        self.dirichlet = False  # draw from Dir(elu(alpha) + 1); noise is then log of the draw

    @property
    def logits(self) -> Tensor:
        if not self.dirichlet:
            return super().logits
        drawn = log_dirichlet(self.alpha.float(), self.noise) / self.tau
        return drawn.masked_fill(~self.open, -torch.inf)

    @property
    def theta(self) -> Tensor:
        return self.relax(self.logits)

    def resample(self, generator: torch.Generator | None = None) -> None:
        if self.dirichlet:
            self.noise.copy_(dirichlet_noise(self.alpha.detach(), generator))
        elif self.gumbel:
            self.noise.copy_(gumbel_noise(self.noise, generator))


class Shared(Relaxed):
    """A decision that stands apart from the blocks that carry it out, all of which follow it.

    So that its name does not depend on how many there are, or where.
    """

    def gated(self) -> Mapping[Option, nn.Module]:
        return dict.fromkeys(self.options, nn.Identity())


class ChoiceBlock(Relaxed):
    """One searchable layer: the theta-weighted sum of its candidate ops.

    ``y = sum_k theta[k] * op_k(x)``, ``theta = relax((alpha + noise) / tau)``. A candidate whose
    theta is exactly zero (hard sample, `choose`) is not run: its output would not be seen, and
    under softmax a theta of 0 gives neither its weights nor its alpha a gradient.

    Args:
        candidates: name -> op, or ops alone. All map x to the same output shape.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.
        lead: a decision to follow, see `Decision`.

    Shape: ``(N, C_in, *S_in) -> (N, C_out, *S_out)``, S = ``(H, W)`` or ``(L,)``.

    Raises:
        UserError: no candidates, a candidate that is no module, or one module given twice.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Sequence[nn.Module],
        relax: Relaxation = softmax,
        gumbel: bool = False,
        lead: Decision | None = None,
    ) -> None:
        named = candidates if isinstance(candidates, Mapping) else _named(candidates)
        _check(named)
        super().__init__(tuple(named), relax, gumbel, lead)
        self.candidates = nn.ModuleDict(dict(named))
        self.auxiliary: nn.Module | None = None  # beside the candidates, and never in a network

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
        if self.auxiliary is not None and not self.unrolled and int(self.open.sum()) > 1:
            total = total + self.auxiliary(x)
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
    """How every choice block of a model relaxes its choice, and tau over the search.

    Args:
        function: "softmax", "straight_through" or "sigmoid", see `nas.supernet.relax`.
        gumbel: add Gumbel noise at every draw.
        temperature: progress of the alpha phase in [0, 1] -> tau.
        dirichlet: draw from a Dirichlet distribution instead, see `nas.supernet.dirichlet`.
        skip: progress -> beta of a skip beside the candidates, see `nas.supernet.auxiliary`.

    Raises:
        UserError: a function of another name, or two kinds of draws.
    """

    function: str
    gumbel: bool
    temperature: Schedule
    dirichlet: bool = False
    skip: Schedule | None = None

    def __post_init__(self) -> None:
        if self.function not in RELAXATIONS:
            raise UserError(f"relax.function={self.function!r} is not one of {sorted(RELAXATIONS)}")
        if self.gumbel and self.dirichlet:
            raise UserError("relax.gumbel and relax.dirichlet are two kinds of draws: set one")

    def __call__(self, model: nn.Module) -> None:
        """Set it on every relaxed decision of `model`."""
        for module in model.modules():
            if isinstance(module, Relaxed):
                module.relax, module.gumbel = RELAXATIONS[self.function], self.gumbel
                module.dirichlet = self.dirichlet
        if self.skip is not None:
            add_skips((m for m in model.modules() if isinstance(m, ChoiceBlock)), self.skip)
