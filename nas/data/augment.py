"""Random changes of a whole batch of images, in the type they come in.

Each is a function of the batch and of a generator, the only source of its randomness.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor, torch.Generator], Tensor]  # (N, C, H, W) -> (N, C, H, W)


def none(x: Tensor, draw: torch.Generator) -> Tensor:
    """The images as they are."""
    return x


def crop(x: Tensor, draw: torch.Generator) -> Tensor:
    """Pad with black by an eighth of the size and cut a window of the old size, per image."""
    n, _, height, width = x.shape
    pad_y, pad_x = height // 8, width // 8
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y))
    top = torch.randint(2 * pad_y + 1, (n,), generator=draw)
    left = torch.randint(2 * pad_x + 1, (n,), generator=draw)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (N, C, top, left, H, W)
    return windows[torch.arange(n), :, top, left]


def crop_flip(x: Tensor, draw: torch.Generator) -> Tensor:
    """`crop`, then mirror every second image (at random) left to right."""
    flipped = torch.rand(len(x), generator=draw) < 0.5
    x = crop(x, draw)
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


AUGMENTS: dict[str, Augment] = {"none": none, "crop": crop, "crop_flip": crop_flip}
