"""`ChoiceBlock`: a layer whose operation is searched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.errors import UserError
from nas.supernet.auxiliary import add_skips
from nas.supernet.relax import RELAXATIONS, Relaxation, softmax
from nas.supernet.relaxed import RelaxedDecision
from nas.supernet.temperature import Schedule

StandIn = Literal["ones", "input"]


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
        self.stand_in: StandIn | None = None  # see `Relaxing`
        self.auxiliary: nn.Module | None = None  # beside the candidates, and never in a network

    def gated(self) -> Mapping[Option, nn.Module]:
        return {option: self.candidates[str(option)] for option in self.options}

    def forward(self, x: Tensor) -> Tensor:
        if self.mixing is not None and not self.unrolled:
            return self.mixing(self, x)
        theta = self.theta
        values = [1.0] * len(self.options) if self.unrolled else self._values(theta)
        total: Tensor | None = None
        missing: list[Tensor] = []  # theta of what is not run, 0 in value
        for value, weight, (name, op) in zip(values, theta, self.candidates.items(), strict=True):
            if value == 0:
                missing.append(weight)
                continue
            plain = value == 1 and not weight.requires_grad  # e.g. one path, alphas frozen
            term = op(x) if plain else self._term(op, x, weight)
            if total is not None and term.shape != total.shape:
                raise UserError(self._mismatch(x, name, term, total))
            total = term if total is None else total + term
        assert total is not None  # relaxations never close every option
        if self.auxiliary is not None and not self.unrolled and int(self.open.sum()) > 1:
            total = total + self.auxiliary(x)
        return self._with_stand_in(x, total, missing) if self.stand_in else total

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

    def _with_stand_in(self, x: Tensor, total: Tensor, missing: Sequence[Tensor]) -> Tensor:
        """`total`, with the gradient of thetas that are 0 as if their candidates gave something."""
        if not missing or not missing[0].requires_grad:
            return total
        weight = torch.stack(list(missing)).sum().to(total.dtype)
        if self.stand_in == "ones":
            return total + weight
        return total + weight * x.detach() if x.shape == total.shape else total

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
        function: "softmax", "straight_through" or "sigmoid", see `nas.supernet.relax`.
        gumbel: add Gumbel noise at every draw.
        temperature: progress of the alpha phase in [0, 1] -> tau.
        stand_in: what the alphas' gradient takes candidates that do not run to give: None zeros,
            "ones" all ones (GDAS), "input" the block's input where it has the output's shape.
            None of it is seen: they weigh 0.
        dirichlet: draw from a Dirichlet distribution instead, see `nas.supernet.dirichlet`.
        skip: progress -> beta of a skip beside the candidates, see `nas.supernet.auxiliary`.

    Raises:
        UserError: a function or a stand-in of another name, or two kinds of draws.
    """

    function: str
    gumbel: bool
    temperature: Schedule
    stand_in: str | None = None
    dirichlet: bool = False
    skip: Schedule | None = None

    def __post_init__(self) -> None:
        if self.stand_in not in (None, *get_args(StandIn)):
            raise UserError(
                f"relax.stand_in={self.stand_in!r} is not one of {[None, *get_args(StandIn)]}"
            )
        if self.function not in RELAXATIONS:
            raise UserError(f"relax.function={self.function!r} is not one of {sorted(RELAXATIONS)}")
        if self.gumbel and self.dirichlet:
            raise UserError("relax.gumbel and relax.dirichlet are two kinds of draws: set one")

    def __call__(self, model: nn.Module) -> None:
        """Set it on every relaxed decision of `model`."""
        for module in model.modules():
            if isinstance(module, RelaxedDecision):
                module.relax, module.gumbel = RELAXATIONS[self.function], self.gumbel
                module.dirichlet = self.dirichlet
            if isinstance(module, ChoiceBlock):
                module.stand_in = cast(StandIn | None, self.stand_in)
        if self.skip is not None:
            add_skips((m for m in model.modules() if isinstance(m, ChoiceBlock)), self.skip)
