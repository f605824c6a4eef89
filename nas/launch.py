"""A command line that Hydra reads: composed, and carried out once or as the jobs of a sweep."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nas.artifacts.files import display_path
from nas.config.compose import Arguments, in_words, parse_overrides
from nas.config.help import config_dir
from nas.config.saved import COMMAND, remove_if_empty
from nas.errors import FailedRunError, InterruptedRunError, UserError, is_full
from nas.progress import PREFIX
from nas.verbs import Job, carry_out, cores, most_threads, values_by_key


def launch(verb: str, given: Arguments) -> int:
    """Compose the configuration of a command line and carry out its verb; the exit code."""
    # Hydra then lets exceptions through instead of printing them and exiting with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ[COMMAND] = f"nas {verb}"
    words = [*given.flags, *given.overrides, _fixed_keys(given.overrides)]
    script = sys.argv[0]
    sys.argv = [f"nas {verb}", *words]
    ended: list[Exception] = []
    launcher = os.getpid()

    def job(config: DictConfig) -> None:
        # With this command line Lightning starts the other processes of a distributed training.
        sys.argv = [script, *given.typed]
        asked = _job()
        several = asked.sweep is not None
        _sign_lines(several and os.getpid() != launcher)
        try:
            carry_out(verb, config, asked)
            return
        except (UserError, FailedRunError, InterruptedRunError) as error:
            # Without its traceback: Hydra keeps what each job of a sweep has raised, and that would
            # keep the job's data and networks.
            failure: Exception = type(error)(str(error))
        except Exception as error:
            failure = error
        # Of a sweep Hydra must hear of it; of a single job it would only print more lines.
        if several and (os.getpid() != launcher or not isinstance(failure, InterruptedRunError)):
            raise failure
        ended.append(failure)
        if several:  # else Hydra takes it for the failure of one job, and begins the next
            raise KeyboardInterrupt
        _tidy(asked.folder, Path(config.out))
        _tidy(Path(f"{config.out}/{config.name}"), Path(config.out))

    task = hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(job)
    try:
        with _output_folder(), in_words(given.overrides):
            task()
    except KeyboardInterrupt:
        if not ended:
            raise
    for failure in ended:
        with in_words(given.overrides):
            raise failure
    return 0


def _job() -> Job:
    """The job that Hydra has begun."""
    settings = HydraConfig.get()
    # As they were typed: what they refer to is read, or refused, with the configuration.
    words = cast(list[str], OmegaConf.to_container(settings.overrides.task, resolve=False))
    sweep = settings.mode == RunMode.MULTIRUN
    fixed = settings.job.config.override_dirname.exclude_keys
    return Job(
        command=" ".join([os.environ.get(COMMAND, "nas search"), *words]),
        words=words,
        folder=display_path(Path(settings.runtime.output_dir)),
        search=settings.runtime.choices["search"],
        sweep=Path(settings.sweep.dir) if sweep else None,
        swept=[key for key in values_by_key(words) if key not in fixed] if sweep else (),
        threads=most_threads(_threads(settings.launcher) if sweep else cores()),
    )


def _threads(launcher: Mapping[str, Any]) -> int:
    """The cores of this machine, shared by the jobs that a launcher runs at once."""
    count = cores()
    if given := launcher.get("cpus_per_task"):  # of submitit
        return min(count, int(given))
    jobs = int(launcher.get("n_jobs") or 1)
    return max(1, count // (count if jobs < 0 else jobs))


def _sign_lines(beside: bool) -> None:
    """Jobs that run side by side write to one terminal: each says which it is."""
    if beside:
        os.environ[PREFIX] = f"run {HydraConfig.get().job.num}: "


def _fixed_keys(words: Sequence[str]) -> str:
    """The override that tells Hydra which keys have one value in all jobs of a sweep."""
    fixed = [str(o.key_or_group) for o in parse_overrides(words) if not o.is_sweep_override()]
    quoted = ",".join(f"'{key}'" for key in dict.fromkeys(fixed))
    return f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"


@contextmanager
def _output_folder() -> Iterator[None]:
    """A folder that Hydra cannot make, in words for the user."""
    try:
        yield
    except OSError as error:
        # Hydra's own, as it makes the output folder; those of a job are failed runs.
        if is_full(error):
            raise
        raise UserError(
            f"cannot write to {error.filename} ({error.strerror}); choose another output folder "
            "with out=FOLDER"
        ) from None


def _tidy(made: Path, out: Path) -> None:
    """Remove the empty folders that Hydra has made for a run that does not take place."""
    top, made = out.absolute(), made.absolute()  # a name may hold "..": not resolved
    for folder in (made, *made.parents):
        if not folder.is_relative_to(top):
            return
        remove_if_empty(folder)
