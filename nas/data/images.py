"""`Images`: a whole data set in memory, as every source hands it over."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Part = Literal["train", "val", "test"]
Levels = tuple[float, float]  # the values that stand for black and for white


@dataclass(frozen=True)
class Images:
    """Labelled images, decoded once and kept in memory.

    Args:
        pixels: uint8 ``(N, C, H, W)``, values 0..255; float32 where an image has more depth.
        labels: int64 ``(N,)``, positions in `classes`.
        classes: names of the classes.
        given: the parts the source itself comes in, as indices into ``pixels``. "train" is always
            there; "val" and "test" only if the source has them, else they are split off "train".
        value_range: what black and white were in the files of more than 8 bits a channel, where
            their format alone does not say.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    given: Mapping[Part, Tensor]
    value_range: Levels | None = None


Source = Callable[[], Images]
