"""Peak memory: the bytes of the largest set of activations that are live at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from nas.cost.analytic import Params
from nas.cost.base import Terms
from nas.cost.expected import layer_terms, one_hot
from nas.cost.liveness import peak_terms
from nas.cost.polynomial import Polynomials, reduced, weighted_sum
from nas.cost.trace import Example, Trace, trace
from nas.decision import decisions
from nas.errors import UserError

_SHARPNESS = 0.02  # steps within this part of the peak share its gradient while thetas are even
_ENUMERATED = 4096  # up to as many architectures the mean is over all, else over so many draws


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of the largest set of live activations of the network for one sample.

    A buffer lives from the operator that makes it to the last one that reads it: the input until
    its last use, the output to the end, whatever a skip connection needs as long as it does. While
    an operator runs, its inputs and its outputs are both there. Views and in-place operators share
    a buffer; scratch memory inside a kernel is not counted.

    Args:
        bits: of one activation; a buffer takes whole bytes.
        fuse: BatchNorm and pointwise operators of one input (activations, dropout, scaling by a
            constant) write over that input where nothing needs it later, as runtimes on devices
            do. False: each output has memory of its own, as in eager PyTorch.
        weights: add the parameters that the network stores.
        weight_bits: of one parameter.

    Raises:
        UserError: `bits` or `weight_bits` is no positive whole number.
    """

    bits: int = 32
    fuse: bool = True
    weights: bool = False
    weight_bits: int = 32
    name: str = "peak_memory"
    unit: str = "B"

    def __post_init__(self) -> None:
        for field in ("bits", "weight_bits"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(
                    f"{self.name}: {field} must be a whole number of bits, at least 1 "
                    f"(32: float32, 8: int8), got {value!r}"
                )

    def expected(self, model: nn.Module, example: Example | Trace) -> "ExpectedPeak":
        """The peak memory of the supernet `model`.

        Args:
            example: as for `nas.cost.trace.trace`; or a `Trace` made before.

        Raises:
            UserError: as `trace` does.
        """
        return ExpectedPeak(model, self, example)


class ExpectedPeak:
    """The peak memory of `model` under its present thetas, differentiable in every alpha.

    The cost is the maximum of polynomials in the thetas, `constraints`, and exact where thetas are
    one-hot. In between it is their smooth maximum ``t log sum_r exp(p_r / t)``, whose temperature
    ``t = 0.02 * c * mean_d(1 - sum_k theta_dk^2)`` falls to zero as thetas become one-hot; c is
    the largest p_r at uniform thetas.

    Args:
        model: holds the decisions; their theta is read at every call.
        example: as for `nas.cost.trace.trace`; or a `Trace` made before.

    Raises:
        UserError: as `trace` does.
    """

    def __init__(self, model: nn.Module, cost: PeakMemory, example: Example | Trace) -> None:
        traced = example if isinstance(example, Trace) else trace(model, example)
        self.cost = cost
        self.name, self.unit = cost.name, cost.unit
        self.options = dict(traced.options)
        self.constraints = _constraints(traced, cost)
        self._decisions = dict(decisions(model))
        self._polynomials = Polynomials(self.constraints, self.options)
        uniform = {n: torch.full((k,), 1 / k, dtype=torch.float64) for n, k in self.options.items()}
        self._sharpness = _SHARPNESS * float(self._polynomials(uniform).amax())

    def __call__(self) -> Tensor:
        """Peak bytes, a float64 scalar (float32 where the device has no float64)."""
        return self._relaxed({name: d.theta for name, d in self._decisions.items()})

    def mean(self) -> Tensor:
        """Mean over all architectures; over 4096 of them, drawn, where there are more."""
        return self._polynomials(self._architectures()).amax(-1).mean()

    def of(self, choices: Mapping[str, object]) -> float:
        """Exact peak of the architecture that takes `choices` (decision name -> option)."""
        return float(self._polynomials(one_hot(self._decisions, choices)).amax())

    def _relaxed(self, thetas: Mapping[str, Tensor]) -> Tensor:
        values = self._polynomials(thetas)
        if not thetas:
            return values.amax()
        flat = torch.cat(list(thetas.values())).to(values)
        # One number of all decisions, so that this takes no loop: mean_d(1 - sum_k theta_dk^2).
        spread = 1 - flat.square().sum() / len(thetas)
        # Not zero, by which nothing can be divided; but so small that nothing is added to the
        # maximum, and that its square, in the gradient, is still a number.
        least = torch.finfo(values.dtype).eps ** 2
        temperature = self._sharpness * spread.clamp(min=least)
        top = values.detach().amax()
        return top + temperature * torch.logsumexp((values - top) / temperature, dim=0)

    def _architectures(self) -> dict[str, Tensor]:
        """One-hot thetas ``(B, K)`` of B architectures."""
        counts = self.options.values()
        if prod(counts) <= _ENUMERATED:
            picked = torch.tensor(list(product(*(range(count) for count in counts))))
        else:
            generator = torch.Generator().manual_seed(0)
            columns = [torch.randint(k, (_ENUMERATED,), generator=generator) for k in counts]
            picked = torch.stack(columns, dim=1)
        return {
            name: torch.eye(count, dtype=torch.float64)[picked[:, column]]
            for column, (name, count) in enumerate(self.options.items())
        }


def _constraints(traced: Trace, cost: PeakMemory) -> tuple[Terms, ...]:
    sizes = [-(-size * cost.bits // 8) for size in traced.schedule.sizes]
    peaks = peak_terms(traced.schedule, sizes, traced.options, cost.fuse)
    if not cost.weights:
        return tuple(peaks)
    stored = layer_terms(traced, Params())
    return tuple(
        reduced(weighted_sum([(1, terms), (cost.weight_bits / 8, stored)]), traced.options)
        for terms in peaks
    )
