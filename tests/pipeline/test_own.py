"""A user's own data by `data=own` and from Python: searched, resumed, or refused in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from nas.cli import run
from nas.data.own import as_data_module
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock

WORDS = [
    "space.width=0.25", "threads=1", "onnx=false", "search=fairnas", "search.epochs=1",
    "search.ranking.trials=3",
    "search.ranking.evaluate.calibration=64", "finetune.epochs=1", "front=2",
    "trainer.enable_progress_bar=false", "name=a",
]  # fmt: skip


def samples(count: int = 200) -> tuple[Tensor, Tensor]:
    """Images of 8 x 8, of which every second is brighter."""
    y = torch.arange(count) % 2
    x = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x + y[:, None, None, None], y


X, Y = samples()


class Pixels(Dataset):
    """Noisy at random where it is told to be."""

    classes = ("dark", "bright")

    def __init__(self, noise: float = 0.0) -> None:
        self.noise, self.reads = noise, 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, place: int) -> tuple[np.ndarray, int]:
        self.reads += 1
        noise = self.noise * np.random.standard_normal((1, 8, 8))
        return (X[place].numpy() + noise + self.noise * torch.randn(1).item()), int(Y[place])


class Module(pl.LightningDataModule):
    """With a loader for each of `parts`."""

    def __init__(self, parts: tuple[str, ...] = ("train", "val", "test")) -> None:
        super().__init__()
        sets = {p: TensorDataset(X[i::3], Y[i::3]) for i, p in enumerate(parts)}
        for part, own in sets.items():
            loader = DataLoader(own, 16, shuffle=part == "train")
            setattr(self, f"{part}_dataloader", lambda loader=loader: loader)


def sizes(data: object) -> dict[str, int]:
    """Samples of each part."""
    return {part: len(own) for part, own in data.parts.items()}


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda: (X, Y), {"train": 128, "val": 42, "test": 30}),
        (lambda: (X.numpy(), Y.tolist()), {"train": 128, "val": 42, "test": 30}),
        (lambda: (X, Y, X[:50], Y[:50]), {"train": 150, "val": 50, "test": 50}),
        (lambda: {"x": X, "y": Y, "groups": np.arange(200) // 20}, None),
        (lambda: Pixels(), {"train": 128, "val": 42, "test": 30}),
        (lambda: (Pixels(), Pixels()), {"train": 150, "val": 50, "test": 200}),
        (lambda: (Pixels(), Pixels(), Pixels()), {"train": 200, "val": 200, "test": 200}),
        (lambda: {"train": Pixels(), "val": Pixels()}, {"train": 170, "val": 200, "test": 30}),
        (lambda: DataLoader(Pixels(), 16), {"train": 128, "val": 42, "test": 30}),
        (lambda: Module(), {"train": 67, "val": 67, "test": 66}),
        (lambda: Module(("train",)), {"train": 43, "val": 14, "test": 10}),
        (lambda: lambda: (X, Y), {"train": 128, "val": 42, "test": 30}),
    ],
)
def test_three_parts_of_any_form_of_data(made, wanted):
    data = as_data_module(made(), batch_size=8, name="mine")
    data.setup()
    assert data.name == "mine"
    assert wanted is None or sizes(data) == wanted
    assert (data.input_shape, data.num_outputs) == ((1, 8, 8), 2)
    x, y = next(iter(data.weight_loader()))
    assert (x.shape, x.dtype, y.shape) == ((8, 1, 8, 8), torch.float32, (8,))
    assert as_data_module(data) is data


def test_a_lightning_data_module_is_searched_by_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = f"data.source={{_target_:{__name__}.Module}}"
    assert run(["search", *WORDS, "data=own", source]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["input"] == {
        "shape": [1, 8, 8], "classes": ["0", "1"], "mean": [], "std": [], "largest": 1.0,
    }  # fmt: skip
    assert result["metrics"]["test_acc"] > 0.6
    assert Path("runs/a/report.html").is_file()


class Fused(torch.nn.Module):
    """A supernet of an image and a number that says more."""

    name = "fused"

    def __init__(self, input_shape: Any, num_outputs: int) -> None:
        super().__init__()
        assert input_shape == {"image": (1, 8, 8), "row": ()}
        options = {str(k): torch.nn.Conv2d(1, 4, k, padding=k // 2) for k in (1, 3)}
        self.body = ChoiceBlock(options)
        self.norm = torch.nn.BatchNorm2d(4)
        self.rows = torch.nn.Embedding(2, 4)
        self.head = torch.nn.Linear(8, num_outputs)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        seen = self.norm(self.body(image)).relu().mean((2, 3))
        return self.head(torch.cat([seen, self.rows(row)], 1))


def fused() -> dict[str, Any]:
    """Of which the second input tells the class."""
    return {"x": {"image": X, "row": Y}, "y": Y}


@pytest.mark.parametrize(
    "more", [[], ["search=bilevel", "search.warmup_epochs=0"]], ids=["ranked", "bilevel"]
)
def test_a_network_of_several_inputs(tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    Path("own/space").mkdir(parents=True)
    Path("own/space/fused.yaml").write_text(f"_target_: {__name__}.Fused\n_partial_: true\n")
    words = [w for w in WORDS if "width" not in w and not (more and "ranking" in w)]
    source = f"data.source={{_target_:{__name__}.fused}}"
    words += ["data=own", source, "space=fused", "data.batch_size=16", *more]
    words += ["front=1", "onnx=true"] if more else []
    assert run(["search", "--config-dir", "own", *words, "finetune.epochs=3"]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["input"]["shape"] == {"image": [1, 8, 8], "row": []}
    assert result["metrics"]["test_acc"] > 0.6
    assert not more or result["onnx_max_abs_diff"] < 1e-4
    assert not result["warnings"]
    assert "image 1 x 8 x 8 and row 1" in capsys.readouterr().out
    if not more:
        assert run(["export", "runs/a", "format=onnx,state_dict", "latency=false"]) == 2  # trust
        assert run(["export", "runs/a", "format=onnx,state_dict", "trust=true"]) == 0
        formats = json.loads(Path("runs/a/export/export.json").read_text())["formats"]
        assert formats["onnx"]["max_abs_diff"] < 1e-4
        assert "row `[N]`" in Path("runs/a/export/card.md").read_text()
        for name in ("int8_onnx", "python"):
            assert run(["export", "runs/a", f"format={name}", "trust=true", "overwrite=true"]) == 2
            assert "several: choose out of" in capsys.readouterr().err


class Endless(IterableDataset):
    """Without a length."""

    def __iter__(self) -> Any:
        return iter([(X[0], 0)])


def pairs(y: Any) -> TensorDataset:
    """With targets of its own."""
    return TensorDataset(X[: len(y)], y)


BAD: dict[str, tuple[Any, str]] = {
    "no length": (Endless(), "cannot be read by position"),
    "too few to split": (pairs(Y[:3]), "at least 3 are needed"),
    "no pairs": (TensorDataset(X), "it must give pairs (x, y)"),
    "three parts": (TensorDataset(X, X, Y), "gives 3 parts"),
    "numbers": (pairs(torch.rand(200)), "task=regression"),
    "other shapes": ([(X[0, :, : 1 + i // 100], 1) for i in range(200)], "Dataset"),
    "empty": (TensorDataset(X[:0], Y[:0]), "is empty"),
    "nothing": (3, "int is none of a LightningDataModule"),
    "no train part": ({"val": pairs(Y)}, "there is no train part"),
    "unknown part": ({"train": pairs(Y), "tset": pairs(Y)}, "'tset' is none of the parts"),
    "fails": (lambda: 1 / 0, "ZeroDivisionError"),
    "rows": ((X, Y[:9]), "200 rows and y is (9,)"),
    "texts": ((X, np.array(["a"] * 200)), "must be numbers"),
    "sampler": (
        DataLoader(pairs(Y), sampler=WeightedRandomSampler([1.0] * 200, 200)), "weights=balanced"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_one_line(case):
    data, said = BAD[case]
    with pytest.raises(UserError) as refused:
        as_data_module(data, batch_size=8).setup()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.float64, torch.uint8])
@pytest.mark.parametrize("in_memory", [True, False])
def test_the_example_is_of_the_type_of_the_batches(kind: torch.dtype, in_memory: bool) -> None:
    tokens, labels = torch.randint(7, (120, 5)).to(kind), torch.arange(120) % 3
    data: Any = as_data_module(TensorDataset(tokens, labels), in_memory=in_memory)
    x, _ = next(iter(data.val_dataloader()))
    assert data.example.dtype == x.dtype


def test_in_memory_or_not_the_batches_are_the_same():
    kept, asked = (as_data_module(Pixels(), in_memory=m) for m in (True, False))
    for one, other in zip(kept.weight_loader(), asked.weight_loader(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_own_augmentations_differ_between_epochs_and_repeat_in_each():
    data = as_data_module(Pixels(noise=1.0))
    assert not isinstance(data.arrays.samples, Tensor)
    state = torch.get_rng_state()
    loader = data.weight_loader()
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(torch.cat([x for x, _ in loader]))
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert torch.equal(state, torch.get_rng_state())
