"""Batches by indexing a data set in memory, in an order that (seed, epoch) decides."""

from collections.abc import Iterator
from math import ceil
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from nas.data.augment import Augment
from nas.data.images import Images
from nas.data.seeding import generator

Request = tuple[int, Tensor]  # (seed of the augmentation, indices of the images (N,))
Batch = tuple[Tensor, Tensor]  # x float32 (N, C, H, W), y int64 (N,)


class InMemory(Dataset[Batch]):
    """Answers a request for a whole batch: index, augment, normalise.

    ``x = (pixels / 255 - mean) / std`` per channel.
    """

    def __init__(
        self, images: Images, mean: list[float], std: list[float], augment: Augment
    ) -> None:
        self.images, self.augment = images, augment
        self.scale = 1 / (255 * torch.tensor(std))[:, None, None]
        self.shift = -(torch.tensor(mean) / torch.tensor(std))[:, None, None]

    def __getitem__(self, request: Request) -> Batch:
        seed, indices = request
        pixels = self.images.pixels.index_select(0, indices)
        pixels = self.augment(pixels, torch.Generator().manual_seed(seed))
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return x.mul_(self.scale).add_(self.shift), self.images.labels[indices]


class EpochBatchSampler(DistributedSampler[Request]):
    """Yields whole batches; with several ranks, each yields its own share of them.

    A pass is drawn from (seed, stream, epoch, which pass since `set_epoch`): a short loader that
    is gone through several times in an epoch, or never told of epochs, does not repeat itself.

    Args:
        indices: the images to go through, ``(N,)``.
        batch_size: images per batch and rank.
        train: shuffled, and equally many full batches for every rank, what is left over not being
            seen; otherwise every image once, in order.
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
        rank, ranks = self.world or rank_and_ranks()
        if self.train:
            return len(self.indices) // self.batch_size // ranks
        share = len(range(rank, len(self.indices), ranks))
        return ceil(share / self.batch_size)

    def __iter__(self) -> Iterator[Request]:
        # A generator on purpose: it reads the epoch at the first batch. A resuming Lightning calls
        # iter() before set_epoch(), and would go through epoch 0 again.
        rank, ranks = self.world or rank_and_ranks()
        if not self.train:
            mine = torch.split(self.indices[rank::ranks], self.batch_size)
            yield from ((0, batch) for batch in mine)
            return
        draw = generator("epoch", self.seed, self.stream, self.epoch, self.passes)
        self.passes += 1
        order = self.indices[torch.randperm(len(self.indices), generator=draw)]
        batches = torch.split(order, self.batch_size)
        seeds = torch.randint(2**31, (len(batches),), generator=draw).tolist()
        for i in range(rank, len(self) * ranks, ranks):
            yield seeds[i], batches[i]


def rank_and_ranks() -> tuple[int, int]:
    """(rank of this process, number of ranks); (0, 1) outside distributed training."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def loader(dataset: InMemory, sampler: EpochBatchSampler) -> DataLoader[Any]:
    """A DataLoader of the sampler's batches."""
    # No workers: a batch costs less than handing it over from another process would. The generator
    # is never used for data, but without it every epoch would move the global random state.
    return DataLoader(
        dataset, sampler=sampler, batch_size=None, num_workers=0, generator=torch.Generator()
    )
