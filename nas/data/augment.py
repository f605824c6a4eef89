"""Random changes of a whole batch of images, in the type they come in.

Each is a function of the batch and of a generator, the only source of its randomness. With several
ranks, a batch is one's share (rank, number of ranks) of a larger one, every so-many-th image of it:
all draw for the whole, so that an image is changed as it would be in one process.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Share = tuple[int, int]
Augment = Callable[[Tensor, torch.Generator, Share], Tensor]  # (N, C, H, W) -> (N, C, H, W)


def none(x: Tensor, draw: torch.Generator, share: Share = (0, 1)) -> Tensor:
    """The images as they are."""
    return x


def crop(x: Tensor, draw: torch.Generator, share: Share = (0, 1)) -> Tensor:
    """Pad with black by an eighth of the size and cut a window of the old size, per image."""
    (n, _, height, width), (rank, ranks) = x.shape, share
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(2 * pad_y + 1, (n * ranks,), generator=draw)[rank::ranks]
    left = torch.randint(2 * pad_x + 1, (n * ranks,), generator=draw)[rank::ranks]
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    return windows[torch.arange(n), :, top, left]


def crop_flip(x: Tensor, draw: torch.Generator, share: Share = (0, 1)) -> Tensor:
    """`crop`, then mirror every second image (at random) left to right."""
    rank, ranks = share
    flipped = torch.rand(len(x) * ranks, generator=draw)[rank::ranks] < 0.5
    x = crop(x, draw, share)
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


AUGMENTS: dict[str, Augment] = {"none": none, "crop": crop, "crop_flip": crop_flip}
