"""REINFORCE over alphas: sampled networks are evaluated, and not differentiated through."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Protocol, Unpack, runtime_checkable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from nas.config.schema import Count, checked
from nas.decision import Decision, decisions
from nas.inputs import run
from nas.ranks import averaged
from nas.search.differentiable import Options
from nas.search.proxyless import PathSearch
from nas.supernet.proxyless import draw_option
from nas.tasks import check_finite
from nas.train import Batch


@runtime_checkable
class Reward(Protocol):
    """Accuracies ``(S,)``, costs ``(S,)`` and targets by name -> rewards ``(S,)``."""

    def __call__(
        self, accuracy: Tensor, costs: dict[str, Tensor], targets: dict[str, float]
    ) -> Tensor:
        """The rewards of S networks."""
        ...


def logits_of(decision: Decision) -> Tensor:
    """The logits of the policy, ``alpha / tau`` ``(K,)``, whichever option is chosen at present."""
    return decision.alpha.float() / decision.tau


def draw_networks(
    policy: Sequence[Decision], samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw networks: indices of options ``(samples, D)``, each by its ``softmax(alpha / tau)``."""
    rows = [[draw_option(logits_of(d), generator) for d in policy] for _ in range(samples)]
    return torch.tensor(rows)


def reinforce_loss(
    policy: Sequence[Decision], draws: Tensor, rewards: Tensor, baseline: Tensor | float = 0.0
) -> Tensor:
    """A number whose gradient in the alphas is an unbiased estimate of that of ``-E[R]``.

    ``mean_s (R_s - b) * (-sum_d log p_d[draw_sd])`` (Williams 1992; Cai et al. 2019, Eq. 10).

    Args:
        policy: D decisions.
        draws: ``(S, D)``, as from `draw_networks`.
        rewards: ``(S,)``; only the draws depend on the alphas here.
        baseline: b; any number that does not depend on the draws.
    """
    log_p = torch.stack(
        [F.log_softmax(logits_of(d), -1)[draws[:, i]] for i, d in enumerate(policy)]
    ).sum(0)
    advantages = (rewards - baseline).detach().to(log_p)
    return -(advantages * log_p).mean()


def evaluate_each(
    policy: Sequence[Decision], draws: Tensor, evaluate: Callable[[], Tensor]
) -> Tensor:
    """Call `evaluate`, without gradient, for each network drawn; the results, ``(S, ...)``."""
    found = []
    with torch.no_grad():
        for row in draws.tolist():
            for decision, index in zip(policy, row, strict=True):
                decision.choose(decision.options[index])
            found.append(evaluate())
    for decision in policy:
        decision.free()
    return torch.stack(found)


def update_baseline(baseline: Tensor, rewards: Tensor, rate: float = 0.99) -> Tensor:
    """Move the baseline ``()``, in place, towards the mean reward; from NaN, to the mean itself."""
    mean = rewards.mean().to(baseline)
    return baseline.copy_(mean if baseline.isnan() else baseline + rate * (mean - baseline))


def reinforce_step(
    model: nn.Module,
    reward: Callable[[], Tensor],
    optimizer: Optimizer,
    baseline: Tensor,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move the alphas towards sampled networks of larger reward; weights stay.

    Args:
        reward: gives the reward ``()`` of the network that is chosen in `model` when called.
        optimizer: of the alphas.
        baseline: ``()``, NaN at first; moved towards the rewards.

    Returns:
        The rewards ``(samples,)``.
    """
    policy = [decision for _, decision in decisions(model)]
    draws = draw_networks(policy, samples, generator)
    rewards = evaluate_each(policy, draws, reward)
    optimizer.zero_grad()
    loss = reinforce_loss(policy, draws, rewards, update_baseline(baseline, rewards))
    torch.autograd.backward(loss)
    optimizer.step()
    return rewards


@checked("search")
class ReinforceSearch(PathSearch):
    """ProxylessNAS-R (Cai et al. 2019, Sec. 3.3.2): alphas by REINFORCE on sampled networks.

    An alpha step evaluates `samples` networks on one validation batch, in training mode without
    gradient. The baseline is the smoothed mean reward. As a step's own rewards are part of it, the
    expected gradient is scaled by ``1 - 0.99 / samples``, which Adam's normalisation cancels.

    Args:
        reward: accuracy and exact costs of each network -> reward; `objective` is then not used.
            None: the reward is minus the validation loss, joined by `objective` with the expected
            costs, through which alphas have their exact gradient.
        samples: networks of an alpha step.
        alpha_every, options: as for `PathSearch`.

    Raises:
        UserError: as `PathSearch`, or fewer than 2 samples.
    """

    baseline: Tensor  # () smoothed mean reward; NaN before the first alpha step

    def __init__(
        self,
        reward: Reward | None = None,
        samples: Annotated[int, Field(ge=2, le=10**6)] = 10,  # the mean reward is the baseline
        alpha_every: Count = 5,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(alpha_every, **options)
        self.reward, self.samples = reward, samples
        self.policy = dict(decisions(self.supernet))
        self.desired = {n: self.targets.get(n, float(c.mean())) for n, c in self.costs.items()}
        self.batch_metric = self.task.metrics()[self.task.primary]
        self.register_buffer("baseline", torch.tensor(torch.nan))

    def step_alphas(self, batch: dict[str, Batch]) -> None:
        policy = list(self.policy.values())
        draws = draw_networks(policy, self.samples, self.generator)
        # Rewards are of the whole batch, so that every rank takes the same step.
        (scores,) = averaged([evaluate_each(policy, draws, lambda: self._scores(batch["val"]))])
        optimizer = self.alpha_optimizer
        optimizer.zero_grad()
        loss = self._policy_loss(draws, *scores.unbind(1))
        self.back(check_finite(loss, self.current_epoch))
        optimizer.step()

    def _scores(self, batch: Batch) -> Tensor:
        """Loss and primary metric ``(2,)`` of the network that is chosen."""
        x, labels = batch
        logits = run(self.supernet, x)
        loss = self.task.loss(logits, labels)
        self.score("alpha", loss, logits, labels)
        return torch.stack([loss.float(), self.batch_metric(logits, labels)])

    def _policy_loss(self, draws: Tensor, losses: Tensor, accuracies: Tensor) -> Tensor:
        policy = list(self.policy.values())
        if self.reward is not None:
            rewards = self.reward(accuracies, self._costs_of(draws), self.desired)
            return reinforce_loss(policy, draws, rewards, update_baseline(self.baseline, rewards))
        task = losses.mean().requires_grad_()
        joined = self.alpha_loss(task)
        # By the chain rule: an objective may multiply the loss by the cost.
        (price,) = torch.autograd.grad(joined, task, retain_graph=True)
        advantages = -losses - update_baseline(self.baseline, -losses)
        return joined + reinforce_loss(policy, draws, price * advantages).to(joined)

    def _costs_of(self, draws: Tensor) -> dict[str, Tensor]:
        """Exact costs ``(S,)`` of the networks drawn."""
        networks = [
            {n: d.options[k] for (n, d), k in zip(self.policy.items(), row, strict=True)}
            for row in draws.tolist()
        ]
        return {
            name: torch.tensor([cost.of(network) for network in networks], dtype=torch.float64)
            for name, cost in self.costs.items()
        }


# With a power above 0 a larger cost would have a larger reward.
Power = Annotated[float, Field(le=0)]


@checked("search.reward")
class CostAwareAccuracy:
    """``R = acc * prod_i (c_i / T_i)^w``, ``w = exponent_feasible`` where ``c_i <= T_i``,
    else ``exponent_infeasible``.

    Both -0.07: the soft constraint of MnasNet (Tan et al. 2019, Eq. 2); 0 and -1: its hard one;
    both -0.1: ProxylessNAS-R (Cai et al. 2019, ``acc * (T / c)^0.1``). T is the budget of the
    cost or, without one, its mean over all architectures.

    Args:
        exponent_feasible, exponent_infeasible: the power of a cost inside and outside its target,
            at most 0.

    Raises:
        UserError: a power above 0, or not a number.
    """

    def __init__(
        self, exponent_feasible: Power = -0.07, exponent_infeasible: Power = -0.07
    ) -> None:
        self.exponent_feasible, self.exponent_infeasible = exponent_feasible, exponent_infeasible

    def __call__(
        self, accuracy: Tensor, costs: Mapping[str, Tensor], targets: Mapping[str, float]
    ) -> Tensor:
        """``(S,)`` accuracies and, by name, costs of S networks -> rewards ``(S,)``."""
        reward = accuracy
        for name, cost in costs.items():
            # A cost of 0 would have an infinite reward.
            ratio = (cost / targets[name]).clamp_min(1e-6)
            power = torch.where(ratio <= 1, self.exponent_feasible, self.exponent_infeasible)
            reward = reward * (ratio**power).to(reward)
        return reward
