"""`Streamed`: samples that a user's own Datasets give when a batch asks for them."""

import bisect
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from nas.errors import UserError
from nas.inputs import Inputs

CHUNK = 256  # samples that are read at once


class OwnSet(NamedTuple):
    """A Dataset of the user's own, and how a DataLoader reads it.

    Attributes:
        dataset: of pairs (sample, target), with a length.
        collate: list of pairs -> batch.
        workers: processes that read it; 0: this one.
        name: for messages.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    workers: int
    name: str


class Streamed(Dataset[tuple[Inputs, Tensor]]):
    """The samples of several Datasets one after another, read by position.

    What a Dataset draws from the generators of ``random``, ``numpy`` and ``torch`` is decided by
    the seed of the batch and the position of the sample: a resumed run, and any number of ranks or
    processes that read, see the same.

    Args:
        sets: those of each part.

    Attributes:
        example: the first sample, as a batch.
    """

    def __init__(self, sets: Sequence[OwnSet]) -> None:
        self.sets = sets
        self.ends = list(accumulate(len(own.dataset) for own in sets))
        self.example = self[0, torch.zeros(1, dtype=torch.int64)][0]

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def workers(self) -> int:
        """Processes that read."""
        return max(own.workers for own in self.sets)

    def __getitem__(self, request: tuple[int, Tensor]) -> tuple[Inputs, Tensor]:
        """A batch of ``(seed, positions (N,))``: samples, and targets ``(N, ...)``.

        Raises:
            UserError: the Dataset fails, or gives something else than pairs of tensors.
        """
        seed, positions = request
        items: list[Any] = []
        own = self.sets[0]
        with _own_draws():
            for position in positions.tolist():
                own, place = self._place(position)
                _seed(seed * 1_000_003 + position)
                with failing(f"{own.name}[{place}]"):
                    items.append(own.dataset[place])
            with failing(f"putting samples of {own.name} together"):
                batch = own.collate(items)
        return _pair(batch, own.name, len(items))

    def _place(self, position: int) -> tuple[OwnSet, int]:
        """The Dataset that has this sample, and where."""
        part = bisect.bisect_right(self.ends, position)
        own = self.sets[part]
        return own, position - (self.ends[part] - len(own.dataset))

    def read(self, positions: Tensor, keep: bool) -> tuple[Inputs | None, Tensor]:
        """All samples at `positions`, None unless they are to be kept, and their targets.

        Raises:
            UserError: samples or targets are not all of one shape, or samples not finite.
        """
        requests = [(0, chunk) for chunk in torch.split(positions, CHUNK)]
        samples, targets = [], []
        first: Any = None
        loader: Any = DataLoader(
            self, sampler=requests, batch_size=None, num_workers=self.workers,
            generator=torch.Generator(),  # else it moves the global one
            collate_fn=as_it_is,
        )  # fmt: skip
        for (_, chunk), (x, y) in zip(requests, loader, strict=True):
            shape = [tuple(leaf.shape[1:]) for leaf in (*tree_leaves(x), y)]
            first = first or shape
            if shape != first:
                raise UserError(
                    f"data: {self.sets[0].name} gives samples and targets of {shape} beside others "
                    f"of {first}: all must be of one shape, cut or pad them"
                )
            for leaf in tree_leaves(x):
                if not (good := leaf.isfinite().reshape(len(leaf), -1).all(1)).all():
                    own, place = self._place(int(chunk[int(good.int().argmin())]))
                    raise UserError(
                        f"data: {own.name}[{place}] is not finite everywhere: leave that sample "
                        "out, or fill what is missing"
                    )
            targets.append(y)
            if keep:
                samples.append(x)
        joined = tree_map(lambda *leaves: torch.cat(leaves), *samples) if keep else None
        return joined, torch.cat(targets)


def as_it_is(batch: Any) -> Any:
    """For a DataLoader of whole batches, which makes lists of tuples else."""
    return batch


def _pair(batch: Any, name: str, count: int) -> tuple[Inputs, Tensor]:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair:
        got = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise UserError(
            f"data: {name} gives {got} for a sample: it must give pairs (x, y), several inputs as "
            "((a, b), y) or ({'a': a, 'b': b}, y)"
        )
    x, y = batch
    x = tuple(x) if isinstance(x, list) else x
    parts = [*x.values()] if isinstance(x, dict) else [*x] if isinstance(x, tuple) else [x]
    for what, part in (*(("inputs", part) for part in parts), ("a target", y)):
        if not isinstance(part, Tensor) or not len(parts):
            raise UserError(
                f"data: {name} gives {what} of {type(part).__name__}: inputs and targets must be "
                "tensors, arrays or numbers"
            )
        if not part.ndim or len(part) != count:
            raise UserError(
                f"data: {name} gives {what} {tuple(part.shape)} for {count} samples: the first "
                "axis of a batch must be the samples"
            )
    found: Inputs = tree_map(_number, x)
    return found, y


def _number(x: Tensor) -> Tensor:
    """As networks take it: float32, or int64 of what may number the rows of an embedding."""
    return x.to(torch.int64 if x.dtype in (torch.int32, torch.int64) else torch.float32)


def _seed(number: int) -> None:
    number %= 2**32
    random.seed(number)
    np.random.seed(number)
    torch.default_generator.manual_seed(number)


@contextmanager
def _own_draws() -> Iterator[None]:
    """Put the global generators back afterwards."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Code of the user's own fails: in one line."""
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
        raise UserError(f"data: {what} fails: {said[:300]}") from error
