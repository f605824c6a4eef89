"""The four recipes of MLPerf Tiny read folders in the layout of the real data sets."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from nas.cli import run
from nas.config.compose import compose_config
from nas.verbs import components_of

DRAW = np.random.default_rng(0)
SMALL = "search.trials=2 search.evaluate.epochs=1 finetune.epochs=1 front=1 threads=1 onnx=false"
WORDS = ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "bed", "cat"]


def wave(path: Path, seconds: float, loud: float = 0.1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, loud * DRAW.normal(size=round(16000 * seconds)), 16000)
    return f"{path.parent.name}/{path.name}"


def speech_commands(root: Path) -> None:
    """A folder a word, long noise, and lists of the val and test files."""
    lists: dict[int, list[str]] = {0: [], 1: []}
    for word in WORDS:
        for number in range(6):
            name = wave(root / word / f"{number:08x}_nohash_0.wav", 0.9)
            lists.get(number, []).append(name)
    wave(root / "_background_noise_/white_noise.wav", 20)
    (root / "validation_list.txt").write_text("\n".join(lists[0]))
    (root / "testing_list.txt").write_text("\n".join(lists[1]))


def wake_words(root: Path) -> None:
    """JPEG images of persons and of none."""
    for kind in ("person", "non_person"):
        (root / kind).mkdir(parents=True)
        for number in range(8):
            pixels = DRAW.integers(0, 256, (96, 96, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / kind / f"COCO_train2014_{number:012}.jpg")


def cifar(root: Path) -> None:
    """The batches of the Python version."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        pixels = DRAW.integers(0, 256, (20, 3072)).astype(np.uint8)
        batch = {"data": pixels, "labels": [number % 10 for number in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
    names = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


def toy_car(root: Path) -> None:
    """Normal sounds to train with, both kinds to test."""
    for number in range(6):
        wave(root / f"train/normal_id_01_{number:08}.wav", 1)
    for number in range(4):
        wave(root / f"test/normal_id_01_{number:08}.wav", 1)
        wave(root / f"test/anomaly_id_01_{number:08}.wav", 1, loud=0.3)


RECIPES: dict[str, tuple[Callable[[Path], None], tuple[int, ...], int, list[int]]] = {
    "keyword_spotting": (speech_commands, (1, 16000), 12, [48, 12, 12]),
    "visual_wake_words": (wake_words, (3, 96, 96), 2, [10, 4, 2]),
    "image_classification": (cifar, (3, 32, 32), 10, [80, 20, 20]),
    "anomaly_detection": (toy_car, (1, 640), 640, [36, 24, 24]),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Of the real files.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path / "set"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_the_layout_of_its_set(name, folder):
    make, shape, outputs, sizes = RECIPES[name]
    make(folder)
    words = [f"experiment={name}", f"data.root={folder}", "data.batch_size=8", "name=x"]
    made = components_of(compose_config([*words, *["data.download=false"] * (make is cifar)]))
    data = made["data"]
    data.setup()
    assert (data.input_shape, data.num_outputs) == (shape, outputs)
    assert [len(data.parts[part]) for part in ("train", "val", "test")] == sizes
    made["make_supernet"](input_shape=shape, num_outputs=outputs)


def test_anomalies_are_found_by_the_recipe(folder):
    toy_car(folder)
    words = [f"data.root={folder}", "data.batch_size=8", "finetune.epochs=3", "space.width=0.25"]
    assert run(["search", "experiment=anomaly_detection", *SMALL.split(), *words, "name=a"]) == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["metrics"]["test_auroc"] > 0.9  # three times as loud
    assert result["metrics"]["test_group_auroc"] == 1  # of files
