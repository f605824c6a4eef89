"""The search among the parts of a network of the user's own, and what is known of that network."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nas.compress.space import Original, OwnNetwork
from nas.decision import split_parameters
from nas.errors import NotFiniteError, UserError
from nas.problem import SearchProblem, check_logits
from nas.quantities import amount, metric_name, metric_words
from nas.ranks import each_rank_alone
from nas.search.base import Leaves
from nas.search.prefix_tree import validated
from nas.search.trial_search import TrialSearch
from nas.tasks.classification import task_of


class Compression(TrialSearch):
    """Networks that are parts of a trained one, scored with its weights; nothing is trained.

    Args: see `TrialSearch`.
    """

    leaves: ClassVar[Leaves] = "given"

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

    @property
    def _noise(self) -> float | None:
        # The losses of what is not trained lie far apart, those of small networks most of all: the
        # largest expected hypervolume would be that of networks which are of no use yet.
        return None


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
        f"{found.constant_loss:.4g}: it teaches nothing, and its weights rank nothing; take "
        "search=sandwich, which trains before it ranks"
    )
