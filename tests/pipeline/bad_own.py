"""Bad data, losses and metrics of a user's own as rows: what is given, and what the message names.

Rows of data are functions that give it, for `data.source`; `own` is called by the command.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

COUNT = 80
X, Y = torch.randn(COUNT, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(COUNT)
Y = Y % 2


class Samples(Dataset):
    """Of a list; with a length, unless it is to have none."""

    def __init__(self, items: list[Any], sized: bool = True) -> None:
        self.items, self.sized = items, sized

    def __len__(self) -> int:
        if not self.sized:
            raise TypeError("object of type 'Samples' has no len()")
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


class Sized(Dataset):
    """Without `__getitem__` of its own."""

    def __len__(self) -> int:
        return COUNT


class Flow(IterableDataset):
    """In no order that could be repeated."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Module(pl.LightningDataModule):
    """Whose train loader is what `made` gives."""

    def __init__(self, made: Callable[[], Any]) -> None:
        super().__init__()
        self.made = made

    def train_dataloader(self) -> Any:
        return self.made()


def changed(x: Tensor, place: int, value: Any) -> Tensor:
    """A copy in which one sample is another."""
    found = x.clone()
    found[place] = value
    return found


def pairs(x: Any = X, y: Any = Y) -> list[Any]:
    """Samples one by one."""
    return list(zip(x, y, strict=False))


NAN = float("nan")
FEW = "data.batch_size=8"
ANOMALY, REGRESSION, MULTILABEL = "task=anomaly", "task=regression", "task=multilabel"
LARGE = [*pairs(X[:40]), *((torch.randn(1, 9, 9), 1) for _ in range(40))]

# Name -> (data, further words, what is said).
DATA: dict[str, tuple[Callable[[], Any], str, str]] = {
    "a number": (lambda: 3, "", "int is none of a LightningDataModule"),
    "nothing": (lambda: None, "", "data.source is not set"),
    "fails": (lambda: {}["x"], "", "KeyError"),
    "nan": (lambda: (changed(X, 7, NAN), Y), "", "no finite number in row 7"),
    "inf": (lambda: (changed(X, 7, torch.inf), Y), "", "no finite number in row 7"),
    "nan of a Dataset": (
        lambda: TensorDataset(changed(X, 9, NAN), Y), "", "of the train part[9] is not"
    ),
    "nan, not kept": (
        lambda: TensorDataset(changed(X, 9, NAN), Y), "data.in_memory=false", "train part[9] is not"
    ),
    "nan in the test part": (
        lambda: (TensorDataset(X, Y), TensorDataset(changed(X, 3, NAN), Y)), "",
        "test part[3] is not",
    ),
    "nan target": (lambda: (X, changed(Y.float(), 5, NAN)), REGRESSION, "target of sample 5"),
    "texts": (lambda: (X, ["a"] * COUNT), "", "must be numbers"),
    "text samples": (lambda: Samples([("a", 1)] * COUNT), "", "inputs of str"),
    "shapes": (lambda: Samples(LARGE), "", "putting samples"),
    "shapes between chunks": (
        lambda: Samples(LARGE[:40] * 32 + LARGE[40:]), "data.in_memory=true", "of one shape"
    ),
    "too few axes": (lambda: (X[:, 0, 0, 0], Y), "", "(N, C, *S)"),
    "too many axes": (lambda: (X[:, None, None, None], Y), "", "(N, C, *S)"),
    "rows": (lambda: (X, Y[:-1]), "", "80 rows and y is (79,)"),
    "of another test shape": (lambda: (X, Y, X[:, :, 1:], Y), "", "another shape"),
    "targets of another test shape": (lambda: (X, Y, X, Y[:, None]), "", "another shape"),
    "two targets": (lambda: (X, torch.stack([Y, Y], 1)), "", "targets (80, 2)"),
    "images of targets": (lambda: (X, X), REGRESSION, "targets (80, 1, 8, 8)"),
    "targets of two shapes": (
        lambda: Samples([(X[0], torch.zeros(1 + i % 2)) for i in range(COUNT)]), REGRESSION,
        "putting samples",
    ),
    "numbers for classes": (lambda: (X, Y.float()), "", "task=regression"),
    "one class": (lambda: (X, 0 * Y), "", "one class"),
    "names for fewer": (lambda: (X, 5 * Y), "data.classes=[a,b]", "labels are from 0 to 5"),
    "numbers for labels": (lambda: (X, torch.rand(COUNT, 3)), MULTILABEL, "zeros and ones"),
    "label that never is": (
        lambda: (X, torch.stack([Y, 0 * Y], 1)), f"{MULTILABEL} {FEW}", "label 1 is 0"
    ),
    "all normal": (lambda: (X, 0 * Y), f"{ANOMALY} space=autoencoder", "is anomalous"),
    "three kinds": (lambda: (X, torch.arange(COUNT) % 3), ANOMALY, "0 normal, 1 anomalous"),
    "images to forecast": (lambda: (X, X[:, 0, 0]), "task=forecasting", "windows (C, L)"),
    "channels to forecast": (
        lambda: (X[:, 0], X[:, 0, :, :2]), "task=forecasting task.channels=[0,9]", "task.channels"
    ),
    "a constant": (lambda: (X, 0.0 * Y), f"{REGRESSION} {FEW}", "nothing to learn"),
    "empty": (lambda: (X[:0], Y[:0]), "", "(0, 1, 8, 8)"),
    "empty Dataset": (lambda: Samples([]), "", "is empty"),
    "one sample": (lambda: Samples([(X[0], 1)]), "", "one class"),
    "one number": (lambda: Samples([(X[0], 1.5)]), REGRESSION, "there are 1 sample(s)"),
    "too small to split": (lambda: Samples(pairs()[:4]), "", "at least 3 are needed"),
    "a val part of none": (
        lambda: {"train": Samples(pairs()), "val": Samples([])}, "", "val part is empty"
    ),
    "one group": (lambda: {"x": X, "y": Y, "groups": 0 * Y}, "", "of one group"),
    "few groups": (lambda: {"x": X, "y": Y, "groups": Y}, "", "at least 3 are needed"),
    "groups of other rows": (lambda: {"x": X, "y": Y, "groups": Y[:9]}, "", "groups is (9,)"),
    "no y": (lambda: {"x": X}, "", "lacks 'y'"),
    "no length": (lambda: Samples(pairs(), sized=False), "", "has no len()"),
    "no position": (lambda: Sized(), "", "NotImplementedError"),
    "a flow": (lambda: Flow(), "", "cannot be read by position"),
    "no pairs": (lambda: Samples(list(X)), "", "must give pairs"),
    "three of each": (lambda: Samples([(x, x, 1) for x in X]), "", "gives 3 parts"),
    "ends early": (lambda: _Short(pairs()), "", "IndexError"),
    "other targets each time": (lambda: _Drawn(pairs()), "", "other targets each time"),
    "no train part": (lambda: {"test": Samples(pairs())}, "", "no train part"),
    "unknown part": (lambda: {"train": Samples(pairs()), "tset": Samples([])}, "", "'tset'"),
    "a module that fails": (lambda: Module(lambda: 1 / 0), "", "ZeroDivisionError"),
    "a module of none": (lambda: Module(lambda: None), "", "no train part"),
    "a collate_fn of its own": (
        lambda: DataLoader(Samples(pairs()), 8, collate_fn=lambda items: items[0][0]), "",
        "it must give pairs",
    ),
    "a collate_fn that drops": (
        lambda: DataLoader(Samples(pairs()), 8, collate_fn=lambda items: (X[:1], Y[:1])), "",
        "for 32 samples",
    ),
    "batches larger than all": (lambda: (X, Y), "data.batch_size=500", "data.batch_size=500"),
    "several for one": (lambda: {"x": {"a": X, "b": X}, "y": Y}, FEW, "input_shape"),
    "a tuple for one": (lambda: ((X, X), Y), FEW, "input_shape"),
}  # fmt: skip


class _Short(Samples):
    def __getitem__(self, place: int) -> Any:
        return self.items[place + 1]


class _Drawn(Samples):
    def __getitem__(self, place: int) -> Any:
        return self.items[place][0], int(torch.randint(2, ()))


def own(case: str) -> Any:
    """The data of a row."""
    return DATA[case][0]()


def number(outputs: Tensor, targets: Tensor) -> float:
    """A loss that is no tensor."""
    return 0.5


def constant(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that nothing can be learned by."""
    return targets.float().mean()


def broken(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss with a mistake in it."""
    return (outputs - targets[:, :99]).mean()


CLASSES = "torchmetrics.classification.Multiclass"
# Words about the task -> what is said; of classes on the digits, unless another task is named.
TASK: dict[str, str] = {
    "task.loss={_target_: torch.nn.CrossEntropyLoss, reduction: none}": "gives a tensor (64,)",
    "task.loss={_target_: torch.nn.BCEWithLogitsLoss}": "task.loss fails",
    "task.loss={_target_: torch.nn.NoLoss}": "NoLoss",
    "task.loss=3": "task.loss=3",
    "task.loss=[1]": "task.loss",
    "task.loss={_target_: builtins.dict}": "task.loss",
    **{
        f"task.loss={{_target_: {__name__}.{name}, _partial_: true}}": said
        for name, said in {
            "number": "gives a float", "constant": "without a gradient", "broken": "IndexError",
        }.items()
    },
    "task.metric={_target_: torch.nn.Identity}": "Identity is no torchmetrics.Metric",
    "task.metric={_target_: builtins.dict}": "task.metric",
    "task.metric=acc": "task.metric",
    f"task.metric={{_target_: {CLASSES}ConfusionMatrix, num_classes: 10}}": "higher_is_better",
    f"task.metric={{_target_: {CLASSES}Accuracy, num_classes: 10, average: none}}": "(10,)",
    f"task.metric={{_target_: {CLASSES}Accuracy, num_classes: 3}}": "a metric of the task fails",
    f"task.metric={{_target_: {CLASSES}Accuracy}}": "num_classes",
    "task.metric={_target_: torchmetrics.MeanAbsoluteError}": "a metric of the task fails",
    "task.weights=[1,2]": "2 numbers for 10 classes",
    "task=regression task.loss=huger": "huger",
    "task=multilabel": "zeros and ones",
    "task=forecasting": "no forecast",
}  # fmt: skip
