"""Data of any kind from an NPZ file, for every task: searched, exported, or refused in one line."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.cli import run
from nas.data import arrays
from nas.errors import UserError
from nas.tasks.anomaly import Anomaly
from nas.tasks.classification import Classification
from nas.tasks.forecasting import Forecasting
from nas.tasks.multilabel import Multilabel
from nas.tasks.regression import Regression

WORDS = [
    "data=arrays", "data.path=data.npz", "data.batch_size=32", "space.width=0.25", "threads=1",
    "onnx=false", "search=fairnas", "search.epochs=1", "search.ranking.trials=3",
    "search.ranking.evaluate.calibration=64", "finetune.epochs=3", "front=2",
    "trainer.enable_progress_bar=false", "name=a",
]  # fmt: skip
GENERATOR = np.random.default_rng(0)


def windows(samples: int = 240) -> dict[str, Any]:
    """Windows of two channels, of which one is a wave whose frequency is the target."""
    generator = np.random.default_rng(0)
    frequency = generator.uniform(1, 6, samples)
    wave = np.sin(2 * np.pi * frequency[:, None] * np.linspace(0, 1, 16))
    noise = generator.normal(size=wave.shape)
    groups = generator.integers(0, 12, samples)
    return {"x": np.stack([wave, noise], 1), "y": 100 + 10 * frequency, "groups": groups}


def labelled(samples: int = 240) -> dict[str, Any]:
    """Images of 8 x 8 with three stripes, each there or not."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 2, (samples, 3))
    x = generator.normal(size=(samples, 1, 8, 8))
    for stripe in range(3):
        x[:, 0, 2 * stripe : 2 * stripe + 2] += 2 * y[:, stripe, None, None]
    return {"x": x.astype(np.float32), "y": y.astype(bool)}


def series(samples: int = 240) -> dict[str, Any]:
    """Windows of a wave and noise, and the next three steps of the wave."""
    generator = np.random.default_rng(0)
    wave = np.sin(np.arange(samples + 20) / 3) + 0.1 * generator.normal(size=samples + 20)
    both = np.stack([wave, generator.normal(size=len(wave))])
    x = np.stack([both[:, i : i + 16] for i in range(samples)])
    return {"x": x, "y": np.stack([wave[i + 16 : i + 19] for i in range(samples)])}


def odd_ones(samples: int = 240) -> dict[str, Any]:
    """Samples of one shape and a third of noise."""
    generator = np.random.default_rng(0)
    y = np.arange(samples) % 3 == 0
    x = np.sin(np.arange(12) + generator.uniform(0, 1, (samples, 1)))
    x[y] = generator.normal(size=(y.sum(), 12))
    return {"x": x[:, None], "y": y}


@pytest.mark.parametrize(
    ("task", "made", "primary", "larger"),
    [
        ("regression", windows, "rmse", False),
        ("multilabel", labelled, "ap", True),
        ("forecasting", series, "mae", False),
        ("anomaly space=autoencoder", odd_ones, "auroc", True),
    ],
)
def test_a_front_of_networks_judged_by_the_task(tmp_path, monkeypatch, task, made, primary, larger):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **made())
    assert run(["search", *WORDS, *f"task={task}".split()]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["task"]["primary"] == primary
    networks = [json.loads(p.read_text()) for p in Path("runs/a/front").glob("*/result.json")]
    assert len(networks) == 2
    scores = {n["arch_hash"]: n["metrics"][f"val_{primary}"] for n in networks}
    assert scores[result["arch_hash"]] == (max if larger else min)(scores.values())
    assert (Path("runs/a/report.html")).is_file()
    assert f"test_{primary}" in Path("runs/a/front.csv").read_text()
    found = json.loads(Path("runs/a/search.json").read_text())
    assert found["metric"] == f"val_{primary}"
    assert run(["export", "runs/a", "format=onnx,state_dict", "latency=false"]) == 0
    rows = json.loads(Path("runs/a/export/export.json").read_text())["formats"]
    assert rows["onnx"]["max_abs_diff"] < 1e-3
    for row in rows.values():
        assert row["eager_score"] == pytest.approx(result["metrics"][f"test_{primary}"], rel=1e-4)
    assert task in Path("runs/a/export/card.json").read_text()


def test_no_group_is_in_two_parts_and_equal_seeds_give_equal_parts(tmp_path):
    file = tmp_path / "data.npz"
    np.savez(file, **windows())
    for seed in range(3):
        data, again = (arrays(str(file), task=Regression(), seed=seed) for _ in range(2))
        groups = {part: set(data.arrays.groups[own].tolist()) for part, own in data.parts.items()}
        assert sum(map(len, groups.values())) == len(set.union(*groups.values())) == 12
        assert all(torch.equal(data.parts[part], again.parts[part]) for part in groups)
        x, y = next(iter(data.weight_loader()))
        assert (x.shape, y.shape, y.dtype) == ((64, 2, 16), (64, 1), torch.float32)
        whole = torch.cat([x for x, _ in data.calibration_loader()])
        assert whole.mean((0, 2)).abs().max() < 0.2
        assert (whole.std((0, 2)) - 1).abs().max() < 0.2


@pytest.mark.parametrize("axes", [(5,), (6, 7), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_any_number_type_and_one_to_three_axes(tmp_path, axes, dtype):
    x = GENERATOR.integers(0, 100, (60, 2, *axes)).astype(dtype)
    y = np.arange(60) % 3 + 7
    np.savez(tmp_path / "data.npz", x=x[:50], y=y[:50], x_test=x[50:], y_test=y[50:])
    data = arrays(str(tmp_path / "data.npz"), batch_size=8)
    data.setup()
    assert (data.input_shape, data.classes) == ((2, *axes), ("7", "8", "9"))
    train = x[data.parts["train"].numpy()].astype(float)
    over = (0, *range(2, x.ndim))
    assert data.mean == pytest.approx(train.mean(over), rel=1e-5)
    assert data.std == pytest.approx(train.std(over), rel=1e-5)
    found = torch.cat([x for x, _ in data.test_dataloader()]).double().numpy()
    channel = (-1, *[1] * len(axes))
    wanted = (x[50:] - np.reshape(data.mean, channel)) / np.reshape(data.std, channel)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


X, LABELS, NUMBERS = GENERATOR.normal(size=(40, 1, 8)), np.arange(40) % 2, GENERATOR.normal(size=40)
HOLE = np.where(np.arange(40)[:, None, None] == 7, np.nan, X)
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "missing key": (Classification, {"x": X}, "lacks 'y'"),
    "half of the test part": (Classification, {"x": X, "y": LABELS, "x_test": X}, "lacks 'y_test'"),
    "objects": (Classification, {"x": X, "y": LABELS.astype(object)}, "Python objects"),
    "texts": (Classification, {"x": X, "y": LABELS.astype(str)}, "must be numbers"),
    "rows": (Classification, {"x": X, "y": LABELS[:9]}, "40 rows and y is (9,)"),
    "no channels": (Classification, {"x": X[:, 0, 0], "y": LABELS}, "(N, C, *S)"),
    "no samples": (Classification, {"x": X[:0], "y": LABELS[:0]}, "(N, C, *S)"),
    "NaN in x": (Classification, {"x": HOLE, "y": LABELS}, "no finite number in row 7"),
    "overflow": (Classification, {"x": X * 1e60, "y": LABELS}, "no finite number in row 0"),
    "test part": (
        Classification, {"x": X, "y": LABELS, "x_test": X[..., :4], "y_test": LABELS},
        "another shape",
    ),
    "one class": (Classification, {"x": X, "y": 0 * LABELS}, "one class (0)"),
    "numbers": (Classification, {"x": X, "y": NUMBERS}, "task=regression"),
    "weights": (
        partial(Classification, weights=[1, 2, 3]), {"x": X, "y": LABELS},
        "3 numbers for 2 classes",
    ),
    "NaN in y": (Regression, {"x": X, "y": HOLE[:, 0, 0]}, "sample 7 is no finite number"),
    "constant": (Regression, {"x": X, "y": 0 * NUMBERS + 3}, "is 3 in all samples"),
    "volumes": (Regression, {"x": X, "y": X}, "(N,) or (N, K)"),
    "no labels": (Multilabel, {"x": X, "y": LABELS}, "(N, labels)"),
    "no binary labels": (Multilabel, {"x": X, "y": X[:, 0]}, "zeros and ones"),
    "label of all": (Multilabel, {"x": X, "y": np.stack([LABELS, 0 * LABELS], 1)}, "label 1 is 0"),
    "no windows": (Forecasting, {"x": X[..., None], "y": X[:, 0]}, "no forecast"),
    "channels": (
        partial(Forecasting, channels=[0, 1]), {"x": X, "y": X[:, 0]},
        "task.channels=[0, 1] for targets of 1",
    ),
    "no kinds": (Anomaly, {"x": X, "y": NUMBERS}, "0 normal, 1 anomalous"),
    "three kinds": (Anomaly, {"x": X, "y": np.arange(40) % 3}, "0 normal, 1 anomalous"),
    "all normal": (Anomaly, {"x": X, "y": 0 * LABELS}, "validation part is anomalous"),
    "one of the test part": (
        Anomaly, {"x": X, "y": 0 * LABELS, "x_test": X[:9], "y_test": np.arange(9) == 4},
        "validation part is anomalous",
    ),
    "one group": (Regression, {"x": X, "y": NUMBERS, "groups": ["a"] * 40}, "one group (a)"),
    "two groups": (Regression, {"x": X, "y": NUMBERS, "groups": LABELS}, "add groups"),
    "groups": (Regression, {"x": X, "y": NUMBERS, "groups": [1, 2]}, "groups is (2,)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_in_one_line(tmp_path, case):
    task, content, said = BAD[case]
    np.savez(tmp_path / "data.npz", **content)
    with pytest.raises(UserError) as refused:
        arrays(str(tmp_path / "data.npz"), batch_size=4, task=task()).setup()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data.path is not set"),
        (["data.path=none.npz"], "is no file"),
        (["data.path=bad.npz"], "cannot be read"),
        (["data.path=one.npy"], "holds one array"),
        (["data.path=good.npz", "data.augment=crop"], "data.augment=crop is for images"),
        (["data.path=good.npz", "task=regression", "task.loss=square"], "square"),
        (["data.path=good.npz", "task.weights=often"], "often"),
        (["data.path=good.npz", "task.metric={_target_:torch.nn.ReLU}"], "no torchmetrics.Metric"),
    ],
)
def test_the_command_refuses_them_with_exit_code_2(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    Path("bad.npz").write_bytes(b"PK\3\4 no archive")
    np.save("one.npy", X)
    np.savez("good.npz", x=X, y=LABELS)
    assert run(["search", "data=arrays", "data.batch_size=4", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()
