"""Check the calls of a configuration against the signatures of what it names, which is imported."""

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Unpack, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from pydantic import Field

from nas.config.model import SPACE
from nas.config.schema import BelowOne, NonNegative, Share, hints_of, short_repr, violation
from nas.errors import UserError

# Group -> what a run calls its target with; these must wait for it (`_partial_: true`).
CALLED: Mapping[str, tuple[str, ...]] = {
    "data": (),
    "space": ("input_shape", "num_outputs"),
    "search": ("supernet", "seed"),
    "finetune": ("network", "seed"),
    "trainer": (),
}
# And what it adds for those that take it.
_OFFERED: Mapping[str, tuple[str, ...]] = {
    "data": ("seed", "task"),
    "search": ("costs", "targets", "objective", "temperature", "task"),
    "finetune": ("task",),
}


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


def takes(factory: Callable[..., Any], name: str) -> bool:
    """Whether `factory` can be called with an argument of that name."""
    parameters = inspect.signature(factory).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def called(factory: Callable[..., Any], known: Mapping[str, Any], **needed: Any) -> Any:
    """Call `factory` with `needed`, and with those of `known` that it takes and does not hold."""
    held = getattr(factory, "keywords", {})
    given = {n: value for n, value in known.items() if takes(factory, n) and n not in held}
    return factory(**needed, **given)


def check_call(key: str, node: Mapping[str, Any]) -> None:
    """Check the arguments that a node of a configuration gives to its target.

    Raises:
        UserError: the target cannot be imported, or takes no such key or value.
    """
    target = target_of(node, key)
    given = {name: value for name, value in node.items() if not str(name).startswith("_")}
    try:
        signature = inspect.signature(target)
        function = target.__init__ if inspect.isclass(target) else target
        hints = hints_of(function)
    except (TypeError, ValueError, NameError):
        return  # a builtin that does not say; the call itself will
    hints = {**_keyword_hints(signature.parameters, hints), **hints, **ranges_of(target)}
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
    added = (*CALLED.get(key, ()), *offered)
    if node["_target_"] == SPACE:  # made at once, and then called
        added = ()
    try:
        if node.get("_partial_") is True and key not in CALLED:  # its caller knows the rest
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
_TRAINERS = ("pytorch_lightning.Trainer", "pytorch_lightning.trainer.trainer.Trainer")
# What a run sets itself -> the keys that say it.
_SET_BY_RUN = {
    "max_epochs": "search.epochs and finetune.epochs",
    "callbacks": "callbacks",
    "logger": "logger",
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
    return ranges_by_name(_name(target))


def ranges_by_name(name: str) -> Mapping[str, Any]:
    """As `ranges_of`, by the dotted name, of what other packages do not annotate."""
    if name.startswith("torch.optim."):
        return _OPTIMIZER
    return _TRAINER if name in _TRAINERS else {}


def try_out(key: str, target: Any, arguments: Mapping[str, Any]) -> None:
    """Construct an optimizer over one parameter, or a trainer of no epochs, for its own checks.

    Raises:
        UserError: it refuses its arguments, or a combination of them.
    """
    if _name(target).startswith("torch.optim."):
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
    return _name(target) in _TRAINERS


def _name(target: Any) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"


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
