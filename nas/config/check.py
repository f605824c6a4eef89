"""Check a configuration before anything of it is made: keys, values, calls."""

import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, Unpack, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from nas.config.compose import nearest
from nas.config.help import groups
from nas.config.schema import (
    RUN,
    BelowOne,
    NonNegative,
    Share,
    run_violation,
    short_repr,
    violation,
)
from nas.errors import UserError


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


# Group -> what a run calls its target with; these must wait for it (`_partial_: true`).
_CALLED: Mapping[str, tuple[str, ...]] = {
    "data": ("seed",),
    "space": ("input_shape", "num_outputs"),
    "search": ("supernet", "seed"),
    "finetune": ("network", "seed"),
    "trainer": (),
}
# And what it adds for those that take it.
_OFFERED: Mapping[str, tuple[str, ...]] = {
    "search": ("costs", "targets", "objective", "temperature", "task"),
    "finetune": ("task",),
}


def _check_groups(config: Mapping[Any, Any]) -> None:
    for group in (*_CALLED, "relax", "objective"):
        node = config.get(group)
        if not isinstance(node, Mapping) or "_target_" not in node:
            options = ", ".join(groups()[group])
            raise UserError(f"{group}={short_repr(node)} is none of {options}: choose one")
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
                    f"{f'{group}.{name}'.rstrip('.')}={short_repr(node)} is no {group}: choose "
                    f"with {group}=[NAME,...] out of {', '.join(groups()[group])}"
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
        if name in hints and (reason := violation(value, hints[name])):
            raise UserError(f"{key}.{name}={short_repr(value)} {reason}")
    _check_signature(key, node, signature, given)
    try_out(key, target, given)


def _check_signature(
    key: str, node: Mapping[str, Any], signature: inspect.Signature, given: Mapping[str, Any]
) -> None:
    """A class or function of the user's own must take what a run calls it with."""
    offered = [name for name in _OFFERED.get(key, ()) if name in signature.parameters]
    added = (*_CALLED.get(key, ()), *offered)
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


# Of `torch.optim`, by the names that its optimizers share.
_OPTIMIZER: Mapping[str, Any] = {
    "lr": NonNegative,
    "momentum": BelowOne,
    "dampening": Share,
    "weight_decay": NonNegative,
    "betas": tuple[BelowOne, BelowOne],
    "eps": NonNegative,
    "alpha": Share,
    "rho": Share,
    "lr_decay": NonNegative,
    "momentum_decay": NonNegative,
}

Strategy = Literal[
    "auto",
    "single_device",
    "ddp",
    "ddp_find_unused_parameters_true",
    "ddp_find_unused_parameters_false",
]
# -1 and "auto": all there are. Of the CPU each is a process.
Devices = Literal["auto", -1] | Annotated[int, Field(ge=1, le=1024)] | Sequence[int] | str
_TRAINER: Mapping[str, Any] = {
    "accelerator": str,
    "strategy": Strategy,
    "devices": Devices,
    "num_nodes": Annotated[int, Field(ge=1, le=10**6)],
    "accumulate_grad_batches": Annotated[int, Field(ge=1, le=10**9)],
}
# What a run sets itself -> the keys that say it.
_SET_BY_RUN = {
    "max_epochs": "search.epochs and finetune.epochs",
    "callbacks": "guard",
    "logger": "out and name",
    "default_root_dir": "out and name",
    "enable_model_summary": "`nas draw`",
    "enable_checkpointing": "nothing, every epoch is saved",
    "num_sanity_val_steps": "nothing, the input is checked before",
    "use_distributed_sampler": "nothing, each process has its share",
    "gradient_clip_val": "search.clip and finetune.clip",
    "gradient_clip_algorithm": "search.clip and finetune.clip",
    "accumulate_grad_batches": "data.batch_size",
}


def ranges_of(target: Any) -> Mapping[str, Any]:
    """Argument -> annotation, for the arguments of `target` that have a range; else nothing."""
    module = str(getattr(target, "__module__", ""))
    if module.startswith("torch.optim"):
        return _OPTIMIZER
    return _TRAINER if _is_trainer(target) else {}


def try_out(key: str, target: Any, arguments: Mapping[str, Any]) -> None:
    """Construct an optimizer over one parameter, or a trainer of no epochs, for its own checks.

    Raises:
        UserError: it refuses its arguments, or a combination of them.
    """
    module = str(getattr(target, "__module__", ""))
    if module.startswith("torch.optim"):
        import torch

        parameter = torch.nn.Parameter(torch.zeros(1))
        _construct(key, lambda: target([parameter], **arguments))
    elif _is_trainer(target):
        for name in _SET_BY_RUN.keys() & arguments.keys():
            raise UserError(f"{key}.{name} is set by the run: {_SET_BY_RUN[name]} decides it")
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        _construct(key, lambda: target(**{**arguments, **quiet, "max_epochs": 0}))


def _is_trainer(target: Any) -> bool:
    found = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    return found == "pytorch_lightning.trainer.trainer.Trainer"


def _construct(key: str, make: Any) -> None:
    try:
        with _silence():
            make()
    except Exception as error:  # they raise whatever they like
        reason = " ".join(str(error).split())
        raise UserError(f"{key}: {reason or type(error).__name__}") from None


@contextmanager
def _silence() -> Any:
    """Warnings and lines in the log are for the time when it is constructed to be used."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
