"""Arguments of torch's optimizers and of Lightning's Trainer, whose annotations have no ranges."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field

from nas.errors import UserError
from nas.values import BelowOne, NonNegative, Share

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
