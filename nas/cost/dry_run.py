"""Running a copy of a model once to see what it does, without the work where that is possible."""

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from nas.errors import UserError

T = TypeVar("T")


def dry_run(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    record: Callable[[nn.Module, tuple[Tensor, ...]], T],
) -> T:
    """What `record` makes of a copy of `model` on the meta device, else of one on the CPU.

    The global random state is left as it was: a forward pass may draw.

    Raises:
        UserError: the forward pass fails for `inputs` on either device, or `record` raised one.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            return record(copy.deepcopy(model).to("meta"), tuple(x.to("meta") for x in inputs))
        except UserError:
            raise
        except Exception:
            # E.g. a forward that looks at values. A second failure is the model's own.
            try:
                return record(copy.deepcopy(model).cpu(), tuple(x.cpu() for x in inputs))
            except UserError:
                raise
            except Exception as error:
                shapes = [tuple(x.shape) for x in inputs]
                raise UserError(
                    f"the forward pass of {type(model).__name__} fails for an input of shape "
                    f"{shapes}: {error}"
                ) from error
