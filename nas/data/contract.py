"""`SearchData`: what a run reads of its data, and a look at a module of the user's own."""

import inspect
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from nas.data.datamodule import DataModule
from nas.errors import UserError
from nas.inputs import Inputs, Shapes, samples_in, shapes_of
from nas.tasks import Task
from nas.tasks.classification import task_of


class SearchData(Protocol):
    """What a search, a training, an export and a report read of data; `DataModule` has it.

    Loaders give pairs ``(x, y)``: inputs as `nas.inputs.run` takes them, and targets as the task
    does. Those that train draw anew in each epoch, see `nas.data.batches.EpochBatchSampler`.

    Attributes:
        name: shown in results.
        task: what networks are for.
        batch_size: samples per training step and rank; may be changed between loaders.
        seed: of splits and orders.
    """

    name: str
    task: Task
    batch_size: int
    seed: int

    @property
    def example(self) -> Inputs:
        """An empty batch of one sample."""
        ...

    @property
    def input_shape(self) -> Shapes:
        """``(C, *S)`` of one sample; of several inputs, of each."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs."""
        ...

    @property
    def num_outputs(self) -> int:
        """What a network gives for one sample."""
        ...

    @property
    def mean(self) -> list[float]:
        """What is taken off each channel; []: samples are as the data give them."""
        ...

    @property
    def std(self) -> list[float]:
        """What each channel is then divided by."""
        ...

    def setup(self, stage: str | None = None) -> None:
        """Read what is needed, and check it; called several times."""
        ...

    def weight_loader(self) -> DataLoader[Any]:
        """Batches that train the weights, shuffled."""
        ...

    def alpha_loader(self) -> DataLoader[Any]:
        """Batches of other samples that train the architecture, shuffled."""
        ...

    def val_dataloader(self) -> DataLoader[Any]:
        """The samples of `alpha_loader` in order, each once, not augmented."""
        ...

    def test_dataloader(self) -> DataLoader[Any]:
        """The test part in order."""
        ...

    def calibration_loader(self, images: int = 2048) -> DataLoader[Any]:
        """The same training samples each time, not augmented, in full batches."""
        ...

    def normalise_as(self, mean: list[float], std: list[float]) -> None:
        """Use these, with which a network was trained."""
        ...


_METHODS = (
    "setup", "weight_loader", "alpha_loader", "val_dataloader", "test_dataloader",
    "calibration_loader",
)  # fmt: skip
_ATTRIBUTES = (
    "name", "batch_size", "seed", "example", "input_shape", "num_outputs", "classes", "mean", "std",
)  # fmt: skip


def read(data: SearchData) -> None:
    """Set the data up, and look at it, where its class is the user's own.

    Raises:
        UserError: it lacks something, or its samples are not what it says.
    """
    if type(data).__module__ == DataModule.__module__:
        data.setup()
        return
    kind = f"data: {type(data).__module__}.{type(data).__qualname__}"
    for name in _METHODS:
        method = getattr(data, name, None)
        if not callable(method):
            raise UserError(f"{kind} lacks the method {name}(); see nas.data.contract.SearchData")
        try:
            inspect.signature(method).bind()
        except TypeError as error:
            raise UserError(f"{kind}.{name} must be callable without arguments: {error}") from None
    data.setup()
    if missing := [name for name in _ATTRIBUTES if not hasattr(data, name)]:
        raise UserError(f"{kind} lacks {', '.join(missing)}; see nas.data.contract.SearchData")
    if data.input_shape != shapes_of(data.example):
        raise UserError(
            f"{kind} has samples of {shapes_of(data.example)}, and input_shape is "
            f"{data.input_shape}"
        )
    for name in ("weight_loader", "val_dataloader"):
        _check_batch(f"{kind}.{name}()", next(iter(getattr(data, name)()), None), data)


def _check_batch(what: str, batch: Any, data: Any) -> None:
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if not pair or not all(isinstance(leaf, Tensor) for leaf in tree_leaves(tuple(batch))):
        got = "nothing" if batch is None else type(batch).__name__
        raise UserError(f"{what} must give pairs of tensors (x, labels), got {got}")
    x, labels = batch
    found, wanted = (_kinds(inputs) for inputs in (x, data.example))
    if found != wanted:
        raise UserError(
            f"{what} gives samples {found}, and those of its example are {wanted}: they must be "
            "alike"
        )
    if len(labels) != samples_in(x):
        raise UserError(f"{what} gives {len(labels)} targets for {samples_in(x)} samples")
    task = task_of(data)
    try:
        task.read(labels, tuple(map(str, range(data.num_outputs))), x)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    if task.outputs != data.num_outputs:
        raise UserError(
            f"{what} gives targets for {task.outputs} outputs, and num_outputs is "
            f"{data.num_outputs}"
        )


def _kinds(inputs: Inputs) -> Any:
    """Shape and kind of number of each input: ``(1, 8, 8) float32``."""
    return tree_map(lambda x: f"{tuple(x.shape[1:])} {x.dtype}".replace("torch.", ""), inputs)
