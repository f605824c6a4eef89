"""Check a configuration before anything of it is made: what needs no import, then the calls."""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nas.config import given
from nas.config.calls import CALLED, check_call, ranges_by_name
from nas.config.compose import nearest
from nas.config.folders import check_batch, check_images, existing_folder
from nas.config.help import groups
from nas.config.model import SPACE
from nas.config.schema import RUN, run_violation, short_repr, violation
from nas.config.written import annotations, attribute
from nas.errors import UserError
from nas.quantities import parse_budget


def check(config: DictConfig, groups: Sequence[str] | None = None) -> None:
    """Check every value: those of the run, and each that goes to a constructor, before any is made.

    Args:
        groups: whose calls are checked, which imports what they name; None: all.

    Raises:
        UserError: an unknown key, or a value of the wrong type or outside its range, with its full
            key.
    """
    for key, node in _checked_words(config):
        asked = groups is None or key.partition(".")[0] in groups
        if asked and not _is_given(node):
            check_call(key, node)


def check_words(config: DictConfig, data: bool = True) -> None:
    """What `check` finds without importing what the configuration names: a second, not ten.

    Args:
        data: look at the folder of the data, too.

    Raises:
        UserError: see `check`; a file or folder that is not there.
    """
    for key, node in _checked_words(config):
        target = str(node["_target_"])
        hints = {**annotations(target), **ranges_by_name(target)}
        for name, value in node.items():
            if name in hints and (reason := violation(value, hints[name])):
                raise UserError(f"{key}.{name}={short_repr(value)} {reason}")
    kept = "the last.ckpt of a run with keep=supernet"
    for key, hint in (("arch", "the arch.json of a run"), ("checkpoint", kept)):
        if config.get(key) is not None and not Path(str(config[key])).exists():
            raise UserError(f"{key}={config[key]} is no file: give {hint}")
    for name, text in config.budget.items():
        unit = attribute(str((config.cost.get(name) or {}).get("_target_", "")), "unit")
        if text is not None and unit:
            parse_budget(str(name), text, unit, largest=1.0)
    if data:
        _check_data(config.data)


def _check_data(data: Any) -> None:
    """What is wrong with data is told before they are read, where it can be seen from outside."""
    if data._target_ == "nas.data.image_folder":
        if data.get("labels") is None:
            check_images(data.get("root"))
        else:
            existing_folder(data.get("root"), "the folder of the images that data.labels names")
    elif data.get("download") is False and "root" in data:
        existing_folder(data.root, f"the folder that holds {data.get('name')}")
    check_batch(data)


def _checked_words(config: DictConfig) -> list[tuple[str, Mapping[str, Any]]]:
    """Key and node of all that has a target, once the values of the run are checked."""
    try:
        resolved = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    _check_run(resolved)
    _check_groups(resolved)
    _check_device(resolved)
    _check_loggers(resolved)
    return list(_targets(resolved, ""))


def check_keys(config: DictConfig) -> None:
    """Refuse a key that ``+`` has added and that nothing reads.

    Raises:
        UserError: it is none of the run's, and no other value refers to it.
    """
    known = [*RUN, *(groups().keys() - {"experiment"})]
    for key in map(str, config):
        if key not in known and f"${{{key}" not in OmegaConf.to_yaml(config):
            raise UserError(f"unknown key {key!r}: nothing reads it.{nearest(key, known)}")


def _check_run(config: Mapping[Any, Any]) -> None:
    for key in ("seed", "weights", "budget", "onnx", "threads", "stable_epochs"):
        if key not in config:
            raise UserError(f"the configuration lacks the key {key!r}")
    if not isinstance(config["budget"], Mapping):
        raise UserError(
            f"budget={short_repr(config['budget'])} must be a mapping, e.g. budget.macs=5M"
        )
    given = {key: config[key] for key in RUN if key in config}
    given |= {f"budget.{name}": amount for name, amount in given.pop("budget").items()}
    for key, value in given.items():
        if reason := run_violation(key, value):
            raise UserError(f"{key}={short_repr(value)} {reason}")
    for key in ("out", "name"):
        if not str(config.get(key, "x")).strip():
            raise UserError(f"{key}= is empty: give the name of a folder, e.g. {key}=first")
    name = Path(str(config.get("name", "x")))
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UserError(
            f"name={name} must be the name of a folder below out={config.get('out')}, without '..'"
        )
    profile = config.get("profile")
    if profile is not None and not Path(str(profile)).is_file():
        raise UserError(f"profile={profile} is no file: `nas profile` writes one")


def _check_groups(config: Mapping[Any, Any]) -> None:
    for group in (*CALLED, "relax", "objective"):
        node = config.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            options = ", ".join(groups()[group])
            raise UserError(f"{group}={short_repr(node)} is none of {options}: choose one")
        partial = node.get("_partial_") is True or node["_target_"] == SPACE or _is_given(node)
        if group in CALLED and not partial:
            names = ", ".join(CALLED[group]) or "what a run adds"
            raise UserError(
                f"{group} lacks `_partial_: true`: {node['_target_']} is called later, with {names}"
            )
    for group in ("cost", "guard", "logger"):
        nodes = config.get(group) or {}
        if isinstance(nodes, Mapping) and _is_given(nodes):
            continue
        for name, node in nodes.items() if isinstance(nodes, Mapping) else [("", nodes)]:
            if not isinstance(node, Mapping) or "_target_" not in node:
                raise UserError(
                    f"{f'{group}.{name}'.rstrip('.')}={short_repr(node)} is no {group}: choose "
                    f"with {group}=[NAME,...] out of {', '.join(groups()[group])}"
                )


def _is_given(node: Mapping[str, Any]) -> bool:
    """Whether an object stands there, which was given from Python."""
    return bool(node.get("_target_") == given.TARGET)


def _check_loggers(config: Mapping[Any, Any]) -> None:
    """Lightning's own classes find out what they lack when the first is made, after minutes."""
    for name in ("mlflow", "wandb"):
        if name in (config.get("logger") or ()) and find_spec(name) is None:
            raise UserError(f"logger={name} needs a package: pip install 'dnas[{name}]'")


def _check_device(config: Mapping[Any, Any]) -> None:
    costs = config["cost"] if isinstance(config["cost"], Mapping) else {}
    for name, cost in costs.items():
        if isinstance(cost, Mapping) and "device" in cost and cost["device"] is None:
            choices = ", ".join(f"device={option}" for option in groups()["device"])
            raise UserError(
                f"cost={name} is the cost on a device, and none is chosen: add one of {choices}, "
                "or one of your own, FOLDER/device/NAME.yaml with --config-dir FOLDER"
            )


def _targets(node: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(child, f"{key}.{name}".lstrip("."))
