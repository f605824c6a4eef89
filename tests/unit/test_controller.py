"""The recurrent controller: its distribution and gradient by brute force, and what it learns."""

import copy
from itertools import pairwise, product

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas import ChoiceBlock, Params, build_op
from nas.cost.expected import expected
from nas.errors import UserError
from nas.search.gradient.reinforce import CostAwareAccuracy
from nas.search.sampling.controller import Controller, Policy, policy_loss
from nas.search.sampling.searchers import search
from nas.search.sampling.space import SearchSpace
from nas.search.sampling.trials import Trial, TrialLog

COUNTS = (3, 2)
EVERY = torch.tensor(list(product(*map(range, COUNTS))))
REWARDS = torch.tensor([1.0, -0.4, 0.3, 0.9, 0.2, 1.7])
TABLE = SearchSpace("t", {str(i): tuple(range(5)) for i in range(6)})


def policy() -> Policy:
    torch.manual_seed(0)
    made = Policy(COUNTS, 8)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made


def gradient(value, made) -> torch.Tensor:
    parameters = list(made.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs])


def test_probabilities_add_up_and_later_decisions_depend_on_earlier_ones():
    made, at = policy(), torch.full((6,), 0.4)
    p = made(at, EVERY)[0].exp()
    assert float(p.sum().detach()) == pytest.approx(1, abs=1e-6)
    given = (p.view(COUNTS) / p.view(COUNTS).sum(1, keepdim=True)).detach()
    assert float((given[0] - given[1]).abs().max()) > 0.01
    assert not torch.allclose(p, made(-at, EVERY)[0].exp())


def test_draws_follow_the_probabilities():
    made = policy()
    draws = made.draw(torch.full((6000,), 0.4), torch.Generator().manual_seed(0))
    found = torch.bincount(draws[:, 0] * 2 + draws[:, 1], minlength=6) / 6000
    assert_close(found, made(torch.full((6,), 0.4), EVERY)[0].exp().detach(), atol=0.02, rtol=0)


def test_the_log_probability_has_the_gradient_of_finite_differences():
    made = policy().double()
    at, picks = torch.tensor([0.4]).double(), torch.tensor([[2, 1]])
    exact = gradient(made(at, picks)[0].sum(), made)
    slopes, h = [], 1e-5
    for parameter in made.parameters():
        flat = parameter.data.view(-1)
        for i in range(len(flat)):
            value = float(flat[i])
            ends = []
            for side in (h, -h):
                flat[i] = value + side
                ends.append(float(made(at, picks)[0].detach()))
            flat[i] = value
            slopes.append((ends[0] - ends[1]) / (2 * h))
    assert_close(exact, torch.tensor(slopes).double(), atol=1e-6, rtol=1e-5)
    assert exact.abs().max() > 0.1


@pytest.mark.parametrize("baseline", [0.0, 0.8])
def test_the_gradient_is_unbiased(baseline):
    """Its mean over all draws, by their probabilities, is that of the expected reward."""
    made, at = policy().double(), torch.full((6,), 0.4).double()
    p = made(at, EVERY)[0].exp()
    truth = gradient(-(p * REWARDS).sum(), made)
    total = torch.zeros_like(truth)
    for row, reward, weight in zip(EVERY, REWARDS, p.tolist(), strict=True):
        log_p, entropy = made(at[:1], row[None])
        loss = policy_loss(log_p, torch.tensor([reward - baseline]), entropy)
        total += weight * gradient(loss, made)
    assert_close(total, truth)
    assert truth.abs().max() > 0.01


def test_the_bonus_is_the_entropy():
    made, at = policy(), torch.full((6,), 0.4)
    log_p, along = made(at, EVERY)
    p = log_p.exp()
    assert_close((p * along).sum(), -(p * log_p).sum())
    less = policy_loss(log_p, REWARDS, along) - policy_loss(log_p, REWARDS, along, 0.5)
    assert_close(less, 0.5 * along.mean())


def accuracy(arch) -> float:
    """A table: each option has its worth, neighbours must agree."""
    x = [int(arch.choices[name]) for name in TABLE.options]
    fits = sum(a == b for a, b in pairwise(x))
    return (sum(x) + 2 * fits) / 34


def searched(searcher, trials: int, path, cost=None) -> list[Trial]:
    log = TrialLog(path)
    log.append = lambda trial: log.known.update({trial.arch.hash: trial})  # spare the disk

    def evaluate(archs):
        for arch in archs:
            log.append(Trial(arch, {"val_acc": accuracy(arch), **(cost(arch) if cost else {})}))

    return search(searcher, evaluate, log, trials)


def test_after_200_of_15625_evaluations_it_is_clearly_above_random(tmp_path):
    found = searched(Controller(TABLE, 0, ("val_acc",)), 200, tmp_path / "t.jsonl")
    generator = torch.Generator().manual_seed(0)
    best = [max(accuracy(TABLE.draw(generator)) for _ in range(200)) for _ in range(20)]
    own = [accuracy(trial.arch) for trial in found]
    assert max(own) > max(best)
    assert sum(own[150:]) / 50 > sum(own[:50]) / 50 + 0.15  # it is the policy that learned


def test_told_a_smaller_target_it_draws_cheaper_networks(tmp_path):
    def cost(arch):
        return {"ms": 1.0 + sum(int(option) for option in arch.choices.values())}

    controller = Controller(TABLE, 0, ("val_acc", "ms"))
    searched(controller, 400, tmp_path / "t.jsonl", cost)
    generator = torch.Generator().manual_seed(0)
    means = [
        float(controller.policy.draw(torch.full((100,), at), generator).float().sum(1).mean())
        for at in (-0.8, 0.8)
    ]
    assert means[0] < means[1] - 3


def test_with_one_target_the_reward_is_mnasnets(tmp_path):
    controller = Controller(TABLE, 0, ("val_acc", "ms"), CostAwareAccuracy(), spread=False)
    arch = TABLE.arch(dict.fromkeys(TABLE.options, 3))
    for ms, name in ((2.0, 3), (6.0, 4)):
        one = TABLE.arch(dict.fromkeys(TABLE.options, name))
        controller.tell([Trial(one, {"val_acc": 0.5, "ms": ms})])
    reward = controller._rewards([controller.known[arch.hash]], 0.0)
    assert_close(float(reward), 0.5 * (2.0 / 4.0) ** -0.07)  # T: the mean of those seen


def priced() -> SearchSpace:
    ops = ("conv_k3", "conv_k5", "sep_k3", "identity")
    model = nn.Sequential(*(ChoiceBlock({n: build_op(n, 4, 4) for n in ops}) for _ in range(4)))
    costs = {"params": expected(model, Params(), (4, 8, 8))}
    return SearchSpace.of(model, "s", costs, {})


def test_a_budget_that_hardly_anything_meets_ends_and_is_kept():
    space = priced()
    prices = sorted(space.price(arch)["params"] for arch in space)
    tight = SearchSpace(space.name, space.options, space.costs, {"params": prices[0]})
    controller = Controller(tight, 0, ("val_loss", "params"))
    for _ in range(5):
        asked = controller.ask(3)
        assert asked
        assert all(tight.fits(arch) for arch in asked)
        controller.tell([Trial(a, {"val_loss": 1.0}, tight.price(a)) for a in asked])


def test_draws_outside_a_budget_become_rare():
    space = priced()
    prices = sorted(space.price(arch)["params"] for arch in space)
    tight = SearchSpace(space.name, space.options, space.costs, {"params": prices[50]})
    controller = Controller(tight, 0, ("val_loss", "params"), spread=False)
    inside = []
    draw = controller._draw

    def counted(repair: bool) -> None:
        draw(False)
        inside.append(sum(arch is not None for arch in controller.drawn))

    controller._draw = counted
    for _ in range(40):
        asked = controller.ask(8)
        controller.tell([Trial(a, {"val_loss": 1.0}, tight.price(a)) for a in asked])
    assert sum(inside[-10:]) > 60  # of 80
    assert sum(inside[:5]) < 20  # of 40


def test_failed_networks_are_worth_nothing_and_seeds_are_all_it_depends_on():
    made = [Controller(TABLE, 1, ("val_loss",)) for _ in range(2)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    asked = []
    for controller in made:
        for turn in range(4):
            archs = controller.ask(4)
            failed = Trial(archs[0], {}, message="NaN")
            rest = [Trial(a, {"val_loss": 1.0 + i + turn}) for i, a in enumerate(archs[1:])]
            controller.tell([failed, *rest])
            asked.append([arch.hash for arch in archs])
    assert asked[:4] == asked[4:]
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.isfinite().all() for p in made[0].policy.parameters())
    assert made[0]._rewards([made[0].known[asked[0][0]]], 0.0).tolist() == [0.0]
    other = Controller(TABLE, 2, ("val_loss",))
    assert [a.hash for a in other.ask(4)] != asked[0]
    copy.deepcopy(made[0])


@pytest.mark.parametrize("value", [{"samples": 0}, {"rate": 0.0}, {"bonus": -1.0}, {"memory": 0}])
def test_bad_numbers_are_named(value):
    with pytest.raises(UserError, match=next(iter(value))):
        Controller(TABLE, 0, ("val_acc",), **value)
