"""The configuration that a run has saved, read back and changed from the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.artifacts import RunDir
from nas.artifacts.reading import read_config
from nas.config import alternatives, config_dir, groups
from nas.errors import UserError
from nas.trusted import check_trusted, moved, refuse_links


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


def change(config: DictConfig, words: Sequence[str]) -> None:
    """Apply ``key=value`` and ``group=option`` words to a saved configuration, in place.

    A budget of a cost that the run did not compute brings the cost along.

    Raises:
        UserError: a word of another form, an unknown key or option, or a wrong value.
    """
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not of the form key=value")
        if key in groups() and key != "cost":
            OmegaConf.update(config, key, _option(key, text), force_add=True)
        else:
            _set(config, key, text)
    for name, amount in config.get("budget", {}).items():
        if amount is not None:
            add_cost(config, str(name))


def add_cost(config: DictConfig, name: str) -> None:
    """Let a saved configuration compute a cost, in place, if it does not yet.

    Raises:
        UserError: no such cost.
    """
    if name not in config.cost:
        config.cost = OmegaConf.merge(config.cost, _option("cost", name))


def _set(config: DictConfig, key: str, text: str) -> None:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    if node is None or name.startswith("_") or name not in node:
        raise UserError(f"unknown key {key!r}.{alternatives(config, key)}")
    try:
        OmegaConf.update(config, key, yaml.safe_load(text))
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{key}={text}: {' '.join(str(error).split())}") from None


def _option(group: str, name: str) -> Any:
    path = config_dir() / group / f"{name}.yaml"
    if not path.is_file() or Path(name).name != name:
        raise UserError(f"{group}={name} is not one of {', '.join(groups().get(group, []))}")
    return OmegaConf.load(path)
