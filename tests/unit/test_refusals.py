"""What can be refused from the words and files alone is refused before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.config import folders
from nas.data import Arrays, digits
from nas.data.splits import split
from nas.errors import PAGES, UserError, page_of

DOCS = Path(__file__).parents[2] / "docs"
# Words of a command -> what the line of the refusal names.
REFUSED = {
    "search data=image_folder": "data.root is not set",
    "search data=image_folder data.root=gone": "data.root=gone",
    "search data=image_folder data.root=run": "no class folder",
    "search data=cifar10 data.root=gone data.download=false": "data.root=gone",
    "search data.batch_size=1200": "train split, of at most 1155 images: pass data.batch_size=512",
    "search data.limit=80 data.batch_size=70": "data.batch_size=70 is larger than the train split",
    "describe data=fashion_mnist data.batch_size=55000": "of at most 45005 images",
    "search data=image_folder data.root=photos": "data.batch_size=64 is larger than the train",
    "search sede=3": "'seed'",
    "search data=digit": "fashion_mnist",
    "search experiment=foo": "experiment=foo is none of",
    "search budget.macs=5X": "no amount",
    "search budget.latency=3MB": "3ms",
    "search search=fairnas search.epochs=0": "at least 1",
    "search finetune.optimizer.lr=-1": "at least 0",
    "search trainer.devices=0": "trainer.devices=0",
    "search objective.strength=2": "search=bilevel",
    "search profile=gone.json": "gone.json",
    "search resume=gone": "gone",
    "search --foo": "--foo",
    "finetune arch=gone.json": "gone.json",
    "describe space.width=-1": "space.width=-1",
    "extract gone": "gone",
    "extract .": "not a run's folder",
    "extract run foo=1": "foo",
    "extract run budget.params=5s": "no amount",
    "export .": "not a run's folder",
    "report gone": "gone",
    "draw gone": "gone",
}
RUN = """
import contextlib, io, json, sys
from nas.cli import run
found = {}
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = run(words.split())
    found[words] = [code, said.getvalue(), sorted({"torch", "sklearn"} & set(sys.modules))]
print(json.dumps(found))
"""


def test_refused_without_torch(tmp_path: Path) -> None:
    saved = tmp_path / "run"
    saved.mkdir()
    for i in range(40):
        image = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    cfg = "from nas.config.compose import compose_config as c; from omegaconf import OmegaConf as o"
    write = f"{cfg}; open('run/config.yaml', 'w').write(o.to_yaml(c(['name=run']), resolve=True))"
    command = [sys.executable, "-c", f"{write}\n{RUN}", json.dumps(list(REFUSED))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for words, said in REFUSED.items():
        code, line, heavy = found[words]
        assert code == 2, line
        assert said in line, words
        assert heavy == [], words
    assert [path.name for path in saved.iterdir()] == ["config.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]


@given(
    st.lists(st.integers(4, 40), min_size=2, max_size=6),
    st.sampled_from([0.1, 0.15, 0.25, 0.4]),
    st.sampled_from([0.1, 0.25, 0.5]),
    st.none() | st.integers(20, 100),
)
def test_a_batch_is_refused_from_outside_only_where_the_data_refuse_it(
    counts: list[int], test: float, val: float, limit: int | None
) -> None:
    """What is known without the data is a bound from above, and a close one."""
    labels = torch.repeat_interleave(torch.tensor(counts))
    names, everything = tuple(map(str, counts)), {"train": torch.arange(len(labels))}
    arrays = Arrays(torch.zeros(len(labels), 1), labels, tuple(names), everything)
    try:
        train = len(split(arrays, val, test, limit, seed=0)["train"])
    except UserError:  # of a class too few are left
        return
    found = folders.KNOWN | {"nas.data.digits": (len(labels), len(counts))}
    data = {"_target_": "nas.data.digits", "val_fraction": val, "test_fraction": test}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folders, "KNOWN", found)
        folders.check_batch({**data, "limit": limit, "batch_size": train})
        with pytest.raises(UserError, match="train split"):
            folders.check_batch({**data, "limit": limit, "batch_size": train + 2 * len(counts) + 2})


def test_data_sets_that_come_by_name_are_as_large_as_is_said() -> None:
    arrays = digits().arrays
    assert folders.KNOWN["nas.data.digits"] == (len(arrays.targets), len(arrays.classes))


def test_images_of_a_folder_are_counted_as_far_as_a_batch_needs(tmp_path: Path) -> None:
    for i in range(300):  # a third are no images, but what a system leaves in folders
        image = tmp_path / "ab"[i % 2] / f"{'.' if i % 3 == 0 else ''}{i}.png"
        image.parent.mkdir(exist_ok=True)
        image.touch()
    data = {"_target_": "nas.data.image_folder", "root": tmp_path, "test_fraction": 0.15}
    data["val_fraction"] = 0.25  # of the 170 that are not tested
    folders.check_batch({**data, "batch_size": 126})
    with pytest.raises(UserError, match="train split"):
        folders.check_batch({**data, "batch_size": 132})


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_that_refusals_name_exist(page: str) -> None:
    assert (DOCS / f"{page}.md").is_file()


def test_the_page_is_that_of_what_is_named_else_of_the_verb() -> None:
    assert page_of("search.epochs=0 must be at least 1", "describe") == "searches"
    assert page_of("RUN is not there", "extract") == "front"
    assert page_of("something else", "search") is None
