"""`ChoiceBlock`: a layer whose operation is searched, and `Relaxing`, which sets how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nas.arch import Option
from nas.config.schema import checked
from nas.copying import copied
from nas.decision import Decision
from nas.errors import UserError
from nas.ops.blocks import FactorizedReduce
from nas.supernet.candidates import Outputs, call, check, chosen, mixable, named
from nas.supernet.inplace import guard
from nas.supernet.last_norm import LastNorm
from nas.supernet.relax import RELAXATIONS, Relaxation, RelaxedDecision, Schedule, one_path, softmax
from nas.supernet.straight_through import (
    Outcomes,
    Reader,
    Recompute,
    with_theta_gradient,
    with_weight_gradient,
)

StandIn = Literal["ones", "input"]


class ChoiceBlock(RelaxedDecision):
    """One searchable layer: the theta-weighted sum of its candidate ops.

    ``y = sum_k theta[k] * op_k(x)``, ``theta = relax((alpha + noise) / tau)``. Every candidate gets
    the arguments of the block, positional and by keyword. `nas.supernet.candidates` says how
    outputs of several tensors are mixed, `nas.supernet.inplace` how an op that writes on its input
    is kept from changing that of the others.

    A candidate whose theta is exactly zero (hard sample, `choose`) is not part of the output, and
    its weights get no gradient (None, so that no optimizer moves them). If it is open, it runs in
    the backward pass, without a gradient of its own, for the gradient of its theta; but not under
    `one_path`. See `nas.supernet.straight_through`.

    Args:
        candidates: name -> op, or ops alone. All map x to the same output shape.
        relax: logits ``(K,)`` -> weights ``(K,)``; see `nas.supernet.relax`.
        gumbel: add Gumbel noise to alpha at every `resample`.
        tied_to: see `Decision`.

    Shape: ``(N, C_in, *S_in) -> (N, C_out, *S_out)``, S = ``(H, W)`` or ``(L,)``; or whatever else
    all candidates take and give.

    Raises:
        UserError: no candidates, a candidate that is no module, or one module given twice; in the
            forward pass, candidates that differ in what they give, or cannot be called so.

    Example:
        >>> import nas, torch
        >>> from torch import nn
        >>> block = nas.ChoiceBlock({"wide": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity()})
        >>> block.options, block.theta.tolist()
        (('wide', 'skip'), [0.5, 0.5])
        >>> block(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Sequence[nn.Module],
        relax: Relaxation = softmax,
        gumbel: bool = False,
        tied_to: Decision | None = None,
    ) -> None:
        ops = candidates if isinstance(candidates, Mapping) else named(candidates)
        check(ops)
        super().__init__(tuple(ops), relax, gumbel, tied_to)
        self.candidates = nn.ModuleDict(dict(ops))
        for op in self.candidates.values():
            guard(op)
        self.stand_in: StandIn | None = None  # see `Relaxing`
        self.auxiliary: nn.Module | None = None  # beside the candidates, and never in a network
        self.reader = Reader()
        self.norms: dict[str, LastNorm] = {}  # by option

    def active_if(self) -> Mapping[Option, nn.Module]:
        return {option: self.candidates[str(option)] for option in self.options}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.mixing is not None and not self.unrolled:
            return self.mixing(self, args, kwargs)
        # A trace looks at shapes alone, and PyTorch loads its compiler to sum without memory.
        theta = self.noise if self.unrolled else self.theta
        # A compiled graph holds every candidate and cannot look at values; it is used only where
        # all run, see `nas.supernet.speed`.
        blind = self.unrolled or torch.compiler.is_compiling()
        values = [nan] * len(self.options) if blind else theta.tolist()
        running = [k for k, value in enumerate(values) if value != 0]
        if len(running) == 1 and values[running[0]] == 1:
            all_learn = theta.requires_grad and self.relax is not one_path
            others = self._others(running[0]) if all_learn else ()
            total = self.run_one(theta, running[0], others, args, kwargs)
        else:
            total = self._mixed(theta, running, args, kwargs)
        if self.auxiliary is not None and self._searched():
            total = total + self.auxiliary(*args, **kwargs)
        return total

    def _searched(self) -> bool:
        """Whether several options are open, and this is no trace."""
        if self.unrolled:
            return False
        return torch.compiler.is_compiling() or int(self.open.sum()) > 1

    def run_one(
        self, theta: Tensor, index: int, others: Sequence[int], args: Any, kwargs: Any
    ) -> Any:
        """The output of one candidate; those of `others` run backward, for theta's gradient.

        `theta` is exactly 1 at `index`.
        """
        if not theta.requires_grad:
            return self._run(index, args, kwargs)
        inputs, weight = (args, kwargs), theta[index]
        scaled = self._scaled(index)
        if scaled:
            out = self._run(index, args, kwargs, weight)
        else:
            name = str(self.options[index])
            norm = self.norms.setdefault(name, LastNorm())
            out, scaled = norm.run(
                self.candidates[name], weight, lambda: self._run(index, args, kwargs)
            )
        outputs = Outputs(str(self.options[index]), out, inputs)
        tensors = outputs.tensors()
        if not tensors:
            return out

        def recompute(inputs: Any) -> Outcomes:
            for k in others:
                leaves = outputs.like(str(self.options[k]), self._run(k, *inputs))
                yield [k], outputs.tensors(leaves)

        fixed = [False] * len(tensors)
        if not scaled:
            tensors, fixed = with_weight_gradient(tensors, weight, self.reader, inputs)
        if others:
            tensors = with_theta_gradient(tensors, theta, recompute, inputs, fixed)
        elif self.stand_in and self.relax is one_path:
            tensors = with_theta_gradient(
                tensors, theta, *self._stand_in(index, tensors, inputs), fixed
            )
        return outputs.with_tensors(tensors)

    def _scaled(self, index: int) -> bool:
        """Whether the candidate multiplies its output by theta itself, see `Scalable`."""
        # While tracing, layers are read off plain calls, through the hooks of the candidates.
        # Not isinstance: for a Protocol that takes 25 us or more, per candidate and step.
        return not self.unrolled and hasattr(
            type(self.candidates[str(self.options[index])]), "scaled"
        )

    def _others(self, index: int) -> list[int]:
        """Indices of the other open options."""
        return [k for k, is_open in enumerate(self.open.tolist()) if is_open and k != index]

    def _run(self, index: int, args: Any, kwargs: Any, scale: Tensor | None = None) -> Any:
        name = str(self.options[index])
        return call(name, self.candidates[name], args, kwargs, scale)

    def _mixed(self, theta: Tensor, running: Sequence[int], args: Any, kwargs: Any) -> Any:
        """The weighted sum of the candidates in `running`."""
        outputs: Outputs | None = None
        totals: list[Any] = []  # of each leaf the sum, or what each candidate gives
        weights = theta.unbind() if not self.unrolled else ()
        for k in running:
            name = str(self.options[k])
            scaled = self._scaled(k)
            out = self._run(k, args, kwargs, weights[k] if scaled else None)
            if outputs is None:
                outputs = Outputs(name, out, (args, kwargs))
                leaves, totals = outputs.leaves, [[] for _ in outputs.leaves]
            else:
                leaves = outputs.like(name, out)
            for i, leaf in enumerate(leaves):
                if not mixable(leaf):
                    totals[i].append(leaf)
                    continue
                if self.unrolled:
                    totals[i] = leaf
                    continue
                term = leaf if scaled else weights[k] * leaf
                totals[i] = term if isinstance(totals[i], list) else totals[i] + term
        assert outputs is not None  # relaxations never close every option
        open_theta = theta if len(running) == len(theta) else theta[list(running)]
        return outputs.whole(
            [chosen(total, open_theta) if isinstance(total, list) else total for total in totals]
        )

    def _stand_in(
        self, index: int, tensors: Sequence[Tensor], inputs: Any
    ) -> tuple[Recompute, Any]:
        """The assumed outputs of candidates that do not run, and the input they are made of."""
        others = self._others(index)
        x = next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor))
        if self.stand_in == "ones":
            ones = [x.new_ones(())] * len(tensors)
            return lambda _: iter([(others, ones)]), ()
        fits = [tensor.shape == x.shape for tensor in tensors]
        return lambda x: iter([(others, [x if fit else x.new_zeros(()) for fit in fits])]), x


class AuxiliarySkip(nn.Module):
    """``beta * skip(x)`` beside the candidates, faded out while searching (DARTS-).

    ``y = sum_k theta_k op_k(x) + beta skip(x)``, beta from 1 to 0 (Chu et al. 2021, Eq. 6): it
    takes over what a skip does for the flow of gradients, so that the skip among the candidates is
    judged by what it computes. It is part of no extracted network and of no cost.
    """

    beta: Tensor

    def __init__(self, skip: nn.Module, schedule: Schedule) -> None:
        super().__init__()
        self.skip, self.schedule = skip, schedule
        self.register_buffer("beta", torch.tensor(float(schedule(0.0))))

    def advance(self, progress: float) -> None:
        """Set beta to its value when `progress` in [0, 1] of the search is done."""
        self.beta.fill_(self.schedule(min(1.0, progress)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.beta * self.skip(x)
        return y


def _add_skips(blocks: Sequence[ChoiceBlock], schedule: Schedule) -> None:
    """Give a skip to every block that offers one, of the same kind and with weights of its own."""
    found = False
    for block in blocks:
        for op in block.candidates.values():
            if isinstance(op, nn.Identity | FactorizedReduce):
                own = copied(op)
                for module in own.modules():
                    if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                        module.reset_parameters()
                block.auxiliary = AuxiliarySkip(own, schedule)
                found = True
    if not found:
        raise UserError(
            "relax.skip stands beside candidates that are skips, and this space has none: choose "
            "a space with identity or skip_connect, or a relaxation without"
        )


@checked("relax")
@dataclass(frozen=True)
class Relaxing:
    """How the decisions of a model relax their choices, and the temperature over the search.

    Args:
        function: one of `nas.supernet.relax.RELAXATIONS`.
        gumbel: add Gumbel noise at every draw.
        temperature: progress of the alpha phase in [0, 1] -> tau.
        stand_in: of `one_path`, the assumed outputs of candidates that do not run, for the gradient
            of alphas: None zeros, "ones" all ones (GDAS), "input" the block's first input where it
            has the output's shape. None of them is part of the output.
        dirichlet: draw from a Dirichlet distribution instead (DrNAS).
        skip: progress -> beta of an `AuxiliarySkip` in every block; None: no such skip.

    Raises:
        UserError: a function or a stand-in of another name, a stand-in where every candidate runs,
            two kinds of draws, or, when applied, a skip in a space without skips.
    """

    function: str
    gumbel: bool
    temperature: Schedule
    stand_in: StandIn | None = None
    dirichlet: bool = False
    skip: Schedule | None = None

    def __post_init__(self) -> None:
        if self.function not in RELAXATIONS:
            raise UserError(f"relax.function={self.function!r} is not one of {sorted(RELAXATIONS)}")
        if self.stand_in is not None and self.function != "one_path":
            raise UserError(
                f"relax.stand_in={self.stand_in!r} is for candidates that do not run, and under "
                f"relax.function={self.function!r} all run: take relax.function=one_path"
            )
        if self.gumbel and self.dirichlet:
            raise UserError("relax.gumbel and relax.dirichlet are two kinds of draws: set one")

    def __call__(self, model: nn.Module) -> None:
        """Make every relaxed decision of `model` use it."""
        blocks = [module for module in model.modules() if isinstance(module, ChoiceBlock)]
        for module in model.modules():
            if isinstance(module, RelaxedDecision):
                module.relax, module.gumbel = RELAXATIONS[self.function], self.gumbel
                module.dirichlet = self.dirichlet
        for block in blocks:
            block.stand_in = self.stand_in
        if self.skip is not None:
            _add_skips(blocks, self.skip)
