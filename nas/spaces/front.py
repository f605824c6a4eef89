"""The layer before a stem that makes frames of sound; several forms of it are searched."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from torch import Tensor, nn

from nas.arch import Option
from nas.config.schema import Count, NonNegative, Positive
from nas.decision import Decision, Searchable
from nas.errors import UserError
from nas.ops.logmel import LogMel
from nas.supernet.elastic import weighted_sum
from nas.supernet.relax import RelaxedDecision


@dataclass(frozen=True)
class Front:
    """Log-mel frames of sound in front of the stem, see `nas.ops.logmel.LogMel`.

    The defaults are those of keyword spotting in MLPerf Tiny, but for its 10 `coefficients`.
    Several `window`, `hop` or `mels` are searched: all their combinations are one decision.

    Args:
        rate: samples a second.
        window, hop: milliseconds of a frame, and from one to the next.
        mels: bands between `low` and `high` Hz.
        coefficients: of their cosine transform (MFCC); None: the bands themselves.
        form: "image": frames x bands, one channel; "sequence": a channel for each band.
    """

    rate: Count = 16000
    window: Positive | Sequence[Positive] = 30.0
    hop: Positive | Sequence[Positive] = 20.0
    mels: Count | Sequence[Count] = 40
    coefficients: Count | None = None
    low: NonNegative = 20.0
    high: Positive = 4000.0
    form: Literal["image", "sequence"] = "image"

    def modules(self, input_shape: Sequence[int]) -> dict[str, LogMel]:
        """Each form by its name, ``w480_h320_m40``: samples of a frame and of a hop, bands.

        Raises:
            UserError: a form cannot be, or cannot stand beside the others.
        """
        if len(input_shape) != 2 or input_shape[0] != 1:
            raise UserError(
                f"space.front makes frames of sound, (1, samples), and samples are {input_shape}: "
                "pass space.front=null"
            )
        if not self.low < self.high <= self.rate / 2:
            raise UserError(
                f"space.front: low={self.low:g} and high={self.high:g} must ascend and be at most "
                f"half of rate={self.rate}"
            )
        found = {}
        for window_ms, hop_ms, mels in product(*map(_listed, (self.window, self.hop, self.mels))):
            window, hop = (round(self.rate * ms / 1000) for ms in (window_ms, hop_ms))
            if not (1 < window <= input_shape[1] and hop > 0):
                raise UserError(
                    f"space.front: window={window_ms:g} and hop={hop_ms:g} ms are {window} and "
                    f"{hop} samples: they must fit into the {input_shape[1]} samples of a sound"
                )
            if self.coefficients is not None and self.coefficients > mels:
                raise UserError(
                    f"space.front: coefficients={self.coefficients} must be at most mels={mels}"
                )
            found[f"w{window}_h{hop}_m{mels}"] = LogMel(
                self.rate,
                window,
                hop,
                int(mels),
                self.coefficients,
                self.low,
                self.high,
                self.form == "image",
            )
        if self.form == "sequence" and len({one.norm.num_features for one in found.values()}) > 1:
            raise UserError(
                "space.front.form=sequence has a channel for each band, whose number cannot be "
                "searched: pass one mels, or form=image"
            )
        return found


def _listed(value: float | Sequence[float]) -> Sequence[float]:
    return value if isinstance(value, Sequence) else [value]


class FrontDecision(RelaxedDecision):
    """Which frames a network reads."""

    def active_if(self) -> Mapping[Option, nn.Module]:
        return {}

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """Nothing: `SearchedFront` changes."""
        return nn.Identity()


class SearchedFront(Searchable):
    """A body whose input is made into frames first, of a searched form.

    ``y = sum_k theta_k * body(front_k(x))``.

    Args:
        fronts: name -> what makes frames.
        body: gives the same shape for all of them.
    """

    keeps_parts = True

    def __init__(self, fronts: Mapping[str, nn.Module], body: nn.Module) -> None:
        super().__init__()
        self.front = FrontDecision(tuple(fronts))
        self.fronts, self.body = nn.ModuleDict(fronts), body

    def forward(self, x: Tensor) -> Tensor:
        return weighted_sum(self.front, lambda name: self.body(self.fronts[str(name)](x)))

    def decisions(self) -> tuple[Decision, ...]:
        return (self.front,)

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Sequential:
        front = self.fronts[str(options[self.front])]
        return nn.Sequential(OrderedDict(front=front, body=self.body)).train(self.training)
