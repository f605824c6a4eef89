"""Batches of samples by indexing a data set in memory, in an order that (seed, epoch) decides.

An augmentation changes a whole batch at random, in the type it comes in. It is a function of the
batch and of a generator, its only source of randomness. Under several ranks, each has a share of
every batch: (rank, number of ranks), every so-many-th image. All ranks draw for the whole batch, so
that an image is changed as it would be in one process.
"""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from nas.data.splits import Arrays, generator
from nas.data.streamed import Streamed, as_it_is
from nas.inputs import Inputs, shapes_of
from nas.ranks import rank_and_ranks

Share = tuple[int, int]
Augment = Callable[[Tensor, torch.Generator, Share], Tensor]  # (N, C, H, W) -> (N, C, H, W)
Request = tuple[int, Tensor]  # (seed of the augmentation, indices of the samples (N,))
Batch = tuple[Inputs, Tensor]  # x float32 (N, C, *S), y int64 (N,) or float32 (N, K)


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


class Batches(Dataset[Batch]):
    """Answers a request for a whole batch: index, augment, normalise.

    ``x = (samples / 255 - mean) / std`` per channel; 255 is `Arrays.largest`. Without a mean,
    samples are given as they are. Targets are those of `nas.tasks.Task.batch`.
    """

    def __init__(
        self,
        arrays: Arrays,
        mean: list[float],
        std: list[float],
        augment: Augment,
        targets: Callable[[Any, Tensor], Tensor],
    ) -> None:
        self.arrays, self.augment, self.targets = arrays, augment, targets
        self.normalised = bool(mean)
        channel = (-1, *[1] * (len(shapes_of(arrays.example)) - 1))
        self.scale = 1 / (arrays.largest * torch.tensor(std)).reshape(channel)
        self.shift = -(torch.tensor(mean) / torch.tensor(std)).reshape(channel)

    def __getitem__(self, request: Request) -> Batch:
        seed, indices = request
        x = self.arrays.at(indices, seed)
        if isinstance(x, Tensor):
            if self.augment is not none:
                x = self.augment(x, torch.Generator().manual_seed(seed), rank_and_ranks())
            if self.normalised:
                x = x.to(torch.float32, memory_format=torch.contiguous_format)
                x.mul_(self.scale).add_(self.shift)
        return x, self.targets(x, self.arrays.targets[indices])


class EpochBatchSampler(DistributedSampler[Request]):
    """Yields whole batches; with several ranks, each yields its own share of every batch.

    Of R ranks, number r yields every R-th image from the r-th on of the batches that one process
    would have whose `batch_size` is R times as large.

    A pass is drawn from (seed, stream, epoch, which pass since `set_epoch`): a short loader that
    is gone through several times in an epoch, or never told of epochs, does not repeat itself.

    Args:
        indices: the samples to go through, ``(N,)``.
        batch_size: samples per batch and rank.
        train: shuffled, and full batches alone, what is left over not being seen; otherwise every
            image once, in order. All ranks have equally many batches.
        seed, stream: loaders with different streams have unrelated orders.
        world: (rank, number of ranks); None asks torch.distributed at every pass.

    A DistributedSampler by type, because Lightning replaces any other sampler on several ranks.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        *,
        train: bool,
        seed: int = 0,
        stream: str = "",
        world: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(cast(Dataset[Request], indices), 1, 0, train, seed, drop_last=train)
        self.indices, self.batch_size, self.train = indices, batch_size, train
        self.stream, self.world = stream, world
        self.passes = 0  # begun since `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Start over at the first pass of this epoch."""
        super().set_epoch(epoch)
        self.passes = 0

    def __len__(self) -> int:
        return len(self._batches(self.indices))

    def __iter__(self) -> Iterator[Request]:
        # A generator on purpose: it reads the epoch at the first batch. A resuming Lightning calls
        # iter() before set_epoch(), and would go through epoch 0 again.
        rank, ranks = self.world or rank_and_ranks()
        if not self.train:
            yield from ((0, batch[rank::ranks]) for batch in self._batches(self.indices))
            return
        draw = generator("epoch", self.seed, self.stream, self.epoch, self.passes)
        self.passes += 1
        order = self.indices[torch.randperm(len(self.indices), generator=draw)]
        whole = ceil(len(order) / (self.batch_size * ranks))
        seeds = torch.randint(2**31, (whole,), generator=draw).tolist()
        for seed, batch in zip(seeds, self._batches(order), strict=False):
            yield seed, batch[rank::ranks]

    def _batches(self, order: Tensor) -> Sequence[Tensor]:
        """Of all ranks together."""
        _, ranks = self.world or rank_and_ranks()
        size = self.batch_size * ranks
        batches = torch.split(order, size)
        if self.train:
            return [batch for batch in batches if len(batch) == size]
        if len(batches) > 1 and len(batches[-1]) < ranks:
            # A rank without samples would have nothing to evaluate, and the others wait for it.
            return [*batches[:-2], torch.cat(batches[-2:])]
        return [batch for batch in batches if len(batch)]


class EpochLoader(DataLoader[Any]):
    """A DataLoader that begins at the first batch, and not where `iter` is called.

    A resuming Lightning calls that before `set_epoch`, and processes that read would be told of the
    first batches of another epoch.
    """

    def __iter__(self) -> Any:
        # Without processes, half of the time of a small batch would be the DataLoader's.
        alone = self.num_workers == 0
        yield from map(self.dataset.__getitem__, self.sampler) if alone else super().__iter__()


def loader(dataset: Batches, sampler: EpochBatchSampler) -> DataLoader[Any]:
    """A DataLoader of the sampler's batches."""
    # In memory, a batch costs less than handing it over from another process would. The generator
    # is never used for data, but without it every epoch would move the global random state.
    samples = dataset.arrays.samples
    workers = samples.workers if isinstance(samples, Streamed) else 0
    return EpochLoader(
        dataset, sampler=sampler, batch_size=None, num_workers=workers,
        generator=torch.Generator(), collate_fn=as_it_is,
    )  # fmt: skip
