"""The run directory: the names of its files, what state it is in, and finding the run to resume."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.artifacts.files import claimed, is_main, remove_leftovers
from nas.artifacts.reading import read_json
from nas.errors import UserError, is_full


class _Entry:
    """A file or folder of a run directory, an attribute with its path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: "RunDir", kind: type) -> Path:
        return run.path / self.name


@dataclass(frozen=True)
class RunDir:
    """A folder with the artefacts of one run; each stage reads what an earlier one wrote.

    Args:
        path: of the folder.

    Attributes:
        config: the configuration, resolved.
        asked: what the user typed to begin it.
        checkpoint: of the search.
        finetune_checkpoint: of the training of the network; it is removed at the very end.
        trials: a line for each architecture that was scored.
        arch: the architecture found.
        network, onnx: the network found.
        result: costs, metrics, versions and the rest.
        drawing: the network block by block; beside it the same as a table, with the suffix .csv.
        tensorboard: folder of the curves.
        front: folder of the networks taken out of the search, each a run of its own by the hash of
            its architecture.
        report: the page of `nas report`.
    """

    path: Path

    config = _Entry("config.yaml")
    asked = _Entry("asked.json")
    checkpoint = _Entry("last.ckpt")
    finetune_checkpoint = _Entry("finetune.ckpt")
    trials = _Entry("trials.jsonl")
    arch = _Entry("arch.json")
    network = _Entry("network.pt")
    onnx = _Entry("network.onnx")
    result = _Entry("result.json")
    drawing = _Entry("network.svg")
    front = _Entry("front")
    report = _Entry("report.html")

    def create(self) -> "RunDir":
        """Make the folder, check that it can be written to, remove what killed runs left half done.

        Raises:
            UserError: the folder cannot be made or written.
            OSError: the disk is full.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                f"cannot write to the output folder {self.path} ({error.strerror}); "
                "choose another one with out=FOLDER"
            ) from None
        if is_main():
            remove_leftovers(self.path)
        return self

    def claimed(self, wait: bool = False) -> AbstractContextManager[None]:
        """Keep other processes out of this folder; see `nas.artifacts.files.claimed`.

        Of a distributed training the first process holds it for all.
        """
        return claimed(self.path / ".lock", str(self.path), wait) if is_main() else nullcontext()

    @property
    def tensorboard(self) -> Path:
        """See the class; a job of a sweep names it by its settings, ``strength=0.5,seed=1``."""
        named = (path.parent for path in self.path.glob("*=*/events.out.tfevents.*"))
        return next(named, self.path / "tensorboard")

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json, or None where the run has not ended or it is unreadable."""
        try:
            content = read_json(self.result)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    @property
    def finished(self) -> bool:
        """Whether result.json says so."""
        return (self.read_result() or {}).get("status") == "finished"

    @property
    def complete(self) -> bool:
        """Finished, with its other files made."""
        return self.finished and not self.finetune_checkpoint.exists()


def find_runs(folder: Path) -> list[RunDir]:
    """Every run directory at or below `folder`, in the order of their paths."""
    found = [
        Path(path)
        for path, _, files in os.walk(folder)
        # Hydra keeps a config.yaml of its own in `.hydra`; it is no run.
        if os.path.basename(path) != ".hydra" and {"result.json", "config.yaml"} & set(files)
    ]
    return [RunDir(path) for path in sorted(found)]


def fingerprint(config: Mapping[str, Any], without: tuple[str, ...] = ()) -> str:
    """A hash of a resolved configuration, leaving out keys that do not change the result.

    A key that is not set, null or empty, is as if it were not there: runs outlive new options.
    """
    kept = _set({k: v for k, v in config.items() if k not in without})
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _set(value: Any) -> Any:
    """Without what is null or an empty mapping, at any depth."""
    if not isinstance(value, Mapping):
        return value
    inner = {k: _set(v) for k, v in value.items()}
    return {k: v for k, v in inner.items() if v is not None and v != {}}
