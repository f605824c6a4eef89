"""What the documents say works: walkthroughs in a copy of the project, code blocks, links."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
# Runs each argument as a command. The imports take longer than the commands: forks share them.
COMMANDS = """
import os, shlex, sys
import pytest, pytorch_lightning, torchvision

for line in sys.argv[1:]:
    program, *words = shlex.split(line)
    if child := os.fork():
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{line}: exit code {code}")
    elif program == "nas":
        from nas.cli import run
        sys.exit(run(words))
    else:
        assert (program, *words[:2]) == ("python", "-m", "pytest"), line
        sys.exit(pytest.main(words[2:]))
"""
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
    """All edits in one copy of the project, then all commands, each in a fork of one process."""
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page):
    names: dict[str, object] = {}
    blocks = [
        body
        for language, _, body in FENCE.findall(page.read_text(encoding="utf-8"))
        if language == "python"
    ]
    assert blocks
    for body in blocks:
        exec(compile(body, str(page), "exec"), names)


@pytest.mark.parametrize(
    "page",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))],
)
def test_links_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
