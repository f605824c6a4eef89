"""`Arrays`, a whole data set in memory, and its seeded split into parts, stratified or by group.

The parts are train (for the weights), val (for the alphas) and test.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from nas.data.streamed import Streamed
from nas.errors import UserError
from nas.inputs import Inputs, some, zeros

Part = Literal["train", "val", "test"]
Levels = tuple[float, float]  # the values that stand for black and for white


@dataclass(frozen=True)
class Arrays:
    """Samples and targets of any kind, decoded once and kept in memory.

    Args:
        samples: ``(N, C, *S)``: uint8, 0..255, of images; else float32. For networks of several
            inputs a tuple or a dict of tensors; or `Streamed` where they are not kept in memory.
        targets: int64 ``(N,)``, positions in `classes`; or others, see `nas.tasks.Task.read`.
        classes: names of the classes, or of other outputs; (): for the task to say.
        given: the parts the source itself comes in, as indices into ``samples``. "train" is always
            there; "val" and "test" only if the source has them, else they are split off "train".
        value_range: what black and white were in the files of more than 8 bits a channel, where
            their format alone does not say.
        largest: what is seen as 1 before the mean is taken off: 255 of images, else 1.
        groups: int64 ``(N,)``; no group is in two of the parts that are split off.
        normalised: whether mean and standard deviation per channel are taken off; else networks
            get samples as they are.
    """

    samples: Inputs | Streamed
    targets: Tensor
    classes: tuple[str, ...]
    given: Mapping[Part, Tensor]
    value_range: Levels | None = None
    largest: float = 255
    groups: Tensor | None = None
    normalised: bool = True

    @property
    def noun(self) -> str:
        """What one sample is called."""
        return "image" if self.largest == 255 else "sample"

    @cached_property
    def example(self) -> Inputs:
        """An empty batch of one sample, as networks get it."""
        if isinstance(self.samples, Tensor) and self.normalised:
            return torch.zeros(1, *self.samples.shape[1:])
        return zeros(self.samples.example if isinstance(self.samples, Streamed) else self.samples)

    def at(self, indices: Tensor, seed: int) -> Inputs:
        """Samples as they are stored; `seed` decides what `Streamed` ones draw."""
        if isinstance(self.samples, Streamed):
            return self.samples[seed, indices][0]
        return some(self.samples, indices)

    @property
    def strata(self) -> tuple[Tensor, tuple[str, ...]]:
        """By which parts are made alike: classes ``(N,)`` and names of classes; else one class."""
        if self.targets.dtype == torch.int64 and self.targets.ndim == 1:
            return self.targets, self.classes
        return torch.zeros(len(self.targets), dtype=torch.int64), ("",)


Source = Callable[[], Arrays]


def generator(*key: int | str) -> torch.Generator:
    """A generator of its own for every key, e.g. ``generator("epoch", seed, epoch)``.

    The global random state is neither read nor moved, so that a resumed run sees the same draws.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def split(
    arrays: Arrays, val_fraction: float, test_fraction: float, limit: int | None, seed: int
) -> dict[Part, Tensor]:
    """Indices of the samples in each part, ascending; no sample is in two parts.

    A part the source comes with is kept as it is. `limit` keeps that many of the samples outside
    the test part (and outside a val part the source came with), classes in proportion.

    Raises:
        UserError: a class has too few samples to be in every part.
    """
    rest = arrays.given["train"]
    missing = 3 - len(arrays.given)
    parts = ("train", *(part for part in ("val", "test") if part not in arrays.given))
    each = f"one for each of {', '.join(parts)}"
    _require(arrays, rest, missing + 1, each, "add some, or remove the class")

    test = arrays.given.get("test")
    if test is None:
        # Not the run's seed: networks found under different seeds are compared on one test part.
        draw = generator("test", 0)
        rest, test = _divide(arrays, rest, test_fraction, draw, leave=missing)
    val = arrays.given.get("val")
    if limit is not None and limit < len(rest):
        rest = _sample(arrays, rest, limit, generator("limit", seed))
        least = 1 if val is not None else 2
        _require(arrays, rest, least, f"under data.limit={limit}", "raise data.limit")
    if val is None:
        rest, val = _divide(arrays, rest, val_fraction, generator("val", seed), leave=1)
    if arrays.groups is not None:
        _require(arrays, rest, 1, "as groups stay together", "pass another seed=, or add groups")
    return {"train": rest.sort().values, "val": val.sort().values, "test": test.sort().values}


def _require(arrays: Arrays, indices: Tensor, least: int, why: str, remedy: str) -> None:
    labels, classes = arrays.strata
    counts = torch.bincount(labels[indices], minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count < least:
            what = (
                f"class {name!r} has {count} {arrays.noun}(s)"
                if name
                else f"there are {count} {arrays.noun}(s)"
            )
            raise UserError(
                f"{what} to train with and at least {least} are needed, {why}: {remedy}."
            )


def _divide(
    arrays: Arrays, indices: Tensor, fraction: float, draw: torch.Generator, leave: int
) -> tuple[Tensor, Tensor]:
    """(kept, taken): `fraction` of every class is taken, at least one, and `leave` are kept."""
    if arrays.groups is not None:
        taken = _whole_groups(arrays.groups[indices], fraction, draw, leave)
        return indices[~taken], indices[taken]
    labels, classes = arrays.strata
    labels = labels[indices]
    counts = torch.bincount(labels, minlength=len(classes))
    take = (counts * fraction).round().clamp(min=1).minimum(counts - leave)
    taken = _rank_in_class(labels, draw) < take[labels]
    return indices[~taken], indices[taken]


def _whole_groups(groups: Tensor, fraction: float, draw: torch.Generator, leave: int) -> Tensor:
    """Which samples are taken ``(N,)``: of groups in random order as many as come nearest to
    `fraction`, at least one, and `leave` are kept."""
    names, numbers, counts = torch.unique(groups, return_inverse=True, return_counts=True)
    if len(names) <= leave:
        raise UserError(
            f"groups: {len(names)} group(s) to train with and at least {leave + 1} are needed, one "
            "for each part: add groups, or raise data.limit."
        )
    order = torch.randperm(len(names), generator=draw)
    sums = counts[order].cumsum(0)[: len(names) - leave]
    count = int((sums - fraction * len(groups)).abs().argmin()) + 1
    return torch.isin(numbers, order[:count])


def _sample(arrays: Arrays, indices: Tensor, size: int, draw: torch.Generator) -> Tensor:
    """`size` of the indices, every class in proportion."""
    labels, classes = arrays.strata
    labels = labels[indices]
    counts = torch.bincount(labels, minlength=len(classes))
    # Ascending quantile within the class: any prefix holds the classes in proportion.
    quantile = (_rank_in_class(labels, draw) + 0.5) / counts[labels]
    return indices[quantile.argsort(stable=True)[:size]]


def _rank_in_class(labels: Tensor, draw: torch.Generator) -> Tensor:
    """A random place 0, 1, 2, ... of each sample among those of its own class, ``(N,)``."""
    shuffled = torch.randperm(len(labels), generator=draw)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(
        counts
    )
    return rank
