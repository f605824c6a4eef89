"""Commands of `nas` that a study gives, ends, and compares."""

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SMALL = ("space.width=0.25", "data.limit=400", "threads=1", "trainer.enable_progress_bar=false")
SEARCH = (
    "search", *SMALL, "search=fairnas", "search.epochs=4", "search.warmup_epochs=1",
    "finetune.epochs=4", "name=a",
)  # fmt: skip
TRIALS = (
    "search", *SMALL, "search=random_search", "search.evaluate.epochs=1", "search.trials=8",
    "finetune.epochs=2", "name=a",
)  # fmt: skip
PROFILE = (
    "profile", "space.width=0.25", "networks=4", "calibrate=2", "seconds=4", "seed=0",
    "out=profile.json",
)  # fmt: skip
EXTRACT = ("extract", "out/a", "front=3", "fine_tune=true", "finetune.epochs=3")
EXPORT = ("export", "out/a", "format=state_dict,pt2,onnx,python", "latency=false")
SWEEP = (*SEARCH, "-m", "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


# Figures that tell of this time and this machine, not of the result.
TIMES = re.compile(r"seconds|command|latency|date|path|folder")


def row(out: Path, key: str, make: Callable[[], Sequence[object]]) -> Sequence[object]:
    """What `make` gives, printed as a row of Markdown; of an earlier session as it is on record."""
    file = out / "rows.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    known = {found["key"]: found["cells"] for found in map(json.loads, lines)}
    cells = known.get(key)
    if cells is None:
        cells = list(make())
        with file.open("a") as record:
            record.write(json.dumps({"key": key, "cells": cells}) + "\n")
    print("| " + " | ".join(map(str, (key, *cells))) + " |", flush=True)
    return cells


class Command:
    """`nas WORDS` in `folder`, in a group of processes of its own.

    Forked from this process, which has imported everything: a kill at a random moment then meets
    work, not imports.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.words, self.log = " ".join(words), Path(f"{folder.resolve()}.log")
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            self._become(folder, words)

    def _become(self, folder: Path, words: Sequence[str]) -> None:
        from nas.cli import run

        code = 1
        try:
            os.setsid()
            for stream in (1, 2):
                os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            os.chdir(folder)
            code = run(words)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self, within: float = 600.0) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        end = time.monotonic() + within
        while self.code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                return False
            else:
                time.sleep(0.02)
        return True

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


def nas(folder: Path, words: Sequence[str]) -> Command:
    """The command, ended."""
    command = Command(folder, words)
    if not command.ended():
        raise SystemExit(f"{command.words} does not end, see {command.log}")
    return command


def required(command: Command) -> None:
    if command.code or "Traceback" in command.text:
        raise SystemExit(f"{command.words} ended with {command.code}, see {command.log}")


def figures(folder: Path, patterns: Sequence[str]) -> dict[str, Any]:
    """File -> what it says, without times; of a profile what was measured, not how long it took."""
    found: dict[str, Any] = {}
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        text = path.read_text()
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        said = [timeless(json.loads(line)) for line in lines]
        if path.name == "profile.json":
            said = [sorted(json.loads(text)["units"]), len(json.loads(text)["networks"])]
        found[str(path.relative_to(folder))] = said
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not TIMES.search(k) and k != "options"}
    return [timeless(item) for item in value] if isinstance(value, list) else value
