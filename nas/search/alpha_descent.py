"""Gradient descent on alphas over a trained supernet whose weights stay, as a searcher."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from nas.arch import Arch
from nas.config.schema import Count, Positive, checked
from nas.copying import copied
from nas.cost.expected import Expected
from nas.decision import decisions, free, resample, split_parameters
from nas.errors import UserError
from nas.problem import SearchProblem
from nas.recalibrate import batch_statistics
from nas.search.evaluate import quiet_trainer
from nas.search.reinforce import draw_networks, evaluate_each, reinforce_loss, update_baseline
from nas.search.space import Searcher
from nas.selection import front, select
from nas.supernet.choice import Relaxing
from nas.supernet.relax import exponential
from nas.tasks.classification import task_of
from nas.train import check_finite, frozen

STALE = 3  # descents in a row without a new network, before the search ends


@checked("gradient")
class GradientSearch(Searcher):
    """Descends ``L_val + strength * log E[cost]`` in the alphas alone, one strength after another.

    Each descent starts from equal alphas. It proposes the most probable network inside the budgets
    every few steps, and at the end a front of the most probable ones; both are selected exactly.
    Strengths are spread evenly in log scale, ever more closely. The supernet is a copy.

    Args:
        problem: a trained supernet, its costs, budgets and data.
        objectives: the second is the cost.
        estimator: of the gradient. "gumbel": all options, mixed by Gumbel-softmax, tau 2 -> 0.2;
            "reinforce": sampled networks, for a supernet that was trained on single paths.
        steps: of a descent, each on one batch of the validation part.
        every: steps from one proposal to the next.
        points: of the front at the end.
        strengths: the least and the largest; the loss for which a cost may grow by a factor e.
        rate: of Adam.
        samples: networks of a step of "reinforce".

    Raises:
        UserError: a value out of its range, or a cost that is not computed.
    """

    def __init__(
        self,
        problem: SearchProblem,
        seed: int = 0,
        objectives: Sequence[str] = ("val_loss", "params"),
        estimator: Literal["gumbel", "reinforce"] = "gumbel",
        steps: Count = 60,
        every: Count = 20,
        points: Count = 8,
        strengths: Sequence[Positive] = (0.003, 1.0),
        rate: Positive = 0.1,
        samples: Annotated[int, Field(ge=2, le=10**6)] = 4,
    ) -> None:
        if len(strengths) != 2 or strengths[0] > strengths[1]:
            raise UserError(
                f"gradient: strengths={list(strengths)} must be two, above 0, ascending"
            )
        self.cost = objectives[1]
        if self.cost not in problem.costs:
            raise UserError(f"search.cost={self.cost} is not one of {sorted(problem.costs)}")
        self.space, self.budgets = problem.space, problem.budgets
        # Together: costs read the alphas of the supernet that they belong to.
        pair: tuple[nn.Module, Mapping[str, Expected]]
        pair = copied((problem.supernet, dict(problem.costs)))
        self.device = quiet_trainer(problem, 1).strategy.root_device
        self.supernet, self.costs = pair[0].to(self.device), pair[1]
        self.data = problem.data
        self.task = task_of(self.data)
        self.estimator, self.steps, self.every, self.points = estimator, steps, every, points
        self.strengths, self.rate, self.samples = strengths, rate, samples
        self.generator = torch.Generator().manual_seed(seed)
        self.known: set[str] = set()
        self.tau = exponential(2.0, 0.2)
        Relaxing("softmax", estimator == "gumbel", self.tau)(self.supernet)
        self.proposals = self._proposals()

    def ask(self, count: int) -> Sequence[Arch]:
        asked: list[Arch] = []
        while len(asked) < count and (arch := next(self.proposals, None)) is not None:
            asked.append(arch)
        return asked

    def _proposals(self) -> Iterator[Arch]:
        """New architectures, until `STALE` descents in a row have brought none."""
        stale = 0
        for number in count():
            before = len(self.known)
            for arch in self._descent(self._strength(number)):
                if arch.hash not in self.known:
                    self.known.add(arch.hash)
                    yield arch
            stale = stale + 1 if len(self.known) == before else 0
            if stale == STALE:
                return

    def _strength(self, number: int) -> float:
        # Van der Corput: binary digits mirrored, so that each number halves a largest gap.
        share = sum(int(bit) / 2 ** (i + 1) for i, bit in enumerate(reversed(f"{number:b}")))
        low, high = self.strengths
        return float(low * (high / low) ** share)

    def _descent(self, strength: float) -> Iterator[Arch]:
        alphas = split_parameters(self.supernet).alphas
        for alpha in alphas:
            alpha.data.zero_()
        optimizer = torch.optim.Adam(alphas, self.rate, betas=(0.5, 0.999))
        baseline = torch.tensor(torch.nan)
        mean = float(self.costs[self.cost].mean())
        for step, batch in zip(range(1, self.steps + 1), self._batches(), strict=False):
            for _, decision in decisions(self.supernet):
                decision.tau.fill_(self.tau(step / self.steps))
            optimizer.zero_grad()
            with frozen(split_parameters(self.supernet).weights), batch_statistics(self.supernet):
                loss = self._loss(*batch, baseline)
                price = strength * (self.costs[self.cost]() / mean).log()
                torch.autograd.backward(check_finite(loss + price.to(loss), 0))
            optimizer.step()
            free(self.supernet)
            if step % self.every == 0:
                yield select(self.supernet, self.space, self.costs, self.budgets)
        yield from front(
            self.supernet, self.space, self.costs, self.budgets, self.cost, self.points
        )

    def _loss(self, x: Tensor, labels: Tensor, baseline: Tensor) -> Tensor:
        """A number whose gradient in the alphas is, or estimates, that of the validation loss."""
        if self.estimator == "gumbel":
            resample(self.supernet, self.generator)
            return self.task.loss(self.supernet(x), labels)
        policy = [decision for _, decision in decisions(self.supernet)]
        draws = draw_networks(policy, self.samples, self.generator)
        rewards = -evaluate_each(
            policy, draws, lambda: self.task.loss(self.supernet(x), labels)
        ).cpu()
        return reinforce_loss(policy, draws, rewards, update_baseline(baseline, rewards))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the validation part, again and again."""
        seen = True
        while seen:
            seen = False
            for x, labels in self.data.val_dataloader():
                seen = True
                yield x.to(self.device), labels.to(self.device)
        raise UserError("the searcher gradient needs validation images, and there are none")
