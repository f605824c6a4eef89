"""What can be refused from the words and files alone is refused before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nas.errors import PAGES, page_of

DOCS = Path(__file__).parents[2] / "docs"
# Words of a command -> what the line of the refusal names.
REFUSED = {
    "search data=image_folder": "data.root is not set",
    "search data=image_folder data.root=gone": "data.root=gone",
    "search data=image_folder data.root=run": "no class folder",
    "search data=cifar10 data.root=gone data.download=false": "data.root=gone",
    "search sede=3": "'seed'",
    "search data=digit": "fashion_mnist",
    "search experiment=foo": "experiment/foo",
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
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.yaml"]


@pytest.mark.parametrize("page", PAGES)
def test_the_pages_that_refusals_name_exist(page: str) -> None:
    assert (DOCS / f"{page}.md").is_file()


def test_the_page_is_that_of_what_is_named_else_of_the_verb() -> None:
    assert page_of("search.epochs=0 must be at least 1", "describe") == "searches"
    assert page_of("RUN is not there", "extract") == "front"
    assert page_of("something else", "search") is None
