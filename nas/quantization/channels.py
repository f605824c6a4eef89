"""Bits that differ between the output channels of a layer, as one decision."""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from math import comb

import torch
from torch import Tensor, nn

from nas.arch import Option
from nas.decision import Decision
from nas.errors import UserError
from nas.supernet.elastic import Number, options_of
from nas.supernet.relax import RelaxedDecision

_MOST_OPTIONS = 200  # of one decision: each is a layer of its own where costs are read


class ChannelBits(RelaxedDecision):
    """How many output channels of a layer have how many bits.

    The channels are split into parts, in the order of their importance. A part that comes before
    another one has no fewer bits, so that an option says how many parts have each width:
    "1x2+3x8", or 8 where all have 8. Sizes of rows add up, and so the cost of an option is exact.

    Args:
        widths: of the weights of a channel.
        parts: that the channels are split into.

    Raises:
        UserError: more than 200 options.

    Example:
        >>> from nas.quantization.channels import ChannelBits
        >>> ChannelBits([2, 4, 8], 2).options
        (2, '1x2+1x4', 4, '1x2+1x8', '1x4+1x8', 8)
    """

    ordered = True

    def __init__(self, widths: Sequence[int], parts: int) -> None:
        count = comb(parts + len(widths) - 1, parts)
        if count > _MOST_OPTIONS:
            raise UserError(
                f"quantize.channels={parts} and {len(widths)} widths give {count} options for each "
                f"layer, more than {_MOST_OPTIONS}: give fewer parts, or fewer widths"
            )
        found = combinations_with_replacement(sorted(widths, reverse=True), parts)
        self.by_part = sorted(found, key=lambda taken: (sum(taken), taken))
        super().__init__([_label(taken) for taken in self.by_part])
        self.widths = tuple(sorted(widths))

    def active_if(self) -> Mapping[Option, nn.Module]:
        return {}

    def materialize(self, options: Mapping[Decision, Option]) -> nn.Module:
        """Nothing: the layers that read it change, not this one."""
        return nn.Identity()

    def by_rank(self, option: Option, channels: int) -> list[int]:
        """Bits of each of so many channels, from the most important one on."""
        by_part = self.by_part[self.options.index(option)]
        return [by_part[rank * len(by_part) // channels] for rank in range(channels)]

    def shares(self, theta: Tensor, width: int, rank: Tensor) -> Tensor:
        """The probability that each channel has `width` bits, of channels of this `rank` ``(C,)``.

        Rank 0 is the most important channel.
        """
        has = torch.tensor([[bits == width for bits in taken] for taken in self.by_part])
        by_part: Tensor = theta @ has.to(theta)
        return by_part[rank * len(by_part) // len(rank)]

    def may_have(self, width: int) -> bool:
        """Whether an open option gives `width` bits to a part."""
        opened = zip(self.by_part, self.open.tolist(), strict=True)
        return any(is_open and width in taken for taken, is_open in opened)


def widths_of(bits: Number | ChannelBits) -> tuple[int, ...]:
    """The numbers of bits that a channel may have, in ascending order."""
    return bits.widths if isinstance(bits, ChannelBits) else options_of(bits)


def _label(taken: Sequence[int]) -> Option:
    if len(set(taken)) == 1:
        return taken[0]
    return "+".join(f"{taken.count(bits)}x{bits}" for bits in sorted(set(taken)))
