"""The configuration that a run has saved: read back, changed, and gone on with."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.artifacts import RunDir, find_runs, fingerprint
from nas.artifacts.reading import decode, read_config, read_json
from nas.config.check import check_keys, check_words
from nas.config.compose import (
    Arguments,
    apply,
    check_values,
    compose_config,
    parse_overrides,
    value_of,
)
from nas.config.help import VERBS, groups
from nas.config.trusted import check_trusted, foreign, moved, refuse_links
from nas.errors import FolderTakenError, UserError


def saved_config(run: RunDir, trust: bool = False) -> DictConfig:
    """A run's config.yaml.

    Args:
        trust: let it name code from outside this package, such as a space of the user's own.

    Raises:
        UserError: there is none, it is damaged, or it names foreign code that is not trusted; or a
            link in the folder.
    """
    config = read_saved(run)
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    check_trusted(plain, run.config, trust)
    refuse_links(run.path)
    return config


def read_saved(run: RunDir) -> DictConfig:
    """A run's config.yaml by the names of this version: nothing in it is resolved or imported.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        config = OmegaConf.create(read_config(run.config))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{run.path} is not a run's folder (cannot read its config.yaml: {error})"
        ) from None
    if not isinstance(config, DictConfig):
        raise UserError(f"{run.config} is damaged: it must hold a mapping")
    renamed: DictConfig = OmegaConf.create(moved(OmegaConf.to_container(config, resolve=False)))
    return renamed


def needs_trust(run: RunDir) -> bool:
    """Whether its configuration names code of the user's own; no: it cannot be read, either."""
    try:
        plain = OmegaConf.to_container(read_saved(run), resolve=False)
    except UserError:
        return False
    return isinstance(plain, dict) and any(True for _ in foreign(plain))


def change(config: DictConfig, words: Sequence[str]) -> None:
    """Apply ``key=value`` and ``group=option`` overrides to a saved configuration, in place.

    A budget of a cost that the run did not compute brings the cost along.

    Raises:
        UserError: a word of another form, an unknown key or option, or a wrong value.
    """
    given = parse_overrides(words)
    check_values(given)
    for one in given:
        if any(part.startswith("_") for part in one.key_or_group.split(".")):
            raise UserError(f"unknown key {one.key_or_group!r}: what a run is made of stays")
    groups_of_run = groups().keys() - {"experiment", "measure"}
    chosen = [one for one in given if one.key_or_group in groups_of_run]
    if chosen:
        made = compose_config([str(one.input_line) for one in chosen])
        for one in chosen:
            OmegaConf.update(config, one.key_or_group, made[one.key_or_group], merge=False)
    apply(config, [one for one in given if one not in chosen])
    for name, amount in config.get("budget", {}).items():
        if amount is not None:
            add_cost(config, str(name))


def add_cost(config: DictConfig, name: str) -> None:
    """Let a saved configuration compute a cost, in place, if it does not yet.

    Raises:
        UserError: no such cost.
    """
    if name not in config.cost:
        config.cost = OmegaConf.merge(config.cost, compose_config([f"cost=[{name}]"]).cost)


def overrides_of_each(words: Sequence[str], profiles: Sequence[str]) -> list[list[str]]:
    """The overrides for each device: those of a budget with a value for each are shared out.

    Returns:
        The overrides as they are, where there is one profile or none.

    Raises:
        UserError: a budget with another number of values.
    """
    each: list[list[str]] = [[] for _ in range(max(1, len(profiles)))]
    for one in parse_overrides(words):
        values, key = value_of(one), one.key_or_group
        if not key.startswith("budget.") or not isinstance(values, list):
            values = None
        elif len(values) != len(each):
            raise UserError(
                f"{one.input_line} must be one amount, or one for each of the {len(each)} "
                f"devices of profile=[A.json,B.json]"
            )
        for place, own in enumerate(each):
            own.append(str(one.input_line) if values is None else f"{key}={values[place]}")
    return each


def configs_to_extract(given: Arguments) -> list[DictConfig]:
    """The configuration that ``nas extract RUN key=value ...`` asks for, one for each device.

    A profile brings its cost along. Nothing that a configuration names is imported.

    Raises:
        UserError: see `saved_config`, `change` and `check_words`.
    """
    options, run = given.options, RunDir(Path(given.places[0]))
    each = overrides_of_each(given.overrides, options.profile or ())
    configs = []
    for words, profile in zip(each, options.profile or (None,), strict=True):
        config = saved_config(run, options.trust)
        if profile is not None:
            add_cost(config, LATENCY)
            # A run saves the cost with the profile it was searched with.
            config.profile = config.cost[LATENCY].profile = profile
            if len(options.profile) > 1:
                config.cost[LATENCY].expect_device = None  # the run's own can be one of them only
        change(config, words)
        check_keys(config)
        check_words(config)
        configs.append(config)
    return configs


def check_places(verb: str, given: Arguments) -> None:
    """Refuse folders and files that are no runs, before a verb imports what reads them.

    Raises:
        UserError: one is not there, or is not what the verb needs.
    """
    for place in map(Path, given.places):
        if not place.exists():
            raise UserError(
                f"{place} is not there: nas {verb} needs {VERBS[verb].usage.split()[0]}"
            )
        if place.is_dir() and verb != "report":
            read_saved(RunDir(place))
    if verb == "extract":
        configs_to_extract(given)


# Keys that say where and how a run is made, not what comes out of it.
_UNIMPORTANT = (
    "out", "name", "keep", "onnx", "resume", "trust", "threads", "trial", "trainer", "measure",
    "engine", "logger",
)  # fmt: skip

# Environment variable: jobs of a sweep may run in processes that know no command line.
COMMAND = "NAS_COMMAND"
PYTHON = "nas.search"  # its value during a call from Python
COMPRESS = "nas.compress"  # and during this one

LATENCY = "latency"  # the cost that a profile is of


def how_to_go_on(run: RunDir) -> str:
    """One sentence for the end of a message."""
    trainings = sorted(run.front.glob(f"*/{run.finetune_checkpoint.name}"))
    for saved in (run.finetune_checkpoint, *trainings, run.checkpoint, run.trials):
        if saved.exists():
            verb = os.environ.get(COMMAND, "nas search")
            called = verb in (PYTHON, COMPRESS)
            trust = needs_trust(run)
            if called:
                resume = f"(..., resume='{run.path}'{', trust=True' if trust else ''})"
            else:
                resume = f" resume={run.path}{' trust=true' if trust else ''}"
            return f"Saved last: {saved}. Go on with: {verb}{resume}"
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
    found = find_runs(Path(config.out))
    inside = {run.path for run in found}
    for run in reversed(found):
        # Networks taken out of a run lie inside it, and have its settings.
        if inside.isdisjoint(run.path.parents) and _fingerprint_of(run) == wanted:
            refuse_links(run.path)
            if run.path != made:
                remove_if_empty(made)
            return config, run.path
    return config, made


@dataclass(frozen=True)
class Asked:
    """What a user asked for, as result.json says it; a run that is gone on with has it saved.

    Args:
        search: the option of `search`; None: none was named.
        overrides: key -> value.
        swept: the keys that differ between the jobs of a sweep.
        command: as it was typed.
    """

    seed: int
    search: str | None
    overrides: dict[str, Any]
    swept: list[str]
    command: str


def asked_first(run: RunDir) -> Asked | None:
    """What was asked for when the run was begun; None: nothing is saved, as by earlier versions.

    Raises:
        UserError: what the run has saved is damaged.
    """
    if not run.asked.exists():
        return None
    try:
        return decode(Asked, read_json(run.asked), str(run.asked))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {run.asked} ({error}); remove that file") from None


def check_same(config: DictConfig, run: RunDir) -> None:
    """The folder of a run may be gone on with by the same run only.

    Raises:
        FolderTakenError: it holds results or checkpoints of other settings.
    """
    made = (run.checkpoint, run.finetune_checkpoint, run.trials, run.front)
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
    if container.get("front") == 1:
        container["front"] = None  # as runs of versions without the key
    return fingerprint({str(k): v for k, v in container.items()}, without=_UNIMPORTANT)
