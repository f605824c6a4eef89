"""Going on with a run that was interrupted: which one it is, and what a user must type."""

import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nas.artifacts import RunDir, find_runs, fingerprint
from nas.errors import FolderTakenError, UserError
from nas.saved import read_saved, saved_config
from nas.trusted import refuse_links

# Keys that say where and how a run is made, not what comes out of it.
_UNIMPORTANT = ("out", "name", "resume", "trust", "threads", "trainer", "measure")

# Environment variable: jobs of a sweep may run in processes that know no command line.
COMMAND = "NAS_COMMAND"


def how_to_go_on(run: RunDir) -> str:
    """One sentence for the end of a message."""
    for saved in (run.finetune_checkpoint, run.checkpoint, run.trials):
        if saved.exists():
            verb = os.environ.get(COMMAND, "nas search")
            return f"Saved last: {saved}. Go on with: {verb} resume={run.path}"
    return "No epoch was completed, so there is no checkpoint yet: start again"


def resumed(config: DictConfig, made: Path) -> tuple[DictConfig, Path]:
    """The configuration and folder to go on with, `made` where nothing is resumed."""
    if config.resume in (False, None):
        return config, made
    if config.resume is not True:
        source = RunDir(Path(str(config.resume)))
        remove_if_empty(made)  # first: a folder that is refused leaves nothing behind
        return saved_config(source, config.trust), source.path
    wanted = _fingerprint(config, resolve=True)
    for run in reversed(find_runs(Path(config.out))):
        if _fingerprint_of(run) == wanted:
            refuse_links(run.path)
            if run.path != made:
                remove_if_empty(made)
            return config, run.path
    return config, made


def check_same(config: DictConfig, run: RunDir) -> None:
    """The folder of a run may be gone on with by the same run only.

    Raises:
        FolderTakenError: it holds results or checkpoints of other settings.
    """
    made = (run.checkpoint, run.finetune_checkpoint, run.trials)
    if not run.config.is_file() or not (run.finished or any(path.exists() for path in made)):
        return
    if _fingerprint_of(run) != _fingerprint(config, resolve=True):
        raise FolderTakenError(
            f"{run.path} holds a run of other settings: choose another folder with name= or out=, "
            f"go on with that run by resume={run.path}, or remove it"
        )


def remove_if_empty(folder: Path) -> None:
    """Hydra makes a folder before it is known whether anything comes into it."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _fingerprint_of(run: RunDir) -> str | None:
    """Of what a run has saved, which is resolved; None where it cannot be read."""
    try:
        return _fingerprint(read_saved(run), resolve=False)
    except UserError:
        return None


def _fingerprint(config: Any, resolve: bool) -> str:
    container = OmegaConf.to_container(config, resolve=resolve, enum_to_str=True)
    assert isinstance(container, dict)
    return fingerprint({str(k): v for k, v in container.items()}, without=_UNIMPORTANT)
