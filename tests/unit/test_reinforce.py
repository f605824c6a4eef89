"""REINFORCE: its gradient against the true one, its rewards, and its baseline."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.decision import decisions
from nas.errors import UserError
from nas.search.reinforce import (
    CostAwareAccuracy,
    draw_networks,
    evaluate_each,
    reinforce_loss,
    reinforce_step,
    update_baseline,
)
from nas.supernet.choice import ChoiceBlock

SIZES = (3, 2)


def net() -> nn.Sequential:
    made = nn.Sequential(*(ChoiceBlock([nn.Identity() for _ in range(k)]) for k in SIZES))
    for index, block in enumerate(made):
        block.alpha.data = torch.linspace(-0.3, 0.4, len(block.options))
        block.tau.fill_(0.5 + index)
    return made


def rewards_of(draws: torch.Tensor) -> torch.Tensor:
    """Some reward that does not add up over the decisions."""
    return 1.0 + draws[:, 0] * 0.7 - draws[:, 1] * 1.8 + (draws[:, 0] == draws[:, 1]) * 0.9


def true_gradient(policy: list[ChoiceBlock]) -> list[torch.Tensor]:
    """Of ``-E[R]``, every network being enumerated."""
    every = torch.tensor(list(product(*map(range, SIZES))))
    p = [(b.alpha / b.tau).softmax(0)[every[:, i]] for i, b in enumerate(policy)]
    expected = -(torch.stack(p).prod(0) * rewards_of(every)).sum()
    return list(torch.autograd.grad(expected, [b.alpha for b in policy]))


@pytest.mark.parametrize("baseline", [0.0, 1.3])
def test_the_gradient_is_unbiased(baseline):
    policy, generator, total = list(net()), torch.Generator().manual_seed(0), 4000
    draws = draw_networks(policy, total, generator)
    loss = reinforce_loss(policy, draws, rewards_of(draws), baseline)
    estimates = torch.autograd.grad(loss, [b.alpha for b in policy])
    for block, estimate, truth in zip(policy, estimates, true_gradient(policy), strict=True):
        i = policy.index(block)
        p = (block.alpha / block.tau).detach().softmax(0)
        each = (rewards_of(draws) - baseline)[:, None] * (p - torch.eye(len(p))[draws[:, i]])
        error = each.std(0) / block.tau / total**0.5
        assert ((estimate - truth).abs() < 4 * error).all()
        # The test has the power to tell.
        assert (truth.abs() > 8 * error).any()


def test_a_baseline_lowers_the_variance_and_does_not_depend_on_the_draws():
    policy = list(net())
    draws = draw_networks(policy, 500, torch.Generator().manual_seed(0))
    spread = []
    for baseline in (0.0, float(rewards_of(draws).mean())):
        each = [
            torch.autograd.grad(
                reinforce_loss(policy, row[None], rewards_of(row[None]), baseline),
                policy[0].alpha,
            )[0]
            for row in draws
        ]
        spread.append(float(torch.stack(each).var(0).sum()))
    assert spread[1] < 0.7 * spread[0]


def test_the_baseline_starts_at_the_mean_and_then_follows_it():
    baseline = torch.tensor(torch.nan)
    assert update_baseline(baseline, torch.tensor([1.0, 3.0])) == 2
    assert float(update_baseline(baseline, torch.tensor([3.0]))) == pytest.approx(2.99)
    assert float(baseline) == pytest.approx(2.99)


def test_networks_are_drawn_by_their_probabilities():
    policy = list(net())
    draws = draw_networks(policy, 4000, torch.Generator().manual_seed(0))
    for i, block in enumerate(policy):
        frequencies = torch.bincount(draws[:, i], minlength=SIZES[i]) / len(draws)
        p = (block.alpha / block.tau).detach().softmax(0)
        assert_close(frequencies, p, atol=0.03, rtol=0)


def test_each_network_is_evaluated_as_it_was_drawn_and_without_gradient():
    model = net()
    policy = [d for _, d in decisions(model)]
    draws = draw_networks(policy, 6, torch.Generator().manual_seed(0))

    def seen() -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return torch.tensor([int(d.theta.argmax()) for d in policy])

    assert torch.equal(evaluate_each(policy, draws, seen), draws)
    assert all(d.open.all() for d in policy)


def test_steps_find_the_network_of_the_largest_reward_and_leave_weights_alone():
    model = nn.Sequential(*(ChoiceBlock([nn.Linear(2, 2) for _ in range(3)]) for _ in range(2)))
    before = {n: p.clone() for n, p in model.named_parameters() if "alpha" not in n}
    policy = [d for _, d in decisions(model)]
    optimizer = torch.optim.Adam([d.alpha for d in policy], lr=0.1, betas=(0.0, 0.999))
    baseline, generator = torch.tensor(torch.nan), torch.Generator().manual_seed(0)
    wanted = (2, 1)

    def reward() -> torch.Tensor:
        pairs = zip(policy, wanted, strict=True)
        return torch.tensor(float(sum(int(d.theta.argmax()) == k for d, k in pairs)))

    for _ in range(40):
        reinforce_step(model, reward, optimizer, baseline, 8, generator)
    assert tuple(int(d.alpha.argmax()) for d in policy) == wanted
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_rewards_are_those_of_the_papers():
    acc, costs = torch.tensor([0.5, 0.8]), {"params": torch.tensor([50.0, 200.0]).double()}
    targets = {"params": 100.0}
    soft = CostAwareAccuracy()(acc, costs, targets)
    assert_close(soft, torch.tensor([0.5 * 0.5**-0.07, 0.8 * 2**-0.07]))
    hard = CostAwareAccuracy(0.0, -1.0)(acc, costs, targets)
    assert_close(hard, torch.tensor([0.5, 0.4]))
    proxyless = CostAwareAccuracy(-0.1, -0.1)(acc, costs, targets)
    assert_close(proxyless, acc * (100 / costs["params"].float()) ** 0.1)
    assert_close(CostAwareAccuracy()(acc, {}, {}), acc)


@pytest.mark.parametrize("value", [0.1, float("nan"), -float("inf")])
def test_a_reward_that_seeks_cost_is_refused(value):
    with pytest.raises(UserError, match="at most 0"):
        CostAwareAccuracy(exponent_feasible=value)
