"""The fields of result.json, and the row of a run in TensorBoard."""

import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import nn

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import versions_of
from nas.artifacts.reading import read_json as read_value
from nas.config.schema import short_repr
from nas.cost.expected import Expected
from nas.errors import UserError
from nas.inputs import Inputs
from nas.problem import SearchProblem
from nas.quantities import primary_metrics
from nas.report.collect import short_names
from nas.search.base import leaves_of
from nas.selection import largest_of, least_of
from nas.tasks.classification import task_of

SCHEMA = 1


def cost_fields(
    costs: Mapping[str, Expected], budgets: Mapping[str, float], arch: Arch
) -> dict[str, Any]:
    """Exact costs of the network, the least and the largest of its space, and the budgets."""
    return {
        "costs": {name: _exact(cost.of(arch.choices)) for name, cost in costs.items()},
        "least": {name: _exact(least_of(cost)) for name, cost in costs.items()},
        "budgets": {name: _exact(bound) for name, bound in budgets.items()},
        "units": {name: cost.unit for name, cost in costs.items()},
        "largest": {name: _exact(largest_of(cost)) for name, cost in costs.items()},
    }


def _exact(value: float) -> float:
    """Counts as whole numbers; others, such as microseconds in seconds, as they are."""
    return round(value) if isclose(value, round(value), rel_tol=1e-9) else value


def input_fields(data: Any) -> dict[str, Any]:
    """What a user of the network must know to prepare its input and read its output."""
    return {
        "shape": _shape(data.input_shape),
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        **({} if getattr(data, "largest", 255) == 255 else {"largest": data.largest}),
        **_value_range(data),
    }


def _shape(shape: Any) -> Any:
    """As JSON has it: a list, or of several inputs a list or a dict of lists."""
    if isinstance(shape, dict):
        return {name: list(one) for name, one in shape.items()}
    return [_shape(one) if isinstance(one, tuple) else one for one in shape]


def _value_range(data: Any) -> dict[str, Any]:
    found = getattr(data, "value_range", None)  # a data module of the user's own may have none
    return {} if found is None else {"value_range": list(found)}


def versions() -> dict[str, str]:
    """Versions of what computed the result."""
    return versions_of(("dnas", "torch", "torchvision", "pytorch-lightning", "hydra-core"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier stage wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        content = read_value(path)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}); remove the run and start again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; remove the run and start again")
    return content


def loggers_of(problem: SearchProblem, folder: Path) -> list[Logger]:
    """The loggers of a run, which know its hyper-parameters.

    Those that were given as they are see all trainings; others are made for each folder.

    Raises:
        UserError: what is configured is no logger of Lightning.
    """
    board = _board_name(problem, RunDir(folder))
    offered = {"save_dir": folder, "board": board, "run_name": folder.name}
    names = (*_figures(problem), *problem.costs)
    final = {f"final/{name}": float("nan") for name in names}
    found: list[Logger] = []
    for factory in problem.loggers:
        logger = factory
        if not isinstance(factory, Logger) and callable(factory):
            held = getattr(factory, "keywords", {})
            taken = inspect.signature(factory).parameters
            logger = factory(**{n: v for n, v in offered.items() if n in taken and n not in held})
        if not isinstance(logger, Logger):
            raise UserError(f"logger={short_repr(logger)} is no logger of Lightning")
        metrics = (final,) if isinstance(logger, TensorBoardLogger) else ()
        logger.log_hyperparams(_hyper_parameters(problem), *metrics)
        found.append(logger)
    return found


def board_of(loggers: Sequence[Logger]) -> Any:
    """The writer of TensorBoard among them; None: there is none."""
    boards = (one.experiment for one in loggers if isinstance(one, TensorBoardLogger))
    return next(boards, None)


def _figures(problem: SearchProblem) -> tuple[str, str]:
    return primary_metrics({"task": task_of(problem.data).described()})


class TensorBoard(TensorBoardLogger):
    """Event files in a folder of the run's; no hparams.yaml, which config.yaml says better.

    Args:
        save_dir: the run's folder.
        board: the name of the folder in it.
    """

    def __init__(self, save_dir: Path, board: str = "tensorboard") -> None:
        super().__init__(save_dir, name=board, version="", default_hp_metric=False)

    def save(self) -> None:
        """Nothing but events is written."""


def _board_name(problem: SearchProblem, run: RunDir) -> str:
    """The folder of curves, which TensorBoard shows: of a sweep's job, how it differs."""
    if run.tensorboard.is_dir():  # a session that goes on: where an earlier one has written
        return run.tensorboard.name
    given = problem.about.get("overrides", {})
    names = short_names(problem.about.get("swept", ()))
    text = ",".join(f"{short}={given[name]}" for name, short in names.items())
    return re.sub(r"[^\w.=+,()\[\]-]", "_", text)[:120] or run.tensorboard.name


def _hyper_parameters(problem: SearchProblem) -> dict[str, Any]:
    given = problem.about.get("overrides", {})
    if swept := problem.about.get("swept"):
        # TensorBoard shows the first five, before the metrics.
        return {name: given[name] for name in swept}
    shown = {"space": problem.space, "data": problem.data.name, "seed": problem.seed}
    if leaves_of(problem.search) == "alphas":  # no other search has an objective
        shown["objective"] = type(problem.objective).__name__
        strength = getattr(problem.objective, "strength", None)
        if isinstance(strength, float):  # of the others it changes while they search
            shown["strength"] = strength
    return {**shown, **given}


def log_graph(loggers: Sequence[Logger], network: nn.Module, example: Inputs) -> None:
    """The network as a graph in TensorBoard; any error of tracing where it cannot be followed."""
    if (board := board_of(loggers)) is None:
        return
    with warnings.catch_warnings():
        # Drawn by tracing with TorchScript, which torch has deprecated without a successor that
        # TensorBoard reads.
        warnings.simplefilter("ignore")
        board.add_graph(network, example)


def log_final(loggers: Sequence[Logger], result: Mapping[str, Any], problem: SearchProblem) -> None:
    """The metrics of the run's row."""
    final = {**result["metrics"], **result["costs"]}
    names = (*_figures(problem), *problem.costs)
    for logger in loggers:
        logger.log_metrics({f"final/{name}": final[name] for name in names}, step=0)
        logger.finalize("success")
