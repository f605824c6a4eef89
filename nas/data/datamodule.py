"""`DataModule`: one data set, split, normalised and served in batches."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Annotated, Any, TypedDict, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from nas.config.schema import Count, Seed, checked
from nas.data.batches import AUGMENTS, Batches, EpochBatchSampler, loader
from nas.data.splits import Arrays, Levels, Part, Source, generator, split
from nas.errors import UserError
from nas.inputs import Inputs, Shapes, shapes_of
from nas.ranks import rank_and_ranks
from nas.tasks import Supervised, Task
from nas.tasks.classification import Classification

BatchSize = Annotated[int, Field(ge=2, le=10**9)]  # BatchNorm cannot train on a single image
Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataOptions(TypedDict, total=False):
    """The arguments that every data set takes; `DataModule` says what they mean."""

    name: str
    batch_size: BatchSize
    eval_batch_size: Count
    val_fraction: Fraction
    test_fraction: Fraction
    limit: Count | None
    augment: str
    seed: Seed
    task: Task | None


@checked("data")
class DataModule:
    """Batches of the three parts of one source: train (weights), val (alpha) and test.

    Batches are ``x`` float32 ``(N, C, *S)``, normalised with the train part's mean and standard
    deviation, and ``y`` as the task takes it. Orders and augmentations depend only on the seed,
    the epoch and the batch's place in it. The source is read when it is first needed, or by
    `setup`. A Trainer of Lightning takes it as one of its own data modules.

    Args:
        source: reads the data; called once.
        name: shown in results.
        batch_size: samples per training step (and rank), at least 2.
        eval_batch_size: samples per batch where nothing is trained.
        val_fraction: share of the training samples kept for alpha.
        test_fraction: share of the samples kept for the test, if the source has no test part.
        limit: at most this many samples for train and val together, classes in proportion.
        augment: "auto" (what the source suggests), "none", "crop" or "crop_flip".
        auto_augment: what the source suggests.
        seed: of the split, the orders and the augmentations. A test part that is split off is
            the same under every seed.
        task: what networks are for; None: classification.

    Raises:
        UserError: an option out of its range; from `setup`, data that cannot be used.
    """

    name: str

    def __init__(
        self,
        source: Source,
        name: str = "images",
        batch_size: BatchSize = 64,
        eval_batch_size: Count = 512,
        val_fraction: Fraction = 0.25,
        test_fraction: Fraction = 0.15,
        limit: Count | None = None,
        augment: str = "auto",
        auto_augment: str = "none",
        seed: Seed = 0,
        task: Task | None = None,
    ) -> None:
        self.source, self.name = source, name
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.limit, self.seed = limit, seed
        self.task = task or Classification()
        if augment not in ("auto", *AUGMENTS):
            known = ", ".join(AUGMENTS)
            raise UserError(f"data.augment={augment!r} is not known: choose one of auto, {known}.")
        self.augment = auto_augment if augment == "auto" else augment

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        # Lightning's Trainer takes only what derives from its own class, and asks for it here.
        # Deriving from it at once would load Lightning where nothing is trained.
        lightning = sys.modules.get("pytorch_lightning.core.datamodule")
        if lightning and not issubclass(type(self), lightning.LightningDataModule):
            plain: Any = type(self)
            base: Any = lightning.LightningDataModule
            vars(object)["__class__"].__set__(self, _for_trainer(plain, base))
            known = dict(vars(self))  # a Trainer may have set `trainer` already
            base.__init__(self)
            vars(self).update(known)
            return cast(type, base)  # `isinstance` looks whether it is another than the type
        return type(self)

    def __reduce__(self) -> tuple[Any, ...]:
        kind = type(self)
        return _empty, (getattr(kind, "made_from", kind),), self.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        # Read anew where it is needed: another process gets no copy of all samples through a pipe.
        return {k: v for k, v in vars(self).items() if k not in ("arrays", "parts")}

    def setup(self, stage: str | None = None) -> None:
        """Read the source, split it and check that it suits the options; done once."""
        _ = self.parts

    @cached_property
    def arrays(self) -> Arrays:
        """The whole data set, with its targets as the task takes them."""
        read = self.source()
        example = read.example
        if self.augment != "none" and not (isinstance(example, Tensor) and example.ndim == 4):
            raise UserError(
                f"data.augment={self.augment} is for images, and samples are of "
                f"{shapes_of(example)}: pass data.augment=none."
            )
        targets, classes = self.task.read(read.targets, read.classes, read.samples)
        if read.groups is not None and isinstance(self.task, Supervised):
            targets = self.task.with_groups(targets, read.groups)
        return replace(read, targets=targets, classes=classes)

    @cached_property
    def parts(self) -> dict[Part, Tensor]:
        """Indices into `arrays` of the train, val and test part."""
        parts = split(self.arrays, self.val_fraction, self.test_fraction, self.limit, self.seed)
        parts = dict(self.task.divide(self.arrays.targets, parts, self.arrays.groups is not None))
        self._check_batch_size("train", len(parts["train"]))
        self.task.fit(self.arrays.targets[parts["train"]])
        return parts

    @cached_property
    def _moments(self) -> tuple[list[float], list[float]]:
        if not self.arrays.normalised:
            return [], []
        samples = cast(Tensor, self.arrays.samples)
        return moments(samples, self.parts["train"], self.arrays.largest)

    @property
    def mean(self) -> list[float]:
        """Mean per channel of the train part, of images in 0..1; []: nothing is taken off."""
        return self._moments[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation per channel, as `mean`."""
        return self._moments[1]

    def normalise_as(self, mean: list[float], std: list[float]) -> None:
        """Use these moments, with which a network was trained, instead of the train part's."""
        self._moments = (list(mean), list(std))

    @property
    def value_range(self) -> Levels | None:
        """Black and white in files of more than 8 bits, where their format does not say."""
        return self.arrays.value_range

    @property
    def largest(self) -> float:
        """What is seen as 1 before the mean is taken off: 255 of images, else 1."""
        return self.arrays.largest

    @property
    def example(self) -> Inputs:
        """An empty batch of one sample."""
        return self.arrays.example

    @property
    def input_shape(self) -> Shapes:
        """``(C, *S)`` of one sample, (C, H, W) of an image; of several inputs, of each."""
        return shapes_of(self.example)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs; labels of a classification are positions in it."""
        return self.arrays.classes

    @property
    def num_outputs(self) -> int:
        """What a network must give for one sample: a logit for each class, or a number."""
        _ = self.arrays  # which the task reads
        assert self.task.outputs is not None
        return self.task.outputs

    def weight_loader(self) -> DataLoader[Any]:
        """Train part, shuffled and augmented: batches that train the weights."""
        return self._training_loader("train")

    def alpha_loader(self) -> DataLoader[Any]:
        """Val part, shuffled and augmented: batches that train the architecture."""
        return self._training_loader("val")

    def train_dataloader(self) -> DataLoader[Any]:
        """The same as `weight_loader`."""
        return self.weight_loader()

    def val_dataloader(self) -> DataLoader[Any]:
        """Val part in order, every image once, not augmented."""
        return self._ordered_loader(self.parts["val"], self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Test part in order, every image once, not augmented."""
        return self._ordered_loader(self.parts["test"], self.eval_batch_size)

    def calibration_loader(self, images: int = 2048) -> DataLoader[Any]:
        """The same random images of the train part each time, not augmented, in full batches.

        Batches have the training batch size: BatchNorm statistics are measured as they arose.
        """
        train = self.parts["train"]
        order = torch.randperm(len(train), generator=generator("calibration", self.seed))
        batches = max(1, min(images, len(train)) // self.batch_size)
        chosen = train[order[: batches * self.batch_size]]
        return self._ordered_loader(chosen, self.batch_size)

    def _training_loader(self, part: Part) -> DataLoader[Any]:
        indices = self.parts[part]
        self._check_batch_size(part, len(indices))
        sampler = EpochBatchSampler(
            indices, self.batch_size, train=True, seed=self.seed, stream=part
        )
        return loader(self._dataset(self.augment), sampler)

    def _ordered_loader(self, indices: Tensor, batch_size: int) -> DataLoader[Any]:
        sampler = EpochBatchSampler(indices, batch_size, train=False)
        return loader(self._dataset("none"), sampler)

    def _dataset(self, augment: str) -> Batches:
        return Batches(self.arrays, self.mean, self.std, AUGMENTS[augment], self.task.batch)

    def _check_batch_size(self, part: Part, size: int) -> None:
        _, ranks = rank_and_ranks()
        share = size // ranks
        if self.batch_size > share:
            of = f"{part} split of {size} {self.arrays.noun}s"
            of += f" over {ranks} ranks" if ranks > 1 else ""
            remedy = f"data.batch_size={share} or less" if share >= 2 else "a larger data.limit"
            raise UserError(
                f"data.batch_size={self.batch_size} is larger than the {of}: pass {remedy}, or "
                f"give more {self.arrays.noun}s."
            )


def _empty(kind: Any) -> Any:
    return kind.__new__(kind)


@cache
def _for_trainer(kind: Any, lightning: Any) -> type:
    """A class of modules that is Lightning's, too; pickled as `kind`."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "made_from": kind}
    return type(kind.__name__, (kind, lightning), names)


def moments(
    samples: Tensor, indices: Tensor, largest: float = 255
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of samples ``(N, C, *S)`` over `largest`.

    A channel that is constant has the standard deviation 1, so that dividing by it is safe.
    """
    find = _moments_of_bytes if samples.dtype == torch.uint8 else _moments_of_floats
    mean, std = find(samples, torch.split(indices, 4096), largest)
    # Relative to the mean: images that use few of many levels are dark, not constant.
    return mean.tolist(), torch.where(std > 1e-6 * mean.abs(), std, 1.0).tolist()


def _moments_of_bytes(
    samples: Tensor, parts: Sequence[Tensor], largest: float
) -> tuple[Tensor, Tensor]:
    values = torch.arange(256, dtype=torch.float64) / largest
    counts = torch.zeros(samples.shape[1], 256, dtype=torch.float64)
    for some in parts:
        # From histograms: exact, and no float copy of the data set is made.
        for channel, count in zip(samples[some].transpose(0, 1), counts, strict=True):
            count += torch.bincount(channel.flatten(), minlength=256)
    weights = counts / counts.sum(1, keepdim=True)
    mean = weights @ values
    return mean, (weights @ values**2 - mean**2).clamp(min=0).sqrt()


def _moments_of_floats(
    samples: Tensor, parts: Sequence[Tensor], largest: float
) -> tuple[Tensor, Tensor]:
    samples = samples if samples.ndim > 2 else samples[..., None]
    count, space = sum(map(len, parts)), tuple(range(2, samples.ndim))
    mean = (
        sum((samples[some].double().mean(space).sum(0) for some in parts), torch.zeros(())) / count
    )
    centre = mean.reshape(-1, *[1] * len(space))
    squares = (((samples[some] - centre) ** 2).mean(space).sum(0) for some in parts)
    std = (sum(squares, torch.zeros(())) / count).sqrt()
    return mean / largest, std / largest
