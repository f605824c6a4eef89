"""The run directory: names of its files, atomic writes, and finding the run to resume."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.claim import claimed, own_prefix, remove_leftovers
from nas.errors import UserError, is_full
from nas.reading import read_json


@dataclass(frozen=True)
class RunDir:
    """A folder with the artefacts of one run; each stage reads what an earlier one wrote."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.path / "last.ckpt"

    @property
    def finetune_checkpoint(self) -> Path:
        return self.path / "finetune.ckpt"

    @property
    def trials(self) -> Path:
        return self.path / "trials.jsonl"

    @property
    def arch(self) -> Path:
        return self.path / "arch.json"

    @property
    def network(self) -> Path:
        return self.path / "network.pt"

    @property
    def onnx(self) -> Path:
        return self.path / "network.onnx"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def drawing(self) -> Path:
        """The network block by block; beside it the same as a table, with the suffix .csv."""
        return self.path / "network.svg"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def extracts(self) -> Path:
        """Folder of the runs that `nas extract` makes of this one."""
        return self.path / "extracts"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

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
        """Inside, no other process works in this folder; see `nas.claim.claimed`.

        Of a distributed training the first process holds it for all.
        """
        return claimed(self.path / ".lock", str(self.path), wait) if is_main() else nullcontext()

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json, or None where the run has not ended or it is unreadable."""
        try:
            content = read_json(self.result)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    @property
    def finished(self) -> bool:
        return (self.read_result() or {}).get("status") == "finished"

    @property
    def complete(self) -> bool:
        """Finished, with its other files made."""
        # The checkpoint of the training is removed at the very end.
        return self.finished and not self.finetune_checkpoint.exists()


def is_main() -> bool:
    """Whether this is the first, or only, process of a distributed training.

    Told by the environment, as the others are before they know of one another.
    """
    if (rank := os.environ.get("RANK")) is not None:
        return rank == "0"
    # Each may be 0 in a process that another tells apart: Slurm's in those that Lightning starts
    # inside of one task, the local one on every node.
    return all(os.environ.get(n, "0") == "0" for n in ("SLURM_PROCID", "NODE_RANK", "LOCAL_RANK"))


def write_atomic(path: Path, content: str | bytes | memoryview) -> None:
    """Write `content` so that a reader, or a crash, sees the old file or the new one, never half.

    Of a distributed training, the first process alone writes: the others have the same to say. The
    temporary file lies beside the target: a rename is atomic within one file system only.
    """
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with naming(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=own_prefix(path.name))
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes the file private to its owner; results are meant to be shared.
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Lets an `OSError` say which file it is about: that of a full disk does not know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object atomically; NaN is refused, because JSON has none."""
    write_atomic(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def find_runs(folder: Path) -> list[RunDir]:
    """Every run directory at or below `folder`, in the order of their paths."""
    found = {file.parent for name in ("result.json", "config.yaml") for file in folder.rglob(name)}
    # Hydra keeps a config.yaml of its own in `.hydra`; it is no run.
    return [RunDir(path) for path in sorted(found) if path.name != ".hydra"]


def shown(path: Path) -> Path:
    """As the user would write it: relative where it lies below the working folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


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
