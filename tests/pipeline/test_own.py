"""A user's own data by `data=own` and from Python: searched, resumed, or refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nas.cli import run
from nas.data.own import as_data_module

WORDS = [
    "space.width=0.25", "threads=1", "onnx=false", "search.epochs=1", "search.ranking.trials=3",
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
