"""Peak memory: the bytes of the largest set of activations that are live at once."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nas.cost.analytic import Params
from nas.cost.base import Polynomial, Term
from nas.cost.expected import ExpectedTerms, layer_terms
from nas.cost.liveness import peak_terms
from nas.cost.polynomial import Polynomials, reduced, weighted_sum
from nas.cost.trace import Example, Trace, trace
from nas.errors import UserError


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


class ExpectedPeak(ExpectedTerms):
    """The peak memory of `model` under its present thetas, differentiable in every alpha.

    ``E[max_r p_r]``: the mean over architectures, each with its probability, of the exact peak,
    which is the maximum of polynomials in thetas; see `nas.cost.maximum` for what is approximated
    where many decisions act on one step. One-hot thetas give the exact peak of that network.

    Args:
        model: holds the decisions; their theta is read at every call.
        example: as for `nas.cost.trace.trace`; or a `Trace` made before.

    Raises:
        UserError: as `trace` does.
    """

    def __init__(self, model: nn.Module, cost: PeakMemory, example: Example | Trace) -> None:
        traced = example if isinstance(example, Trace) else trace(model, example)
        self.cost = cost
        sizes = [-(-size * cost.bits // 8) for size in traced.schedule.sizes]
        peaks = peak_terms(traced.schedule, sizes, traced.options, cost.fuse)
        self._stored = _stored(traced, cost.weight_bits) if cost.weights else {}
        self._weights = Polynomials([self._stored], traced.options)
        # Stored weights depend on every decision: added afterwards, they leave the tables small.
        super().__init__(model, cost.name, cost.unit, peaks, traced.options)

    @property
    def constraints(self) -> tuple[Polynomial, ...]:
        """Polynomials that are all at most a budget where the cost is; the cost is the largest."""
        sums = (weighted_sum([(1, peak), (1, self._stored)]) for peak in self.rows)
        return tuple(reduced(terms, self.options) for terms in sums)

    def at(self, thetas: Mapping[str, Tensor]) -> Tensor:
        """Expected cost under these thetas ``(K_d,)``."""
        peak = super().at(thetas)
        return peak + self._weights(thetas)[0] if self._stored else peak


def _stored(traced: Trace, bits: int) -> dict[Term, float]:
    """Bytes of the parameters that are stored."""
    return weighted_sum([(bits / 8, layer_terms(traced, Params()))])
