"""What the cell spaces have in common: edges whose operation is one decision in every cell."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nas.errors import UserError
from nas.ops.blocks import ChannelShuffle
from nas.ops.cell_ops import Factory
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relaxed import Shared


class PartialChannels(nn.Module):
    """Sends the first 1/K of the channels through `op`, the others past it, and shuffles them.

    A K-th of the activations to keep, and less advantage for ops without weights (PC-DARTS, Xu et
    al. 2020, Eq. 3). The network found keeps the bypass, with one op in place of all. Its arch may
    be trained without, in the same space with `partial` at 1.

    Shape: ``(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, op: nn.Module, channels: int, partial: int, stride: int) -> None:
        super().__init__()
        self.op, self.channels = op, channels // partial
        self.bypass = nn.Identity() if stride == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)
        self.shuffle = ChannelShuffle(partial)

    def forward(self, x: Tensor) -> Tensor:
        through, past = x[:, : self.channels], x[:, self.channels :]
        y: Tensor = self.shuffle(torch.cat([self.op(through), self.bypass(past)], 1))
        return y


def edge(
    ops: Mapping[str, Factory],
    channels: int,
    stride: int,
    affine: bool,
    partial: int,
    lead: nn.Module,
) -> nn.Module:
    """A choice among `ops`, the same as that of all blocks that follow the decision `lead`."""
    assert isinstance(lead, Shared)
    candidates = {name: make(channels // partial, stride, affine) for name, make in ops.items()}
    block = ChoiceBlock(candidates, lead=lead)
    return block if partial == 1 else PartialChannels(block, channels, partial, stride)


def check_cells(input_shape: Sequence[int], channels: int, partial: int) -> None:
    """Refuse what no cell space can be built of.

    Raises:
        UserError: naming the argument.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"cell spaces take images (C, H, W), not inputs of shape {tuple(input_shape)}"
        )
    if channels % partial:
        raise UserError(
            f"space.partial={partial} must divide the channels of every cell, {channels} in the "
            f"first: choose another, or a width at which it does"
        )
