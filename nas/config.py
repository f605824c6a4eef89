"""The run's schema for Hydra, where the configs lie, and checks that Hydra does not make."""

import difflib
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from nas.errors import UserError


class Weights(Enum):
    """Where the network found starts its training from."""

    inherited = "inherited"
    fresh = "fresh"


class Speed(Enum):
    """How the supernet is run; see `nas.supernet.speed`."""

    auto = "auto"
    none = "none"
    kernels = "kernels"
    channels_last = "channels_last"
    compile = "compile"


@dataclass
class RunConfig:
    """Top-level keys; each group below is checked against the constructor it names."""

    data: Any = MISSING
    space: Any = MISSING
    relax: Any = MISSING
    search: Any = MISSING
    cost: Any = MISSING
    device: Any = None
    measure: Any = None
    profile: str | None = None
    objective: Any = MISSING
    guard: Any = field(default_factory=dict)
    finetune: Any = MISSING
    trainer: Any = MISSING
    budget: Any = MISSING
    seed: int = 0
    weights: Weights = Weights.inherited
    onnx: bool = True
    out: str = "runs"
    name: str = MISSING
    resume: Any = False
    trust: bool = False
    threads: int = 0
    stable_epochs: int | None = None
    speed: Speed = Speed.kernels
    arch: str | None = None  # nas finetune: the architecture to train
    checkpoint: str | None = None  # nas finetune: a search's last.ckpt to inherit weights from


def register() -> None:
    """Make the schema known to Hydra."""
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def config_dir() -> Path:
    """The folder of the YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Group name -> its options."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(config_dir().iterdir())
        if folder.is_dir()
    }


def alternatives(config: DictConfig, key: str) -> str:
    """What to write instead of the unknown `key`: the nearest key, and all beside it."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent) if parent else config
    known = [str(k) for k in node if not str(k).startswith("_")] if node is not None else []
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{meant} Known keys{f' of {parent}' if parent else ''}: {', '.join(known)}"


def top_level_help() -> str:
    """The keys outside the groups, with the comments of config.yaml."""
    lines = (config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    start, end = lines.index("  - override hydra/job_logging: none") + 1, lines.index("hydra:")
    return "\n".join(f"  {line}" for line in lines[start:end] if line)


def check(config: DictConfig) -> None:
    """Check every value that goes to a constructor against the constructor's annotations.

    Raises:
        UserError: an unknown key, or a value of the wrong type, with its full key.
    """
    if config.threads < 0:
        raise UserError(f"threads={config.threads} must be at least 0 (0: all cores)")
    if config.stable_epochs is not None and config.stable_epochs < 1:
        raise UserError(f"stable_epochs={config.stable_epochs} must be at least 1, or null (off)")
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must be at least 0")
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    _check_device(resolved)
    for key, node in _targets(resolved, ""):
        _check_call(key, node)


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


def target_of(node: Mapping[str, Any], key: str) -> Any:
    """The object that ``_target_`` names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return get_object(str(node["_target_"]))
    except Exception as error:
        raise UserError(
            f"{key}._target_={node['_target_']!r} cannot be imported ({error}): name a class or "
            "function of an installed package or of a module on PYTHONPATH"
        ) from None


def _check_call(key: str, node: Mapping[str, Any]) -> None:
    target = target_of(node, key)
    try:
        parameters = inspect.signature(target).parameters
        hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (TypeError, ValueError, NameError):
        return  # a builtin that does not say; the call itself will
    hints |= _keyword_hints(parameters, hints)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and name not in hints:
            known = sorted({*parameters, *hints} - {"self", "seed", "return"})
            raise UserError(f"unknown key {key}.{name}; {node['_target_']} takes {known}")
        if name in hints and not _fits(value, hints[name]):
            raise UserError(
                f"{key}.{name}={value!r} is of type {type(value).__name__}; "
                f"{_shown(hints[name])} is expected"
            )


def _keyword_hints(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Types of the keywords that ``**options: Unpack[SomeTypedDict]`` stands for."""
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hints.get(name)) is Unpack:
            return get_type_hints(get_args(hints[name])[0])
    return {}


_SIMPLE: dict[Any, tuple[type, ...]] = {
    int: (int,),
    float: (int, float),
    str: (str,),
    bool: (bool,),
    type(None): (type(None),),
}


def _fits(value: object, hint: Any) -> bool:
    origin = get_origin(hint)
    if isinstance(value, Mapping) or hint is Any:
        return True  # a nested target makes the value
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in _SIMPLE:
        # bool is an int in Python, but `epochs: true` is a mistake.
        return isinstance(value, _SIMPLE[hint]) and (hint is bool or not isinstance(value, bool))
    kind = origin or hint
    if not inspect.isclass(kind):
        return True
    if isinstance(value, list):
        return issubclass(kind, Sequence)
    return isinstance(value, kind) or (issubclass(kind, Path) and isinstance(value, str))


def _shown(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)).replace("typing.", "")
