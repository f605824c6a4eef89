"""The verbs search, finetune, describe and profile, of a configuration that is composed."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.artifacts import RunDir
from nas.artifacts.files import is_main, write_atomic, write_json
from nas.config.calls import target_of
from nas.config.check import check, check_keys, check_words
from nas.config.compose import made
from nas.config.saved import Asked, asked_first, check_same, how_to_go_on, remove_if_empty, resumed
from nas.config.written import attribute
from nas.diagnostics import collect_again, interrupting, silence_third_party_warnings
from nas.errors import (
    FailedRunError,
    FolderTakenError,
    InterruptedRunError,
    NotFiniteError,
    UserError,
    about_path,
    is_full,
    refusal,
    write_traceback,
)

DESCRIBED = ("data", "task", "space", "cost")  # what `nas describe trial=false` makes
FRONT = 8  # networks that a search trains, if it is not told how many


@dataclass(frozen=True)
class Job:
    """A run as it was asked for, by a command line or from Python.

    Args:
        command: what the user typed.
        words: the overrides in it, ``key=value``.
        folder: of the run, unless it goes on with an earlier one.
        search: the option of `search`.
        sweep: the folder of the sweep that it is a job of; None: it stands alone.
        swept: the keys that differ between the jobs of the sweep.
        threads: at most so many, where the configuration names no number of them.
        announced: print the table of what was found, and what to type next.
    """

    command: str
    words: Sequence[str]
    folder: Path
    search: str
    sweep: Path | None
    swept: Sequence[str]
    threads: int
    announced: bool = True


def carry_out(verb: str, config: DictConfig, job: Job) -> Path:
    """Carry out a verb with a configuration that is composed; the folder of its run."""
    config.out, config.name = str(config.out), str(config.name)  # a folder may be "0"
    check_keys(config)
    with only_main_prints(), interrupting():
        return VERBS[verb](config, job) or job.folder


def only_main_prints() -> AbstractContextManager[object]:
    """Of a distributed training, the first process alone prints."""
    return nullcontext() if is_main() else redirect_stdout(StringIO())


def _search(config: DictConfig, job: Job) -> Path:
    for key in ("arch", "checkpoint"):
        if config[key] is not None:
            raise UserError(f"{key}= is for `nas finetune`; `nas search` finds its architecture")
    return _train(config, job)


def _finetune(config: DictConfig, job: Job) -> Path:
    if config.arch is None:
        raise UserError("nas finetune needs arch=FILE, the arch.json of the network to train")
    if config.checkpoint is None and config.finetune.get("teacher") == "largest":
        raise UserError(
            "finetune.teacher=largest is a network of a trained supernet: pass checkpoint=FILE, "
            "the last.ckpt of a search, or finetune.teacher=RUN"
        )
    return _train(config, job)


def _train(config: DictConfig, job: Job) -> Path:
    """One job: single, or one of a sweep. A failure is recorded in its folder."""
    if not job.sweep:  # a job of a sweep that is refused leaves a record, see below
        check_words(config)
    _check_read(config, job.words)
    config.front = front_size(config, job.sweep is not None)
    goes_on = bool(config.resume)
    config, folder = resumed(config, job.folder)
    run = RunDir(folder)
    check_same(config, run)
    if run.complete:
        print(f"already finished: {run.path}")
        _tidy_checkpoint(config, run)
        return run.path
    asked = asdict((goes_on and asked_first(run)) or asked_of(config, job))
    try:
        _run(config, run, job, asked)
        if job.sweep:
            _follow(job.sweep)
        return run.path
    except (KeyboardInterrupt, InterruptedRunError):
        raise InterruptedRunError(f"interrupted. {how_to_go_on(run)}") from None
    except FolderTakenError:
        raise  # what is in the folder is not this run's
    except Exception as error:
        if job.sweep or run.checkpoint.exists():
            _record_failure(run, error, asked)
        elif folder == job.folder:
            remove_if_empty(folder)
        told = _told(error, run)
        if told is error:
            raise
        raise told from error


def _check_read(config: DictConfig, words: Sequence[str]) -> None:
    """Refuse what only searches with alphas read, where no search is named.

    Raises:
        UserError: with the word.
    """
    if any(word.partition("=")[0].lstrip("+") in ("search", "experiment") for word in words):
        return
    if not isinstance(config.search, DictConfig) or "_target_" not in config.search:
        return
    leaves = _leaves(config.search)
    for word in words if leaves != "alphas" and config.resume is False else ():
        key = word.partition("=")[0].lstrip("+~").partition(".")[0]
        if key in ("objective", "stable_epochs", "guard") and "=augmented_" not in word:
            raise UserError(
                f"{word} is for searches that move alphas while they train: name one, e.g. "
                "search=bilevel"
            )


def front_size(config: DictConfig, sweep: bool) -> Any:
    """How many networks a run trains: as many as it is told to, else see config.yaml.

    Args:
        sweep: whether it is a job of a sweep.
    """
    node, budgets = config.search, config.budget
    if config.arch or config.front is not None:
        return 1 if config.arch else config.front
    if sweep or not all(isinstance(one, DictConfig) for one in (node, budgets)):
        return 1  # what is no mapping is refused later
    if "_target_" not in node or any(amount is not None for amount in budgets.values()):
        return 1
    # A network whose score departs from what it is once trained is only proposed by the search.
    scored_by = str((node.get("evaluate") or {}).get("_target_"))
    proposes = _leaves(node) in ("alphas", "supernet") or attribute(scored_by, "noise") is not None
    return FRONT if proposes else 1


def _leaves(search: DictConfig) -> str:
    """What a search leaves behind, see `nas.search.base.Search`, if possible without an import."""
    known = attribute(str(search["_target_"]), "leaves")
    return str(known or getattr(target_of(search, "search"), "leaves", "nothing"))


def _told(error: Exception, run: RunDir) -> Exception:
    """What the user is told of an error that has ended a run."""
    if isinstance(error, UserError | HydraException | OmegaConfBaseException):
        return error
    if isinstance(error, NotFiniteError):
        return FailedRunError(
            f"{error}: lower the learning rate (search.weight_optimizer.lr, "
            f"finetune.optimizer.lr) or raise clip. {how_to_go_on(run)}"
        )
    if (about := about_path(error)) and not run.config.exists():
        return UserError(about)
    if isinstance(error, OSError | FailedRunError):  # e.g. the disk is full, a worker died
        said = refusal(error) if isinstance(error, OSError) else error
        return FailedRunError(f"{said}. {how_to_go_on(run)}")
    where = write_traceback(error, run.path if run.path.is_dir() else None)
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return FailedRunError(f"{reason[:500]} (see {where}). {how_to_go_on(run)}")


def _follow(sweep: Path) -> None:
    """Draw the fronts of the sweep so far; the run that has just ended does not depend on it."""
    from nas.report import follow

    try:
        follow(sweep)
    except OSError as error:
        logging.getLogger("nas").warning("no picture of the sweep: %s", refusal(error))


def _record_failure(run: RunDir, error: Exception, asked: dict[str, Any]) -> None:
    message = " ".join(str(error).split())
    if not isinstance(error, UserError):  # its text may mean nothing without its kind
        message = f"{type(error).__name__}: {message}"
    about = {"schema": 1, "status": "failed", "message": message, **asked}
    # What has finished stays so, e.g. where only printing failed; a full disk takes no record.
    if not run.finished:
        with suppress(OSError):
            write_json(run.result, about)


def _run(config: DictConfig, run: RunDir, job: Job, asked: dict[str, Any]) -> None:
    check(config)
    silence_third_party_warnings()
    import torch

    from nas.arch import Arch
    from nas.export import load_supernet
    from nas.front import FrontRun, announce_front
    from nas.pipeline import Run
    from nas.problem import SearchProblem
    from nas.report.terminal import announce, data_in_words
    from nas.search.base import leaves_of
    from nas.search.compress import original_in_words

    torch.set_num_threads(config.threads or job.threads)
    arch = Arch.load(Path(config.arch)) if config.get("arch") else None
    components = components_of(config)
    if config.onnx is None and job.sweep is not None and components["front"] == 1:
        # Few jobs of a sweep are kept: `nas export` and `nas draw` make their files.
        components |= {"onnx": False, "drawn": False}
    problem = SearchProblem(**components, about=asked)
    torch.set_num_threads(config.threads or problem.threads(job.threads))
    kind, show = (FrontRun, announce_front) if problem.front > 1 else (Run, announce)
    pipeline = kind(problem, run, arch)
    if config.get("checkpoint"):
        load_supernet(pipeline.supernet, Path(config.checkpoint))
    print(data_in_words(problem.data))
    if said := original_in_words(problem):
        print(said)
    run.create()
    # Jobs of two sweeps into one folder: the second finds what the first has made.
    with run.claimed(wait=job.sweep is not None):
        check_same(config, run)
        if run.complete:
            print(f"already finished: {run.path}")
            return
        write_atomic(run.config, OmegaConf.to_yaml(config, resolve=True))
        write_json(run.asked, asked)
        collect_again()
        result = pipeline()
        _tidy_checkpoint(config, run)
    if job.announced:
        show(run, result, "nothing" if arch else leaves_of(problem.search))


def _tidy_checkpoint(config: DictConfig, run: RunDir) -> None:
    """Of a finished run's checkpoint, keep what `nas extract` needs, or nothing."""
    if not is_main() or not run.checkpoint.is_file():
        return
    from nas.export.loading import slim

    with suppress(OSError, ValueError):  # it stays larger than it need be
        if config.get("keep") == "network":
            run.checkpoint.unlink()
        else:
            slim(run.checkpoint)


def components_of(config: DictConfig) -> dict[str, Any]:
    """What a configuration describes: the arguments of `nas.problem.SearchProblem` but `about`.

    Raises:
        UserError: a component refuses its values.
    """
    return {
        "data": _data(config),
        "make_supernet": made(config.space),
        "relax": made(config.relax),
        "search": made(config.search),
        "cost_models": made(config.cost),
        "amounts": dict(config.budget),
        "objective": made(config.objective),
        "finetune": made(config.finetune),
        "trainer": made(config.trainer),
        "seed": config.seed,
        "inherit": config.weights == "inherited",
        "onnx": config.onnx is not False,
        "front": config.get("front") or 1,
        "stable_epochs": config.stable_epochs,
        "guards": made(config.get("guard") or {}),
        "speed": config.speed,
        "loggers": _loggers(config),
        "callbacks": made(config.get("callbacks")),
        "engine": made(config.get("engine")),
    }


def _loggers(config: DictConfig) -> Sequence[Any]:
    """By name as configured, or as given from Python: one, or several."""
    if "logger" not in config:  # of an earlier version
        from nas.result import TensorBoard

        return [TensorBoard]
    found = made(config.logger) or {}
    if isinstance(found, dict):
        return list(found.values())
    return found if isinstance(found, list | tuple) else [found]


def _data(config: DictConfig) -> Any:
    from nas.problem import data_for

    return data_for(made(config.data), made(config.get("task")), config.seed)


def asked_of(config: DictConfig, job: Job) -> Asked:
    """What the user asks for."""
    # With resume=FOLDER the command line chooses no search.
    resumed = any(
        word.startswith("resume=") and word.lower() not in ("resume=true", "resume=false")
        for word in job.words
    )
    return Asked(
        seed=config.seed,
        search=job.search if config.arch is None and not resumed else None,
        overrides=values_by_key(job.words),
        swept=list(job.swept),
        command=job.command,
    )


def values_by_key(words: Sequence[str]) -> dict[str, Any]:
    """Key -> value of overrides, for result.json; those that change no result are left out."""
    given = {key.lstrip("+~"): value for key, _, value in (w.partition("=") for w in words)}
    unimportant = ("out", "name", "keep", "resume", "trust", "threads", "trial", "engine", "logger")
    # YAML knows dates, which a folder may be named by, and JSON has none.
    values = {k: json.dumps(yaml.safe_load(v), default=str) for k, v in given.items()}
    return {k: json.loads(v) for k, v in values.items() if k.split(".")[0] not in unimportant}


def most_threads(count: int) -> int:
    """So many threads, or fewer where OMP_NUM_THREADS says so."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(count, int(given)) if given.isdecimal() and int(given) else count


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe(config: DictConfig, job: Job) -> None:
    check_words(config)
    check(config, DESCRIBED if not config.trial else None)
    remove_if_empty(job.folder)
    silence_third_party_warnings()
    import torch

    from nas.compress.space import OwnNetwork
    from nas.data.contract import read
    from nas.problem import SearchProblem, build, fitting
    from nas.report.terminal import data_in_words, describe, describe_layers

    torch.set_num_threads(config.threads or job.threads)
    data = _data(config)
    read(data)
    print(data_in_words(data))
    space = made(config.space)
    torch.manual_seed(config.seed)  # the networks of the trial are these
    supernet = build(space, data.input_shape, data.num_outputs, fitting(data))
    if isinstance(space, OwnNetwork):
        describe_layers(space.converted(data.input_shape).rows)
    describe(supernet, data.example, made(config.cost))
    collect_again()
    if config.trial:
        config.front = front_size(config, sweep=False)
        known = {"data": data, "make_supernet": space}

        def problem() -> SearchProblem:
            found = SearchProblem(**{**components_of(config), **known})
            torch.set_num_threads(config.threads or found.threads(job.threads))
            return found

        _print_time(problem)


def _print_time(problem: Callable[[], Any]) -> None:
    """How long `nas search` takes, from a trial of some seconds."""
    from nas.estimate import estimate
    from nas.quantities import duration

    print(
        "\nnas search with these settings on this machine, from a trial of some seconds:",
        flush=True,
    )
    total = 0.0
    try:
        for part in estimate(problem()):
            total += part.seconds
            print(
                f"  {part.name:25} {duration(part.seconds):>8}   {part.about}".rstrip(), flush=True
            )
    except (UserError, FailedRunError, NotFiniteError) as error:
        print(f"  not known: {error}")
        return
    print(f"  about {duration(total)} in all, if the machine is as busy as now")


def _profile(config: DictConfig, job: Job) -> None:
    check_words(config, data=config.measure.get("input") is None)
    check(config)
    silence_third_party_warnings()
    remove_if_empty(job.folder)
    profiling = made(config.measure)

    def supernet(size: tuple[tuple[int, ...], int] | None) -> tuple[Any, tuple[int, ...]]:
        import torch

        from nas.data.contract import read
        from nas.problem import build

        if size is None:
            data = _data(config)
            read(data)
            size = data.input_shape, data.num_outputs
        torch.manual_seed(config.seed)
        return build(made(config.space), *size), size[0]

    try:
        profiling(supernet)
    except OSError as error:
        if not is_full(error):
            raise
        raise FailedRunError(
            f"{refusal(error)}; the same command goes on with what is measured so far"
        ) from error
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "interrupted; the same command goes on with what is measured so far"
        ) from None


VERBS: dict[str, Callable[[DictConfig, Job], Path | None]] = {
    "search": _search,
    "finetune": _finetune,
    "describe": _describe,
    "profile": _profile,
}
