"""Data of a user's own as what a search reads: a Lightning data module, Datasets, or tensors."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from nas.artifacts.files import is_main
from nas.data.contract import SearchData
from nas.data.datamodule import BatchSize, DataModule, DataOptions
from nas.data.npz import KEYS, arrays_of
from nas.data.splits import Arrays, Part
from nas.data.streamed import OwnSet, Streamed, failing
from nas.errors import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

_PARTS: tuple[Part, ...] = ("train", "val", "test")
_TWICE = 32  # samples that are read twice, to see whether they are the same
_KINDS = (
    "a LightningDataModule, Datasets (train, test) or (train, val, test), or tensors (x, y) or "
    "(x, y, x_test, y_test)"
)
# What Lightning would call between a loader and the network.
_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class OwnOptions(DataOptions, total=False):
    """The options of `as_data_module`, which says what they mean."""

    classes: Sequence[str]
    in_memory: bool | None


def own(  # type: ignore[misc]  # it takes null for one of the options
    source: Any = None, batch_size: BatchSize | None = None, **options: Unpack[OwnOptions]
) -> SearchData:
    """``data=own``: `source` as `as_data_module` takes it."""
    if source is None:
        return DataModule(_no_source, options.get("name", "own"), seed=options.get("seed", 0))
    given = {"batch_size": batch_size} if batch_size else {}
    return as_data_module(source, **cast(OwnOptions, {**given, **options}))


def _no_source() -> Arrays:
    raise UserError(
        "data.source is not set: pass data.source={_target_:package.NAME}, a class or function of "
        f"your own that gives {_KINDS}"
    )


def as_data_module(data: Any, **options: Unpack[OwnOptions]) -> SearchData:
    """What a search reads, made of data in any of these forms.

    - Tensors or arrays ``(x, y)`` or ``(x, y, x_test, y_test)``, or a dict of these by name and
      ``groups`` ``(N,)``: see `nas.data.npz.arrays_of`. They are normalised.
    - Datasets or DataLoaders ``(train, test)`` or ``(train, val, test)``, a dict of these by name,
      or one alone; of pairs (x, y), and taken as they are. Of a DataLoader the data set is taken,
      its ``collate_fn`` and its ``num_workers``, and the training ``batch_size`` unless it is among
      the options.
    - A LightningDataModule: its three DataLoaders, of which only the one to train must be there.
    - A `DataModule` of nas, or any object with the attributes and methods of `SearchData`: itself.
    - A function without arguments that gives one of these.

    A part that is missing is split off the train part: test by `test_fraction`, the same under
    every seed, then val by `val_fraction` and `seed`.

    Args:
        data: in one of these forms.
        options: see `DataModule`, and

            classes: names of the outputs; (): those of the Dataset, or as the task names them.
            in_memory: read Datasets once and keep them; None: where a quarter of the memory holds
                them, and samples are the same each time they are read. It changes no batch.

    Raises:
        UserError: data of another form; from `setup`, data that cannot be used.
    """
    if callable(data) and not hasattr(data, "setup") and not isinstance(data, type):
        with failing(f"calling {getattr(data, '__name__', type(data).__name__)}"):
            data = data()
    if hasattr(data, "weight_loader"):
        return _adopted(data, options)
    classes = tuple(options.pop("classes", ()))
    in_memory = options.pop("in_memory", None)
    known = cast(DataOptions, {"name": "own", **options})
    if (found := _tensors(data)) is not None:
        return DataModule(partial(arrays_of, found, classes=classes), **known)
    sets, batch_size = _sets(data)
    if batch_size and batch_size > 1:
        known = cast(DataOptions, {"batch_size": batch_size, **known})
    return DataModule(OwnSource(sets, classes, in_memory), **known)


def _adopted(data: Any, options: Mapping[str, Any]) -> SearchData:
    """A data module as it is, with the run's task unless it has one of its own."""
    task = options.get("task")
    if strange := sorted(options.keys() - {"task", "seed"}):
        raise UserError(
            f"data.{strange[0]} is not for {type(data).__name__}, which serves batches of its own: "
            "set it there"
        )
    if not hasattr(data, "task"):
        data.task = task
    if not hasattr(data, "example") and hasattr(data, "input_shape"):
        data.example = torch.zeros(1, *data.input_shape)
    return cast(SearchData, data)


def _tensors(data: Any) -> dict[str, Any] | None:
    """Tensors or arrays by name; None where `data` is something else."""
    if isinstance(data, Mapping):
        return dict(data) if {"x", "y"} & data.keys() else None
    if not isinstance(data, tuple | list) or len(data) not in (2, 4):
        return None
    kinds = (Tensor, np.ndarray, tuple, list, Mapping)
    if not all(isinstance(part, kinds) for part in data) or isinstance(data[1], Mapping):
        return None
    return dict(zip(KEYS, data, strict=False))


def _sets(data: Any) -> tuple[dict[Part, OwnSet], int | None]:
    """The Dataset of each part, and the size of the batches to train with, where one is given."""
    lightning = sys.modules.get("pytorch_lightning")  # loaded by whoever made such a module
    if lightning and isinstance(data, lightning.LightningDataModule):
        found = _loaders(data)
    elif isinstance(data, Mapping):
        found = dict(data)
    elif isinstance(data, Dataset | DataLoader):
        found = {"train": data}
    elif isinstance(data, tuple | list) and len(data) in (2, 3):
        found = dict(zip(_PARTS if len(data) == 3 else ("train", "test"), data, strict=True))
    else:
        raise UserError(f"data: {type(data).__name__} is none of {_KINDS}")
    if strange := [name for name in found if name not in _PARTS]:
        raise UserError(f"data: {strange[0]!r} is none of the parts train, val and test")
    if found.get("train") is None:
        raise UserError("data: there is no train part: give a data set to train with")
    train = found["train"]
    sets = {part: _own_set(part, found[part]) for part in _PARTS if found.get(part) is not None}
    return sets, train.batch_size if isinstance(train, DataLoader) else None


def _loaders(module: "pl.LightningDataModule") -> dict[str, Any]:
    """The loaders of a Lightning data module by part, once it is set up."""
    import pytorch_lightning as pl

    kind = type(module).__name__
    for hook in _HOOKS:
        if getattr(type(module), hook) is not getattr(pl.LightningDataModule, hook):
            raise UserError(
                f"data: {kind}.{hook} is not called in a search: do in the Dataset, or in the "
                "network, what it does"
            )
    if is_main():  # the processes of a distributed run are started when this one is ready
        with failing(f"{kind}.prepare_data()"):
            module.prepare_data()
    for stage in ("fit", "test"):
        with failing(f"{kind}.setup({stage!r})"):
            module.setup(stage)
    found: dict[str, Any] = {}
    for part in _PARTS:
        name = f"{part}_dataloader"
        method = getattr(module, name)
        if getattr(method, "__func__", None) is getattr(pl.LightningDataModule, name):
            continue  # it has none
        with failing(f"{kind}.{name}()"):
            found[part] = method()
    return found


def _own_set(part: str, given: Any) -> OwnSet:
    """A part as it is given, checked."""
    loader = given if isinstance(given, DataLoader) else None
    dataset = given if loader is None else loader.dataset
    name = f"the {type(dataset).__name__} of the {part} part"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"data: {name} cannot be read by position, which shuffling and resuming need: give a "
            "Dataset with __len__ and __getitem__"
        )
    with failing(f"len() of {name}"):
        size = len(dataset)  # type: ignore[arg-type]
    if not size:
        raise UserError(f"data: {name} is empty: give samples, or leave the part out")
    known = (SequentialSampler, RandomSampler, DistributedSampler)
    if loader is not None and not isinstance(loader.sampler, known):
        raise UserError(
            f"data: the {type(loader.sampler).__name__} of the {part} part would not be resumed: "
            "use shuffle=True; for rare classes pass task.weights=balanced"
        )
    if loader is None:
        return OwnSet(dataset, default_collate, 0, name)
    collate = loader.collate_fn if loader.batch_size is not None else default_collate
    return OwnSet(dataset, collate, loader.num_workers, name)


@dataclass(frozen=True)
class OwnSource:
    """Source over Datasets of the user's own; each is read once, at least for its targets.

    Args:
        sets: of each part that there is.
        classes: names of the outputs; (): those of the Dataset, or for the task to say.
        in_memory: keep the samples; None: where a quarter of the memory holds them, and they are
            the same each time they are read.
    """

    sets: Mapping[Part, OwnSet]
    classes: tuple[str, ...] = ()
    in_memory: bool | None = None

    def __call__(self) -> Arrays:
        streamed = Streamed(list(self.sets.values()))
        keep = self._fits(streamed) if self.in_memory is None else self.in_memory
        sizes = [len(own.dataset) for own in self.sets.values()]
        given = dict(zip(self.sets, torch.split(torch.arange(len(streamed)), sizes), strict=True))
        kept, targets = streamed.read(torch.arange(len(streamed)), keep)
        samples = streamed if kept is None else kept
        return Arrays(samples, targets, self._classes(), given, None, 1.0, normalised=False)

    def _fits(self, streamed: Streamed) -> bool:
        size = sum(leaf.nbytes for leaf in tree_leaves(streamed.example)) * len(streamed)
        return size < memory() / 4 and not self._draws(streamed)

    def _draws(self, streamed: Streamed) -> bool:
        """Whether the Dataset to train with changes its samples at random."""
        count = len(self.sets["train"].dataset)
        positions = torch.linspace(0, count - 1, min(count, _TWICE)).long()
        once, again = (streamed[seed, positions] for seed in (0, 1))
        if not torch.equal(once[1], again[1]):
            raise UserError(
                f"data: {self.sets['train'].name} gives other targets each time it is read: only "
                "samples may be changed at random"
            )
        pairs = zip(tree_leaves(once[0]), tree_leaves(again[0]), strict=True)
        return not all(torch.equal(a, b) for a, b in pairs)

    def _classes(self) -> tuple[str, ...]:
        named = self.classes or getattr(self.sets["train"].dataset, "classes", ())
        return tuple(map(str, named)) if isinstance(named, tuple | list) else ()


def memory() -> float:
    """Bytes of this machine; infinite where the system does not say."""
    if not hasattr(os, "sysconf"):
        return float("inf")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
