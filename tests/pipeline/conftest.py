"""Runs through the command line, in this process, small enough for a test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nas.cli import run

SMALL = [
    "space.width=0.25",
    "data.limit=400",
    "finetune.epochs=2",
    "threads=1",
    "trainer.enable_progress_bar=false",
]

SEARCHED = ["search.epochs=2", "search.warmup_epochs=1"]

Nas = Callable[..., int]


@pytest.fixture
def small() -> list[str]:
    return [*SMALL, *SEARCHED]


@pytest.fixture
def nas_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    """`nas VERB ...` in an empty folder, with small networks, few images and few epochs."""
    monkeypatch.chdir(tmp_path)

    def command(verb: str, *arguments: str) -> int:
        searched = [] if "search=random" in arguments else SEARCHED
        return run([verb, *SMALL, *searched, *arguments])

    return command
