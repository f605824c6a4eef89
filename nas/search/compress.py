"""The search among the parts of a network of the user's own, and what is known of that network."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nas.compress.importance import put_in_order, taylor
from nas.compress.space import Original, OwnNetwork
from nas.config.schema import Count, NonNegative, Seed, Share, checked
from nas.cost.expected import Expected
from nas.decision import split_parameters
from nas.errors import NotFiniteError, UserError
from nas.problem import SearchProblem, check_logits
from nas.quantities import amount, metric_name, metric_words
from nas.ranks import broadcast, each_rank_alone
from nas.search.base import SearchResult, Stage
from nas.search.oneshot import OneShot
from nas.search.path_sampling import PathSampling
from nas.search.prefix_tree import validated
from nas.search.trial_search import TrialSearch
from nas.tasks import Task
from nas.tasks.classification import task_of
from nas.train import OptimizerFactory

IMAGES = 2048  # of the train part, by which channels are put in order


@checked("search")
class Compression(OneShot):
    """One-shot training of the parts of a network, from its own weights on.

    Before that, channels are put in the order in which narrower networks keep them.

    Args:
        supernet, costs, path_sampling, ranking, optimizer, epochs, warmup_epochs, clip,
            label_smoothing, seed, task: see `OneShot`.
        order: by what channels matter: "taylor", see `nas.compress.importance.taylor`, where the
            network is trained, else and for "weights" by the sum of its absolute weights.
    """

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        path_sampling: PathSampling,
        ranking: Callable[..., TrialSearch],
        optimizer: OptimizerFactory,
        epochs: Count,
        order: Literal["taylor", "weights"] = "taylor",
        warmup_epochs: NonNegative = 1.0,
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
        task: Task | None = None,
    ) -> None:
        super().__init__(
            supernet,
            costs,
            path_sampling,
            ranking,
            optimizer,
            epochs,
            warmup_epochs,
            clip,
            label_smoothing,
            seed,
            task,
        )
        self.order = order

    def prepare(self, problem: SearchProblem) -> None:
        """See `nas.search.base.Search`.

        Raises:
            UserError: the space is not made of a network of the user's own, or nothing of it can
                be trained.
        """
        super().prepare(problem)
        if original(problem) is None:
            raise UserError(
                "search=compress is for a network of your own: give it, model=MODULE:FACTORY, or "
                "take search=sandwich"
            )
        if not split_parameters(self.supernet).weights:
            raise UserError(
                "all weights of the network given are frozen, and what is left of it must be "
                "trained: network.requires_grad_(True) first"
            )

    def run(self, problem: SearchProblem, stage: Stage) -> SearchResult:
        """Put channels in order, train the supernet, and rank its networks inside the budgets."""
        found = original(problem)
        begun = broadcast(stage.run.checkpoint.exists)  # which holds the order
        if self.order == "taylor" and found is not None and found.is_trained and not begun:
            with each_rank_alone(problem.data):  # the same order on every rank
                batches = problem.data.calibration_loader(IMAGES)
                put_in_order(taylor(self.supernet, batches, self.task.loss))
        return super().run(problem, stage)


def original(problem: SearchProblem) -> Original | None:
    """The network that the space of a problem is made of; None: it is made of none.

    Raises:
        UserError: it does not give the outputs of the data, or no numbers.
    """
    space = problem.make_supernet
    if problem.original is None and isinstance(space, OwnNetwork):
        with each_rank_alone(problem.data):  # it is trained on every rank, or on none
            problem.original = _evaluated(problem, space.network().eval())
    return problem.original


def _evaluated(problem: SearchProblem, network: nn.Module) -> Original:
    task, data = task_of(problem.data), problem.data
    if task.outputs is not None:
        check_logits(network, data.example, task.outputs)
    here = torch.device("cpu")
    try:
        metrics = validated(network, task, data.val_dataloader(), here)
    except NotFiniteError as error:
        raise UserError(f"the network given is of no use: {error} with its weights") from None
    constant = validated(_Constant(network), task, data.val_dataloader(), here)
    return Original(network, metrics, constant["val_loss"])


class _Constant(nn.Module):
    """Zeros, of the form of what a network gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        outputs: Tensor = self.network(*inputs, **named)
        return torch.zeros_like(outputs)


def original_in_words(problem: SearchProblem) -> str | None:
    """One line on the network that is made smaller; None where none is."""
    if (found := original(problem)) is None:
        return None
    name = f"val_{task_of(problem.data).primary}"
    costs = ", ".join(
        f"{cost} {amount(problem.largest(cost), problem.costs[cost].unit)}"
        for cost in problem.costs
    )
    said = f"network given: {metric_name(name)} {metric_words(name, found.metrics[name])}, {costs}"
    if found.is_trained:
        return said
    return (
        f"{said}; it is taken as not trained, since its validation loss "
        f"{found.metrics['val_loss']:.4g} is not below that of a constant, "
        f"{found.constant_loss:.4g}: it teaches nothing"
    )
