"""The teacher of a training by distillation: ``finetune.teacher``, and what makes it fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.errors import UserError
from nas.export import load
from nas.problem import SearchProblem, check_logits
from nas.search.compress import original
from nas.search.path_sampling import extremes
from nas.tasks.classification import task_of

LARGEST = "largest"
GIVEN = "given"


def teacher_of(problem: SearchProblem) -> nn.Module | str | None:
    """What ``finetune.teacher`` names: a module, or `LARGEST`, which a trained supernet makes.

    `GIVEN` is the network that is made smaller, or none where that is not trained.

    Raises:
        UserError: no finished run, or one of other data or outputs.
    """
    given = getattr(problem.finetune, "keywords", {}).get("teacher")
    if given is None or given == LARGEST:
        return given if given is None else LARGEST
    if given == GIVEN:
        return _original(problem)
    network = _of_run(problem, Path(given).expanduser()) if isinstance(given, str) else given
    outputs = task_of(problem.data).outputs
    if outputs is not None:
        try:
            check_logits(network, problem.data.example, outputs)
        except UserError as error:
            raise UserError(f"finetune.teacher: {error}") from None
    return network


def _original(problem: SearchProblem) -> nn.Module | None:
    """The network that is made smaller; None where it has learned nothing."""
    if (found := original(problem)) is None:
        raise UserError(
            f"finetune.teacher={GIVEN} is the network of model=MODULE:FACTORY, and this space is "
            f"made of none: pass finetune.teacher=RUN, a folder of a trained network"
        )
    return found.network if found.is_trained else None


def largest_of(problem: SearchProblem) -> Arch:
    """The architecture of the most MACs of a space."""
    return Arch(problem.space, extremes(problem.supernet, problem.costs["macs"])[1])


def _of_run(problem: SearchProblem, path: Path) -> nn.Module:
    try:
        network, result = load(path), RunDir(path).read_result() or {}
    except UserError as error:
        raise UserError(
            f"finetune.teacher={path} is neither {LARGEST} nor a finished run: {error}"
        ) from None
    known, data = result["input"], problem.data
    for name, found in (("shape", data.input_shape), ("classes", data.classes)):
        if list(known[name]) != list(found):
            raise UserError(
                f"finetune.teacher={path} is for another {name} ({known[name]}) than the data "
                f"{data.name!r} ({list(found)}): pass a run on these data"
            )
    return _Matched(network, known, result.get("task") or {}, data)


class _Matched(nn.Module):
    """A network of another run, for inputs and targets as they are normalised in this one."""

    def __init__(
        self, network: nn.Module, known: Mapping[str, Any], task: Mapping[str, Any], data: Any
    ) -> None:
        super().__init__()
        own = task_of(data).described()
        self.network = network
        wide = [-1, *[1] * (len(data.input_shape) - 1)]
        inputs = _affine(data.mean, data.std, known["mean"], known["std"])
        self.inputs = nn.ParameterList(one.reshape(wide) for one in inputs)
        same = [0.0], [1.0]
        theirs = (task["mean"], task["std"]) if "mean" in task else same
        ours = (own["mean"], own["std"]) if "mean" in own else same
        self.outputs = nn.ParameterList(_affine(*theirs, *ours))

    def forward(self, x: Tensor) -> Tensor:
        y = self.network(x * self.inputs[0] + self.inputs[1])
        found: Tensor = y * self.outputs[0] + self.outputs[1]
        return found


def _affine(
    mean: Sequence[float], std: Sequence[float], new_mean: Sequence[float], new_std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Scale and shift from units of one mean and standard deviation to those of another."""
    old, scale, new, new_scale = (torch.tensor(v) for v in (mean, std, new_mean, new_std))
    return scale / new_scale, (old - new) / new_scale
