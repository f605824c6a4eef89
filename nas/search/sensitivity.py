"""Search without training: the loss of a trained network under each option of each decision."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.config.schema import Positive, Seed, checked
from nas.inputs import device_of, moved, run
from nas.problem import SearchProblem
from nas.progress import current
from nas.quantization.network import FEWEST, calibrate
from nas.quantization.sensitivity import (
    Sensitivity,
    order_channels,
    sensitivity,
    set_prior,
)
from nas.ranks import broadcast, each_rank_alone
from nas.search.base import SearchResult, Stage, agreed, check_searchable
from nas.search.differentiable import probable_archs, probable_front
from nas.search.evaluate import sample_of
from nas.tasks.classification import task_of


@checked("search")
@dataclass(frozen=True, eq=False)
class SensitivitySearch:
    """``alpha_k = -scale * (loss with option k - loss)``, then the exact program.

    For bits, or widths, of a network that is trained already. The most probable network inside the
    budgets is that of the least sum of differences, see `nas.quantization.sensitivity`. Inputs'
    ranges are learned first, from the same data.

    Args:
        supernet: with trained weights.
        seed: not used, as nothing is drawn.
        samples: training samples that the loss is measured on.
        scale: of the alphas; it changes which networks are taken for probable, and no ranking.
    """

    leaves: ClassVar[Literal["nothing"]] = "nothing"

    supernet: nn.Module
    seed: Seed = 0
    samples: Annotated[int, Field(ge=FEWEST)] = 1024
    scale: Positive = 1.0

    def prepare(self, problem: SearchProblem) -> None:
        """Raises UserError where there is nothing to decide."""
        check_searchable(self.supernet)

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Measure, and give the front of the networks of the least differences."""
        began, worked = time.monotonic(), time.process_time()
        current().begin("supernet", "search")
        with each_rank_alone(problem.data):  # the same ranges on every rank
            found = self._measured(problem)
        set_prior(self.supernet, broadcast(lambda: found), self.scale)
        selected = agreed(problem.select)
        cost = next(iter(problem.cost_models), "params")
        return SearchResult(
            selected,
            probable_front(problem, selected, cost),
            "log_probability",
            cost,
            probable_archs(problem, cost, problem.front) if problem.front > 1 else [selected],
            {},
            time.monotonic() - began,
            time.process_time() - worked,
        )

    def _measured(self, problem: SearchProblem) -> Sensitivity:
        supernet, task = self.supernet, task_of(problem.data)
        device = device_of(sample_of(problem))
        supernet.to(device).eval()
        found = problem.data.calibration_loader(self.samples)
        batches = [(moved(x, device), targets.to(device)) for x, targets in found]
        calibrate(supernet, (x for x, _ in batches))

        def losses(model: nn.Module) -> Iterator[Tensor]:
            yield from (task.loss(run(model, x), targets) for x, targets in batches)

        def loss(model: nn.Module) -> float:
            return float(torch.stack(list(losses(model))).mean())

        order_channels(supernet, losses)
        differences = sensitivity(supernet, loss)
        supernet.cpu().train()  # for what follows; a network that was loaded is in eval mode
        return differences
