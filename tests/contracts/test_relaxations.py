"""What every relaxation must do, with and without Gumbel noise; found in `nas.supernet.relax`."""

import copy
import inspect

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.supernet import relax
from nas.supernet.choice import ChoiceBlock

RELAXATIONS = relax.RELAXATIONS
K = 4


@pytest.fixture(params=RELAXATIONS.values(), ids=RELAXATIONS)
def relaxation(request):
    return request.param


@pytest.fixture(params=["plain", "gumbel", "dirichlet"])
def block(request, relaxation) -> ChoiceBlock:
    ops = {f"k{k}": nn.Conv1d(2, 2, k, padding=k // 2) for k in (1, 3, 5, 7)}
    made = ChoiceBlock(ops, relax=relaxation, gumbel=request.param == "gumbel")
    made.dirichlet = request.param == "dirichlet"
    nn.init.normal_(made.alpha)
    made.resample()
    return made


def test_every_relaxation_is_listed_under_its_name():
    functions = inspect.getmembers(relax, inspect.isfunction)
    takes_logits = [f for _, f in functions if list(inspect.signature(f).parameters) == ["logits"]]
    assert {f.__name__: f for f in takes_logits} == RELAXATIONS
    assert {"softmax", "straight_through", "one_path", "sigmoid"} <= set(RELAXATIONS)


def draws(block):
    return block.gumbel or block.dirichlet


def is_distribution(theta):
    return float(theta.detach().sum()) == pytest.approx(1)


def test_theta_is_a_distribution(block):
    # Sigmoid's options are there or not, each on its own.
    assert is_distribution(block.theta) != (block.relax is relax.sigmoid)
    assert (block.theta >= 0).all()
    assert (block.theta <= 1).all()


@pytest.mark.parametrize("tau", [0.01, 1.0, 100.0])
def test_theta_and_its_gradient_are_finite(block, tau):
    block.tau.fill_(tau)
    theta = block.theta
    (theta * torch.arange(1.0, K + 1)).sum().backward()
    assert theta.isfinite().all()
    assert block.alpha.grad.isfinite().all()


def test_a_closed_option_is_exactly_zero(block):
    block.open[1] = False
    nn.init.constant_(block.alpha[1], 50.0)
    for _ in range(5):
        block.resample()
        assert block.theta[1] == 0
        assert is_distribution(block.theta) != (block.relax is relax.sigmoid)


@pytest.mark.parametrize("k", range(K))
def test_one_open_option_is_exactly_one(block, k):
    for draw_again in (False, True):
        block.choose(block.options[k])
        if draw_again:
            block.resample()
        assert torch.equal(block.theta, torch.eye(K)[k])
    block.free()
    assert block.open.all()


def test_both_losses_reach_every_alpha(block):
    x = torch.randn(3, 2, 8)
    block.alpha.data.mul_(0.1)
    block(x).square().sum().backward()
    assert (block.alpha.grad != 0).all()
    block.alpha.grad = None
    ExpectedCost(block, Params(), (2, 8))().backward()
    assert (block.alpha.grad != 0).all()


def test_theta_is_float32_under_autocast_and_in_a_half_precision_model(block):
    before = block.theta
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block.theta, before)
        assert block(torch.randn(1, 2, 8)).dtype == torch.bfloat16
    block.bfloat16()
    assert block.theta.dtype == torch.float32
    assert block(torch.randn(1, 2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_theta_is_the_same_until_the_next_draw(block):
    before, state = block.theta.detach(), torch.get_rng_state()
    repr(block)
    block.eval()(torch.randn(1, 2, 8, generator=torch.Generator()))
    block.train()(torch.randn(1, 2, 8, generator=torch.Generator()))
    ExpectedCost(block, Params(), (2, 8))()
    assert torch.equal(block.theta, before)
    assert torch.equal(torch.get_rng_state(), state)
    block.resample()
    assert torch.equal(block.noise, torch.zeros(K)) != draws(block)


def test_the_draw_belongs_to_the_state(block):
    block.tau.fill_(0.7)
    block.open[2] = False
    block(torch.randn(1, 2, 8))
    twin = copy.deepcopy(block)
    fresh = ChoiceBlock(copy.deepcopy(dict(block.candidates)), block.relax, block.gumbel)
    fresh.dirichlet = block.dirichlet
    fresh.load_state_dict(block.state_dict())
    assert torch.equal(twin.theta, block.theta)
    assert torch.equal(fresh.theta, block.theta)


def test_a_generator_repeats_its_draws(block):
    thetas = []
    for seed in (1, 1, 2):
        block.resample(torch.Generator().manual_seed(seed))
        thetas.append(block.theta.detach())
    assert torch.equal(thetas[0], thetas[1])
    assert torch.equal(block.noise, torch.zeros(K)) != draws(block)


def test_gumbel_samples_have_the_probabilities_of_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5])
    generator = torch.Generator().manual_seed(0)
    noise = torch.stack([relax.gumbel_noise(logits, generator) for _ in range(4000)])
    frequencies = torch.bincount((logits + noise).argmax(-1), minlength=K) / 4000
    assert_close(frequencies, logits.softmax(-1), atol=0.03, rtol=0)
