"""Data: splits, batch order, augmentation, normalisation, a user's folder, and every error."""

import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.testing import assert_close

from nas.data import Arrays, DataModule, cifar10, digits, fashion_mnist, image_folder
from nas.data.batches import AUGMENTS, EpochBatchSampler
from nas.data.splits import split
from nas.errors import UserError
from nas.problem import SearchProblem
from nas.tasks.multilabel import Multilabel
from nas.tasks.regression import Regression

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


def made(counts=(40, 60, 20), shape=(3, 16, 16), test=0, **options) -> DataModule:
    """Random images; the first pixel bytes of image i spell i, so that a batch tells its images."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (len(labels), *shape), dtype=torch.uint8, generator=draw)
    order = torch.randperm(len(labels), generator=draw)
    parts = {"train": order[test:], "test": order[:test]} if test else {"train": order}
    images = Arrays(pixels, labels, tuple("abcdefgh"[: len(counts)]), parts)
    return DataModule(lambda: images, **{"batch_size": 8, **options})


def png(path: Path, size=(12, 9), value=None, mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": (3,), "L": ()}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], *channels), np.uint8)
    Image.fromarray(pixels if value is None else np.full_like(pixels, value)).save(path)


def folder(root: Path, classes=("cat", "dog"), images=8, part="") -> Path:
    for name in classes:
        for i in range(images):
            png(root / part / name / f"{i}.png", size=(10 + i, 20 - i))
    return root


# Splits


@given(
    st.lists(st.integers(3, 60), min_size=2, max_size=6),
    st.floats(0.05, 0.9),
    st.floats(0.05, 0.9),
    st.integers(0, 2**31),
)
@settings(max_examples=50, deadline=None)
def test_parts_cover_everything_once_and_hold_every_class(counts, val, test, seed):
    arrays = made(counts, (1, 2, 2)).arrays

    parts = split(arrays, val, test, limit=None, seed=seed)

    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(sum(counts)))
    for indices in parts.values():
        assert arrays.targets[indices].unique().tolist() == list(range(len(counts)))


def test_fractions_hold_in_every_class():
    data = made((40, 80, 200), val_fraction=0.25, test_fraction=0.5)

    sizes = {p: torch.bincount(data.arrays.targets[i]).tolist() for p, i in data.parts.items()}

    assert sizes == {"test": [20, 40, 100], "val": [5, 10, 25], "train": [15, 30, 75]}


def test_seed_decides_train_and_val_but_not_the_test_part():
    one, again, other = made(seed=1).parts, made(seed=1).parts, made(seed=2).parts

    assert all(torch.equal(one[part], again[part]) for part in one)
    assert torch.equal(one["test"], other["test"])
    assert not torch.equal(one["val"], other["val"])


def test_test_part_of_the_source_is_kept_whole():
    data = made(test=30, limit=50)

    assert torch.equal(data.parts["test"], data.arrays.given["test"].sort().values)
    assert not set(data.parts["test"].tolist()) & set(
        torch.cat([data.parts["train"], data.parts["val"]]).tolist()
    )


def test_limit_takes_a_seeded_proportional_subset():
    def kept(limit, seed=0):
        data = made((100, 300, 200), test_fraction=0.5, limit=limit, seed=seed)
        return data.arrays.targets, torch.cat(
            [data.parts["train"], data.parts["val"]]
        ).sort().values

    labels, some = kept(60)

    assert torch.bincount(labels[some]).tolist() == [10, 30, 20]
    assert torch.equal(some, kept(60)[1])
    assert not torch.equal(some, kept(60, seed=1)[1])
    assert len(kept(100_000)[1]) == 300


# Order of batches


def batches(data_loader, epoch=0):
    data_loader.sampler.set_epoch(epoch)
    return [(x.clone(), y.clone()) for x, y in data_loader]


def same(left, right) -> bool:
    return all(torch.equal(a[0], b[0]) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_epoch_depends_on_seed_and_epoch_alone(augment):
    torch.manual_seed(1)
    first = batches(made(augment=augment, seed=3).weight_loader(), epoch=5)
    torch.manual_seed(2)
    data_loader = made(augment=augment, seed=3).weight_loader()
    before = torch.get_rng_state()
    batches(data_loader, epoch=4)

    assert same(first, batches(data_loader, epoch=5))
    assert torch.equal(before, torch.get_rng_state())  # the global state is not even read


def test_no_two_passes_are_alike():
    def first_seeds(seed, stream, epoch):
        sampler = EpochBatchSampler(torch.arange(64), 8, train=True, seed=seed, stream=stream)
        sampler.set_epoch(epoch)
        # An alpha loader is gone through several times while the weight loader is once.
        return [next(iter(sampler)) for _ in range(3)]

    starts = [
        start
        for seed in (0, 1)
        for stream in ("train", "val")
        for epoch in (0, 1)
        for start in first_seeds(seed, stream, epoch)
    ]

    assert len({seed for seed, _ in starts}) == len(starts) == 24
    assert len({tuple(indices.tolist()) for _, indices in starts}) == 24


def test_epoch_set_after_iter_counts():
    """Lightning calls `iter` before `set_epoch` when it resumes."""
    data_loader = made(seed=3).weight_loader()
    expected = batches(data_loader, epoch=6)

    begun = iter(data_loader)
    data_loader.sampler.set_epoch(6)

    assert same(expected, list(begun))


@given(
    size=st.integers(0, 70), batch=st.integers(1, 9), ranks=st.integers(1, 4), train=st.booleans()
)
def test_ranks_share_every_batch_of_one_process(size, batch, ranks, train):
    def run(batch_size, *world):
        sampler = EpochBatchSampler(torch.arange(size), batch_size, train=train, world=world)
        sampler.set_epoch(2)
        found = [(seed, indices.tolist()) for seed, indices in sampler]
        assert len(found) == len(sampler)
        return found

    alone = run(batch * ranks, 0, 1)
    shares = [run(batch, rank, ranks) for rank in range(ranks)]

    # As many batches on each, and none of them empty: else one would wait for the others for ever.
    assert len({len(share) for share in shares}) == 1
    if train or size >= ranks:
        assert all(indices for share in shares for _, indices in share)
    whole = [
        (seeds[0], sorted(i for _, indices in parts for i in indices))
        for parts in zip(*shares, strict=True)
        for seeds in [[seed for seed, _ in parts]]
    ]
    if train:
        assert whole == [(seed, sorted(indices)) for seed, indices in alone]
        for rank, share in enumerate(shares):
            assert share == [(seed, indices[rank::ranks]) for seed, indices in alone]
    else:
        assert [i for _, part in whole for i in part] == list(range(size))


@pytest.mark.parametrize("augment", AUGMENTS)
def test_an_image_is_augmented_alike_whatever_rank_has_it(augment):
    x = torch.randint(256, (12, 3, 16, 16), dtype=torch.uint8)
    change = AUGMENTS[augment]
    whole = change(x, torch.Generator().manual_seed(5))
    for ranks in (2, 3):
        for rank in range(ranks):
            own = change(x[rank::ranks], torch.Generator().manual_seed(5), (rank, ranks))
            assert torch.equal(own, whole[rank::ranks])


def test_loaders_serve_the_parts_they_name():
    data = made((195, 197), batch_size=16, eval_batch_size=50, augment="none")

    def images_of(data_loader):
        where = {image.numpy().tobytes(): i for i, image in enumerate(data.arrays.samples)}
        mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
        pixels = torch.cat([((x * std + mean) * 255).round().byte() for x, _ in data_loader])
        return [where[image.numpy().tobytes()] for image in pixels]

    assert images_of(data.val_dataloader()) == data.parts["val"].tolist()
    assert images_of(data.test_dataloader()) == data.parts["test"].tolist()
    for part, size, data_loader in (
        ("train", 240, data.weight_loader()),  # of 249: the last 9 do not fill a batch
        ("train", 240, data.train_dataloader()),
        ("val", 80, data.alpha_loader()),
        ("train", 64, data.calibration_loader(70)),
    ):
        found = images_of(data_loader)
        assert len(set(found)) == len(found) == size
        assert set(found) <= set(data.parts[part].tolist())
    again = images_of(data.calibration_loader(70))
    assert again == images_of(data.calibration_loader(70))


# Pixels


def test_train_part_has_mean_0_and_std_1_and_a_constant_channel_stays_finite():
    data = made((200, 200), augment="none", batch_size=2)
    data.arrays.samples[:, 2] = 7
    x = torch.cat([x for x, _ in data._ordered_loader(data.parts["train"], 64)])

    assert x.dtype == torch.float32
    assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    assert_close(x.std((0, 2, 3)), torch.tensor([1.0, 1.0, 0.0]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(3, 32, 32), (1, 28, 28), (3, 9, 17)])
def test_crop_flip_gives_a_window_of_the_padded_image_or_its_mirror(size):
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(1, 256, (150, *size), dtype=torch.uint8, generator=draw)
    pad_y, pad_x = size[1] // 8, size[2] // 8
    padded = torch.nn.functional.pad(x, (pad_x, pad_x, pad_y, pad_y))
    seen = set()
    for image, result in zip(padded, AUGMENTS["crop_flip"](x, draw), strict=True):
        found = [
            (top, left, flip)
            for top in range(2 * pad_y + 1)
            for left in range(2 * pad_x + 1)
            for flip in (False, True)
            if torch.equal(
                result.flip(-1) if flip else result,
                image[:, top : top + size[1], left : left + size[2]],
            )
        ]
        assert len(found) == 1
        seen.add(found[0])

    assert {flip for _, _, flip in seen} == {False, True}
    assert {top for top, _, _ in seen} == set(range(2 * pad_y + 1))
    assert {left for _, left, _ in seen} == set(range(2 * pad_x + 1))


def test_auto_augments_photographs_only():
    assert digits().augment == "none"
    assert cifar10().augment == image_folder(root="x").augment == "crop_flip"
    assert image_folder(root="x", channels=1).augment == "none"
    assert image_folder(root="x", channels=1, augment="crop").augment == "crop"


def test_the_time_that_is_left_counts_images_not_full_batches() -> None:
    data = made((20, 20, 20), eval_batch_size=512)
    counted = SearchProblem.images.fget(SimpleNamespace(data=data))  # type: ignore[attr-defined]
    train = len(data.parts["train"])
    assert counted == (train - train % 8, len(data.parts["val"]))


def test_digits_are_whole_and_bright():
    data = digits(name="digits", batch_size=64)
    data.setup()

    assert (data.name, data.input_shape, data.num_outputs) == ("digits", (1, 8, 8), 10)
    assert data.classes == tuple("0123456789")
    assert sum(map(len, data.parts.values())) == 1797
    assert data.arrays.samples.max() == 255
    x, y = next(iter(data.weight_loader()))
    assert (x.shape, y.shape, y.dtype) == ((64, 1, 8, 8), (64,), torch.int64)


# Image folders


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_any_sizes_becomes_one_size(tmp_path, channels):
    data = image_folder(root=str(folder(tmp_path)), size=6, channels=channels, batch_size=2)

    assert data.classes == ("cat", "dog")
    assert data.input_shape == (channels, 6, 6)
    assert torch.bincount(data.arrays.targets).tolist() == [8, 8]


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        ({"train": 8, "test": 3}, {"train": 12, "val": 4, "test": 6}),
        ({"train": 8, "val": 3}, {"train": 12, "val": 4, "test": 6}),
        ({"train": 8, "val": 2, "test": 3}, {"train": 16, "val": 4, "test": 6}),
        ({"train": 10}, {"train": 12, "val": 4, "test": 4}),
    ],
)
def test_folder_keeps_the_parts_it_comes_in(tmp_path, folders, sizes):
    for part, images in folders.items():
        folder(tmp_path, images=images, part=part)
    data = image_folder(root=str(tmp_path), batch_size=2, test_fraction=0.2)

    assert {part: len(indices) for part, indices in data.parts.items()} == sizes


def test_a_class_may_be_called_train(tmp_path):
    assert image_folder(root=str(folder(tmp_path, ("train", "tram")))).classes == ("train", "tram")


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    folder(tmp_path)
    for junk in (".cache/0.png", "__MACOSX/0.png", "cat/.0.png", "cat/notes.txt"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_text("junk")
    data = image_folder(root=str(tmp_path), unreadable="refuse", batch_size=2)

    assert data.classes == ("cat", "dog")
    assert len(data.arrays.targets) == 16


def test_unreadable_images_are_named_and_skipped_or_refused(tmp_path, caplog):
    folder(tmp_path)
    whole = (tmp_path / "cat" / "7.png").read_bytes()
    (tmp_path / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "dog" / "text.jpg").write_text("not an image")

    with caplog.at_level(logging.WARNING):
        data = image_folder(root=str(tmp_path), batch_size=2)
        data.setup()

    assert "2 of 18 images" in caplog.text
    assert os.path.join("cat", "cut.png") in caplog.text
    assert os.path.join("dog", "text.jpg") in caplog.text
    assert torch.bincount(data.arrays.targets).tolist() == [8, 8]
    with pytest.raises(UserError, match=r"cut\.png.*data\.unreadable=skip"):
        image_folder(root=str(tmp_path), unreadable="refuse").setup()


# Errors


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 1}, r"data\.batch_size=1 .* at least 2"),
        ({"batch_size": 0}, r"data\.batch_size=0 "),
        ({"batch_size": "abc"}, r"data\.batch_size='abc' .* whole number"),
        ({"batch_size": 2.5}, r"data\.batch_size=2\.5 "),
        ({"eval_batch_size": 0}, r"data\.eval_batch_size=0 "),
        ({"val_fraction": 0}, r"data\.val_fraction=0 .* above 0 and below 1"),
        ({"val_fraction": 1.0}, r"data\.val_fraction=1\.0 "),
        ({"val_fraction": "x"}, r"data\.val_fraction='x' "),
        ({"val_fraction": float("nan")}, r"data\.val_fraction=nan "),
        ({"test_fraction": -0.1}, r"data\.test_fraction=-0\.1 "),
        ({"limit": 0}, r"data\.limit=0 "),
        ({"augment": "flip"}, r"data\.augment='flip' .* auto, none, crop, crop_flip"),
        ({"batch_size": 91}, r"data\.batch_size=91 .* train split of 77 images.* =?77 or less"),
        ({"limit": 3}, r"class '.' has 1 image\(s\) .* data\.limit=3: raise data\.limit"),
    ],
)
def test_option_out_of_range_is_named_with_its_value(options, words):
    words = words.replace("=?77", r"data\.batch_size=77")
    with pytest.raises(UserError, match=words):
        made(**options).setup()


def test_batch_larger_than_the_val_split_is_refused_by_the_alpha_loader():
    data = made(batch_size=30)
    data.setup()

    with pytest.raises(UserError, match=r"data\.batch_size=30 .* val split of 25 images"):
        data.alpha_loader()


def test_class_too_small_to_be_split_is_named():
    with pytest.raises(UserError, match=r"class 'b' has 2 image\(s\) .* at least 3 .*train, val"):
        made((10, 2)).setup()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (image_folder, r"data\.root is not set: pass data\.root=FOLDER"),
        (lambda: image_folder(root="no/such"), r"data\.root=no/such is not a folder"),
        (lambda: fashion_mnist(root="no/such", download=False), r"data\.root=no/such is not"),
        (lambda: cifar10(root="no/such", download=False), r"data\.root=no/such is not a folder"),
        (lambda: cifar10(root=None), r"data\.root is not set"),
        (lambda: image_folder(root="x", size=0), r"data\.size=0 "),
        (lambda: image_folder(root="x", channels=4), r"data\.channels=4 .* 1, 3"),
        (lambda: image_folder(root="x", unreadable="no"), r"data\.unreadable='no' .* skip, refuse"),
    ],
)
def test_source_that_cannot_be_read_says_why(make, words):
    with pytest.raises(UserError, match=words):
        make().setup()


@pytest.mark.parametrize("make", [fashion_mnist, cifar10])
def test_set_absent_from_its_folder_says_how_to_get_it(tmp_path, make):
    with pytest.raises(UserError, match=r"not be found in .*data\.root=.*data\.download=true"):
        make(root=str(tmp_path), download=False).setup()


@pytest.mark.parametrize(("make", "module"), [(fashion_mnist, "mnist"), (cifar10, "cifar")])
def test_failed_download_says_how_to_go_on(tmp_path, monkeypatch, make, module):
    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", offline)
    with pytest.raises(UserError, match=r"not be downloaded.*no network.*pass data\.root=FOLDER"):
        make(root=str(tmp_path)).setup()


def test_folder_without_classes_images_or_a_second_class_is_refused(tmp_path):
    def refused(root, words):
        with pytest.raises(UserError, match=words):
            image_folder(root=str(root), batch_size=2).setup()

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no class folder, and at least two")
    refused(folder(tmp_path / "one", ["cat"]), "only one class folder, 'cat'")
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    (tmp_path / "bare" / "dog").mkdir()
    refused(tmp_path / "bare", r"hold no image: add files ending in \.jpg")
    (folder(tmp_path / "half") / "owl").mkdir()
    refused(tmp_path / "half", r"class 'owl' has 0 image\(s\)")
    folder(tmp_path / "other", part="train")
    refused(folder(tmp_path / "other", ["cat", "cow"], part="test"), "class folder 'cow'")


def test_images_that_cannot_fit_into_memory_are_refused_before_reading(tmp_path):
    with pytest.raises(UserError, match=r"16 images of data\.size=1000000 .* lower data\.size"):
        image_folder(root=str(folder(tmp_path)), size=1_000_000).setup()


# Configurations


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_makes_the_data_set_of_its_name(config):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        data = instantiate(compose(config.stem))(seed=7)

    assert isinstance(data, DataModule)
    assert (data.name, data.seed) == (config.stem, 7)


def test_there_is_a_configuration_for_each_source():
    names = {path.stem for path in CONFIGS.glob("*.yaml")}
    assert names >= {"digits", "fashion_mnist", "cifar10", "image_folder"}


# Real data


def test_fashion_mnist_loads_from_its_files():
    root = os.environ.get("NAS_TEST_DATA")
    if not root or not (Path(root) / "FashionMNIST").is_dir():
        pytest.skip("set NAS_TEST_DATA to a folder that holds FashionMNIST/raw")
    data = fashion_mnist(root=root, download=False, batch_size=128)

    assert {part: len(indices) for part, indices in data.parts.items()} == {
        "train": 45_000,
        "val": 15_000,
        "test": 10_000,
    }
    assert data.mean == pytest.approx([0.286], abs=0.002)  # published: 0.2860 and 0.3530
    assert data.std == pytest.approx([0.353], abs=0.002)


# Images by a table


def by_table(root: Path, text: str, **options) -> DataModule:
    for i in range(12):
        png(root / f"train/{i}.png", value=20 * i, mode="L")
    for i in range(4):
        png(root / f"test/{i}.png", value=20 * i, mode="L")
    (root / "labels.csv").write_text(text)
    given = {"size": 4, "channels": 1, "batch_size": 2, **options}
    return image_folder(str(root), labels=str(root / "labels.csv"), **given)


ROWS = [("train", i) for i in range(12)] + [("test", i) for i in range(4)]


@pytest.mark.parametrize(
    ("task", "columns", "row", "classes"),
    [
        (Multilabel(), "wet,new", lambda i: f"{i % 2},{i // 2 % 2}", ("wet", "new")),
        (Regression(), "age", lambda i: i / 2, ("age",)),
        (None, "kind", lambda i: "cat" if i % 2 else "dog", ("cat", "dog")),
    ],
)
def test_a_table_gives_the_targets_of_images(tmp_path, task, columns, row, classes):
    lines = [f"{part}/{i}.png,{row(i)}" for part, i in reversed(ROWS)]
    data = by_table(tmp_path, "\n".join([f"file,{columns}", *lines]), task=task)
    data.setup()
    assert data.classes == classes
    assert len(data.parts["test"]) == 4
    for sample, target in zip(data.arrays.samples, data.arrays.targets, strict=True):
        i = int(sample[0, 0, 0]) // 20
        given = row(i)
        if task is None:
            assert classes[target] == given
        else:
            assert target.tolist() == [float(part) for part in str(given).split(",")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\ntrain/0.png", "has one column"),
        ("file,wet\ntrain/99.png,1", "names 'train/99.png', which is no file"),
        ("file,wet\ntrain/0.png,1\ntrain/0.png,1", "names 'train/0.png' twice"),
        ("file,wet\ntrain/0.png,", "column 'wet' has no value in row 0"),
        ("file,wet,new\ntrain/0.png,1,yes", "column 'new' has texts"),
        ("file,wet", "has no rows"),
        ("", "cannot be read"),
    ],
)
def test_a_table_of_images_that_cannot_be_used_is_refused(tmp_path, text, said):
    with pytest.raises(UserError) as refused:
        by_table(tmp_path, text).setup()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


class _Counting(pl.LightningModule):
    """Counts the samples that it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight, self.samples = torch.nn.Parameter(torch.zeros(())), 0

    def training_step(self, batch, _):
        self.samples += len(batch[1])
        return self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("named", [True, False])
def test_a_trainer_takes_a_data_module(named):
    data = digits(limit=100, batch_size=25, val_fraction=0.5)
    assert type(data).__mro__[1:] == (object,)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    model = _Counting()
    given = {"datamodule": data} if named else {"train_dataloaders": data}
    trainer.fit(model, **given)
    assert model.samples == 50
    assert isinstance(data, pl.LightningDataModule)
    again = pickle.loads(pickle.dumps(digits()))  # noqa: S301
    assert isinstance(again, DataModule)
    assert again.input_shape == data.input_shape
    data.trainer = None
    assert isinstance(pickle.loads(pickle.dumps(data)), DataModule)  # noqa: S301
