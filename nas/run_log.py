"""What TensorBoard is told of a run: its hyper-parameters, its end figures, its network."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import nn

from nas.plan import Plan, Problem

ACCURACIES = ("test_acc", "val_acc")


def logger_of(plan: Plan, problem: Problem, folder: Path) -> TensorBoardLogger:
    """The logger of a run, with the row of its hyper-parameters begun."""
    logger = TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    metrics = {f"final/{name}": float("nan") for name in (*ACCURACIES, *problem.costs)}
    logger.log_hyperparams(_hyper_parameters(plan, problem.space), metrics)
    return logger


def _hyper_parameters(plan: Plan, space: str) -> dict[str, Any]:
    shown = {"space": space, "data": plan.data.name, "seed": plan.seed}
    shown["objective"] = type(plan.objective).__name__
    strength = getattr(plan.objective, "strength", None)
    if isinstance(strength, float):  # of the others it changes while they search
        shown["strength"] = strength
    return {**shown, **plan.about.get("overrides", {})}


def log_graph(logger: TensorBoardLogger, network: nn.Module, plan: Plan) -> None:
    """The network as a graph; any error of tracing where it cannot be followed."""
    with warnings.catch_warnings():
        # Drawn by tracing with TorchScript, which torch has deprecated without a successor that
        # TensorBoard reads.
        warnings.simplefilter("ignore")
        logger.experiment.add_graph(network, torch.zeros(1, *plan.data.input_shape))


def log_final(logger: TensorBoardLogger, result: Mapping[str, Any], problem: Problem) -> None:
    """The metrics of the run's row."""
    final = {**result["metrics"], **result["costs"]}
    names = (*ACCURACIES, *problem.costs)
    logger.log_metrics({f"final/{name}": final[name] for name in names}, step=0)
    logger.finalize("success")
