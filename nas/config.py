"""The run's schema for Hydra, where the configs lie, and checks that Hydra does not make."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from nas.errors import UserError
from nas.third_party import ranges_of, try_out
from nas.values import Count, Name, Positive, Seed, refusal, shown


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


def alternatives(config: DictConfig, key: str, known: Sequence[str] = ()) -> str:
    """What to write instead of the unknown `key`: the nearest key, and all beside it."""
    parent, _, name = key.rpartition(".")
    if not known:
        node = OmegaConf.select(config, parent) if parent else config
        beside = node if isinstance(node, DictConfig) else ()
        known = [str(k) for k in beside if not str(k).startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    return f"{meant} Known keys{f' of {parent}' if parent else ''}: {', '.join(known)}"


def top_level_help() -> str:
    """The keys outside the groups, with the comments of config.yaml."""
    lines = (config_dir() / "config.yaml").read_text(encoding="utf-8").splitlines()
    start, end = lines.index("  - override hydra/job_logging: none") + 1, lines.index("hydra:")
    return "\n".join(f"  {line}" for line in lines[start:end] if line)


def check(config: DictConfig) -> None:
    """Check every value: those of the run, and each that goes to a constructor, before any is made.

    Raises:
        UserError: an unknown key, or a value of the wrong type or outside its range, with its full
            key.
    """
    try:
        resolved = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(resolved, dict)
    _check_run(resolved)
    _check_groups(resolved)
    _check_device(resolved)
    for key, node in _targets(resolved, ""):
        _check_call(key, node)


def check_keys(config: DictConfig) -> None:
    """Refuse a key that ``+`` has added and that nothing reads.

    Raises:
        UserError: it is none of the run's, and no other value refers to it.
    """
    known = [entry.name for entry in fields(RunConfig)]
    for key in map(str, config):
        if key not in known and f"${{{key}" not in OmegaConf.to_yaml(config):
            raise UserError(
                f"unknown key {key!r}: nothing reads it.{alternatives(config, key, known)}"
            )


# The keys outside the groups.
_RUN: Mapping[str, Any] = {
    "seed": Seed,
    "weights": Literal["inherited", "fresh"],
    "profile": Name | None,
    "onnx": bool,
    "out": str,
    "name": str,
    "resume": bool | str,
    "threads": Annotated[int, Field(ge=0, le=1024)],
    "stable_epochs": Count | None,
    "speed": Literal["auto", "none", "kernels", "channels_last", "compile"],
    "arch": Name | None,
    "checkpoint": Name | None,
}


_AMOUNT = Positive | str | None


def _check_run(config: Mapping[Any, Any]) -> None:
    for key in ("seed", "weights", "budget", "onnx", "threads", "stable_epochs"):
        if key not in config:
            raise UserError(f"the configuration lacks the key {key!r}")
    if not isinstance(config["budget"], Mapping):
        raise UserError(f"budget={shown(config['budget'])} must be a mapping, e.g. budget.macs=5M")
    given = {key: (config[key], hint) for key, hint in _RUN.items() if key in config}
    given |= {f"budget.{name}": (amount, _AMOUNT) for name, amount in config["budget"].items()}
    for key, (value, hint) in given.items():
        if reason := refusal(value, hint):
            raise UserError(f"{key}={shown(value)} {reason}")
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


# Group -> what a run calls its target with; these must wait for it (`_partial_: true`).
_CALLED: Mapping[str, tuple[str, ...]] = {
    "data": ("seed",),
    "space": ("input_shape", "num_outputs"),
    "search": ("supernet", "seed"),
    "finetune": ("network", "seed"),
    "trainer": (),
}


_SEARCHED = ("costs", "targets", "objective", "temperature")


def _check_groups(config: Mapping[Any, Any]) -> None:
    for group in (*_CALLED, "relax", "objective"):
        node = config.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            options = ", ".join(groups()[group])
            raise UserError(f"{group}={shown(node)} is none of {options}: choose one")
        if group in _CALLED and node.get("_partial_") is not True:
            names = ", ".join(_CALLED[group]) or "what a run adds"
            raise UserError(
                f"{group} lacks `_partial_: true`: {node['_target_']} is called later, with {names}"
            )
    for group in ("cost", "guard"):
        nodes = config.get(group) or {}
        for name, node in nodes.items() if isinstance(nodes, Mapping) else [("", nodes)]:
            if not isinstance(node, Mapping) or "_target_" not in node:
                raise UserError(
                    f"{f'{group}.{name}'.rstrip('.')}={shown(node)} is no {group}: choose with "
                    f"{group}=[NAME,...] out of {', '.join(groups()[group])}"
                )


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
    given = {name: value for name, value in node.items() if not str(name).startswith("_")}
    try:
        signature = inspect.signature(target)
        function = target.__init__ if inspect.isclass(target) else target
        hints = get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError):
        return  # a builtin that does not say; the call itself will
    hints = {**hints, **_keyword_hints(signature.parameters, hints), **ranges_of(target)}
    known = sorted({*signature.parameters, *hints} - {"self", "seed", "return"})
    anything = any(
        p.kind is p.VAR_KEYWORD and get_origin(hints.get(n)) is not Unpack
        for n, p in signature.parameters.items()
    )
    for name, value in given.items():
        if name not in signature.parameters and name not in hints and not anything:
            raise UserError(f"unknown key {key}.{name}; {node['_target_']} takes {known}")
        if name in hints and (reason := refusal(value, hints[name])):
            raise UserError(f"{key}.{name}={shown(value)} {reason}")
    _check_signature(key, node, signature, given)
    try_out(key, target, given)


def _check_signature(
    key: str, node: Mapping[str, Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> None:
    """A class or function of the user's own must take what a run calls it with."""
    added: tuple[str, ...] = _CALLED.get(key, ())
    if key == "search":  # each kind takes some of them
        added = (*added, *(name for name in _SEARCHED if name in signature.parameters))
    try:
        if node.get("_partial_") is True and key not in _CALLED:  # its caller knows the rest
            signature.bind_partial(*node.get("_args_", ()), **dict.fromkeys({*given, *added}))
        else:
            signature.bind(*node.get("_args_", ()), **dict.fromkeys({*given, *added}))
    except TypeError as error:
        called = f", which a run calls with {' and '.join(added)}" if added else ""
        raise UserError(f"{key}: {node['_target_']}{signature}{called}: {error}") from None


def _keyword_hints(
    parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> dict[str, Any]:
    """Types of the keywords that ``**options: Unpack[SomeTypedDict]`` stands for."""
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and get_origin(hints.get(name)) is Unpack:
            return get_type_hints(get_args(hints[name])[0], include_extras=True)
    return {}
