"""What the documents say works: walkthroughs in a copy of the project, code blocks, links."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import nn

import nas.verbs
from nas.cli import run
from nas.config.check import check
from nas.config.compose import made, parse
from nas.config.help import VERBS, groups
from nas.errors import UserError
from nas.export.formats import FORMATS
from nas.latency.profile import About, Profile

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *ROOT.glob("experiments/*/*.md")]
GENERATED = ("keys.md", "commands.md")  # of the site: their headings come from the configuration
SMALL = ["space.width=0.25", "data.limit=200", "threads=1", "onnx=false"]
SMALL += ["trainer.enable_progress_bar=false"]
RANKED = [
    "search=fairnas",
    "search.epochs=2",
    "search.ranking.trials=6",
    "search.ranking.searcher=random",
]
SMALLEST = ["search=random", "finetune.epochs=1", "onnx=false", "logger=[]", "threads=1"]
SMALLEST += ["trainer.enable_progress_bar=false"]
# What README takes for a network that its reader has.
NETWORK = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
"""
# Runs each argument as a command. The imports take longer than the commands: all share them.
COMMANDS = """
import gc, shlex, sys
gc.disable()
import pytest
from nas.cli import run

for line in sys.argv[1:]:
    program, *words = shlex.split(line)
    if program == "nas":
        code = run(words)
    else:
        assert (program, *words[:2]) == ("python", "-m", "pytest"), line
        code = pytest.main(words[2:])
    if code:
        sys.exit(f"{line}: exit code {code}")
"""
# The reason why a block is not run, its language, the words behind that, its lines.
BLOCK = re.compile(
    r"^(?:<!-- not run: (.+?) -->\n)?```(\w*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def walkthroughs() -> dict[str, str]:
    """Title -> text of each section that holds an edit."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = (part.partition("\n") for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:])
    return {
        title: body for title, _, body in sections if re.search(r"^```\w+ \w+/", body, re.MULTILINE)
    }


def edits(section: str) -> Iterator[tuple[str, str]]:
    """Each block of a section: the words after its language, and its lines.

    ``python nas/ops/x.py`` is a new file; ``after: TEXT`` behind it goes below the one line that
    holds TEXT, ``before: TEXT`` above it; ``bash`` is run.
    """
    for language, words, body in FENCE.findall(section):
        yield ("run" if language == "bash" else words.strip()), body


def apply(words: str, body: str, root: Path) -> None:
    """Carry out one edit of a file below `root`."""
    name, where, anchor = re.fullmatch(r"(\S+)(?: (after|before): (.+))?", words).groups()
    path = root / name
    if not where:
        assert not path.exists(), f"{name} is there already"
        path.write_text(body, encoding="utf-8")
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    places = [i for i, line in enumerate(lines) if anchor in line]
    assert len(places) == 1, f"{anchor!r} stands in {len(places)} lines of {name}"
    lines.insert(places[0] + (where == "after"), body)
    path.write_text("".join(lines), encoding="utf-8")


def test_walkthroughs(tmp_path):
    """All edits in one copy of the project, then all commands in one process."""
    for folder in ("nas", "configs", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    sections = walkthroughs()
    assert len(sections) >= 5
    commands: list[str] = []
    for title, section in sections.items():
        before = len(commands)
        for words, body in edits(section):
            if words == "run":
                commands += body.splitlines()
            else:
                apply(words, body, tmp_path)
        assert len(commands) > before, f"{title} ends in no check"
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, *commands],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A small finished search, which documents call RUN."""
    folder = tmp_path_factory.mktemp("documents")
    words = [*SMALL, *RANKED, f"out={folder}", "name=RUN", "front=2", "finetune.epochs=1"]
    assert run(["search", *words]) == 0
    return folder / "RUN"


def write(path: str, text: str) -> None:
    """A file of the user's; a module of its name that another page has written is forgotten."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    sys.modules.pop(Path(path).stem, None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    whole = nas.verbs._run
    if page.stem not in ("python", "own"):  # whose searches are carried out
        monkeypatch.setattr(nas.verbs, "_run", compose)
    smallest = [*SMALLEST] if page.stem == "own" else []
    monkeypatch.setitem(nas.verbs.VERBS, "describe", compose)
    monkeypatch.setitem(nas.verbs.VERBS, "profile", profile)
    for folder in ("cat", "dog"):
        Path("photos", folder).mkdir(parents=True)
        for number in range(60):  # more than a batch
            Image.new("L", (8, 8), 4 * number).save(f"photos/{folder}/{number}.png")
    shutil.copytree(run_folder, "RUN")
    shutil.copytree(run_folder, "runs/sweep/done")
    write("mine.py", NETWORK)
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()).state_dict(), "net.pt")
    names: dict[str, object] = {}
    for reason, language, words, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if reason or language == "text":
            continue
        if words:
            write(words, body)
        elif language == "bash":
            for number, line in enumerate(body.replace("\\\n", " ").splitlines()):
                # Runs of one second would have one name.
                command(line, [*smallest, f"name={len(names)}_{number}"] if smallest else [])
        else:
            assert language == "python", f"a block of {language!r} says neither file nor reason"
        if language == "python":
            python(compile(body, words or str(page), "exec"), names, page, whole)


def python(code: Any, names: dict[str, object], page: Path, whole: Any) -> None:
    """Carry out a block of Python; the searches of a page of small ones to their end."""
    with pytest.MonkeyPatch.context() as patched:
        if page.stem == "compress":
            patched.setattr(nas.verbs, "_run", whole)
        exec(code, names)


@pytest.mark.parametrize("name", ["mine", "waves", "fused", "asymmetric", "within"])
def test_what_is_ones_own_takes_less_than_25_lines(name):
    text = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")
    (body,) = (body for _, _, words, body in BLOCK.findall(text) if words == f"{name}.py")
    assert len(body.splitlines()) < 25


def command(line: str, more: Sequence[str] = ()) -> None:
    """Carry out a line of a shell, a search only up to the point where it would begin.

    Args:
        more: words for searches that are carried out to their end.
    """
    words = shlex.split(line, comments=True)
    while words and re.match(r"[A-Z]+=", words[0]):  # of the environment
        words.pop(0)
    if not words:
        return
    assert words[0] == "nas", line
    # Another process would not stop there.
    words = [word for word in words[1:] if not word.startswith("hydra")]
    given = parse(words[0], words[1:])
    if any(word.startswith("profile=[") for word in words):
        return  # the files would take minutes to measure
    if words[0] == "export":  # each format has its test
        assert set(given.options.format) <= set(FORMATS)
        words[2:] = ["format=python", "latency=false"]
    if "-m" in words:  # one job of a sweep is like another
        words = [re.sub(r"=([^\[,]+),.*", r"=\1", word) for word in words]
    assert run([*words, *(more if words[0] == "search" else ())]) == 0, line


def compose(config: DictConfig, *_: object) -> None:
    """What a search does with its configuration before it reads any data."""
    check(config)
    nas.verbs.components_of(config)


def profile(config: DictConfig, *_: object) -> None:
    """Leave a profile without any measurement where `nas profile` would write one."""
    check(config)
    made(config.measure)
    if config.measure.out:
        about = About("", ((1, 1, 8, 8),), "", "", "torch", "cpu", 1, "float32", 1, {}, "")
        Profile(about, {}).save(Path(config.measure.out))


def test_commands_of_documents_are_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nas.verbs, "_run", compose)
    for wrong in ("nas search sede=3", "nas search space=cahin", "nas sarch", "nas search seed=-1"):
        with pytest.raises((AssertionError, UserError, KeyError)):
            command(wrong)


def test_every_file_that_is_written_is_named(run_folder, tmp_path, monkeypatch):
    """Of a search, an extraction, an export and a sweep: each entry of a folder, by its name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_folder, "RUN")
    words = [*SMALL, "finetune.epochs=1", "search=random", "finetune.warmup_epochs=0,0.5"]
    assert run(["extract", "RUN", "budget.params=50%", "fine_tune=true"]) == 0
    assert run(["export", "RUN", "format=python,state_dict", "latency=false"]) == 0
    assert run(["search", "-m", "out=.", "name=sweep", *words]) == 0
    paths = [path for folder in ("RUN", "sweep") for path in Path(folder).rglob("*")]
    written = {path.name for path in paths if not re.match(r"events.*|.*=.*", path.name)}
    written = {re.sub(r"^[0-9a-f]{12}$", "HASH", name) for name in written}
    assert {"search.json", "tensorboard_report", "multirun.yaml", "card.md", "0"} <= written
    pages = [(ROOT / f"docs/{name}.md").read_text() for name in ("results", "export")]
    told = " ".join(
        re.findall("`[^`]+`", re.sub("```.*?```", "", " ".join(pages), flags=re.DOTALL))
    )
    assert written - set(re.findall(r"[\w.]+", told)) == set()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken(page) == []


def broken(page: Path) -> list[str]:
    """Links of a page to no file, no heading, or no address."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = []
    for link in re.findall(r"\]\(([^()\s]+)\)", text):
        if ":" in link:  # elsewhere: it is not asked for, there may be no network
            parts = urlsplit(link)
            good = parts.scheme in ("http", "https") and "." in parts.netloc
        else:
            name, _, anchor = link.partition("#")
            path = page.parent / name if name else page
            good = path.exists() and (not anchor or anchor in anchors(path))
        if not good:
            found.append(link)
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub, and the site, give to a page's headings."""
    if page.name in GENERATED:
        return {*groups(), "keys-of-a-run", *(f"nas-{verb}" for verb in VERBS)}
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_broken_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, of `two`\n[1](page.md#a-title-of-two) [2](page.md#none) [3](no.md) [4](#a) "
        "[5](https://example.org/x) [6](htps://example.org) [7](https://nowhere)"
    )
    assert broken(page) == ["page.md#none", "no.md", "#a", "htps://example.org", "https://nowhere"]
