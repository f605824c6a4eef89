"""Parts that change how alphas or weights are trained: draws, skips, perturbation, regularizers."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Dirichlet
from torch.testing import assert_close

from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.decision import apply, decisions, free, split_parameters
from nas.discretization import arch_of, discretize
from nas.errors import UserError
from nas.recalibrate import kept_statistics
from nas.search.regularizers import DirichletKL, Entropy, Perturbing, ZeroOne
from nas.supernet.choice import AuxiliarySkip, ChoiceBlock, Relaxing
from nas.supernet.relax import concentration, constant, cosine_fade, linear_fade


def block() -> ChoiceBlock:
    torch.manual_seed(0)
    made = ChoiceBlock(
        {"conv": nn.Conv1d(2, 2, 3, padding=1), "wide": nn.Conv1d(2, 2, 5, padding=2)}
        | {"skip": nn.Identity()}
    )
    nn.init.normal_(made.alpha)
    return made


def test_a_dirichlet_draw_has_the_gradient_of_rsample():
    made = block()
    made.dirichlet = True
    made.alpha.data.double()
    made.resample(torch.Generator().manual_seed(3))
    cotangent = torch.tensor([1.0, -2.0, 0.5])
    (made.theta * cotangent).sum().backward()

    alpha = made.alpha.detach().clone().requires_grad_()
    c = concentration(alpha)
    draw = made.theta.detach()
    total = c.detach().sum().expand_as(c)
    slope = torch._dirichlet_grad(draw, c.detach(), total)
    c.backward(slope * (cotangent - (draw * cotangent).sum()))

    assert_close(draw.sum(), torch.ones(()))
    assert_close(made.alpha.grad, alpha.grad, rtol=1e-4, atol=1e-6)


def test_dirichlet_draws_have_the_mean_and_the_spread_of_the_distribution():
    made, generator = block(), torch.Generator().manual_seed(0)
    made.dirichlet = True
    draws = []
    for _ in range(3000):
        made.resample(generator)
        draws.append(made.theta.detach())
    exact = Dirichlet(concentration(made.alpha.detach()))
    assert_close(torch.stack(draws).mean(0), exact.mean, atol=0.02, rtol=0)
    assert_close(torch.stack(draws).var(0), exact.variance, atol=0.01, rtol=0)
    free(made)
    assert_close(made.theta.detach(), exact.mean)


def test_two_kinds_of_draws_at_once_are_refused():
    with pytest.raises(UserError, match="two kinds of draws"):
        Relaxing("softmax", True, constant(), dirichlet=True)


def skipping(schedule=linear_fade()) -> nn.Module:  # noqa: B008
    net = nn.Sequential(block(), nn.BatchNorm1d(2)).eval()
    Relaxing("softmax", False, constant(), skip=schedule)(net)
    return net


def test_the_auxiliary_skip_is_added_with_its_beta():
    net, plain, x = (
        skipping(),
        nn.Sequential(block(), nn.BatchNorm1d(2)).eval(),
        torch.randn(2, 2, 8),
    )
    (skip,) = [m for m in net.modules() if isinstance(m, AuxiliarySkip)]
    for progress, beta in ((0.0, 1.0), (0.25, 0.75), (1.0, 0.0)):
        skip.advance(progress)
        assert_close(net[0](x), plain[0](x) + beta * x)


def test_the_auxiliary_skip_is_in_no_network_and_no_cost():
    net, x = skipping(), torch.randn(2, 2, 8)
    costs = ExpectedCost(net, Params(), (2, 8))
    for option in ("conv", "skip"):
        net[0].alpha.data = torch.tensor([float(o == option) for o in net[0].options])
        arch, network = arch_of(net), discretize(net)
        assert not any(isinstance(m, AuxiliarySkip) for m in network.modules())
        assert costs.of(arch.choices) == sum(p.numel() for p in network.parameters())
        apply(net, arch)
        assert torch.equal(net(x), network(x))
        free(net)


def test_a_space_without_skips_takes_no_auxiliary_one():
    net = ChoiceBlock([nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 3, padding=1)])
    with pytest.raises(UserError, match="this space has none"):
        Relaxing("softmax", False, constant(), skip=linear_fade())(net)


@pytest.mark.parametrize("fade", [linear_fade(), cosine_fade()])
def test_skips_fade_from_one_to_nothing(fade):
    course = [fade(step / 10) for step in range(11)]
    assert course[0] == 1
    assert course[-1] == pytest.approx(0)
    assert all(a > b for a, b in pairwise(course))


@pytest.mark.parametrize("by", ["uniform", "ascent"])
def test_perturbed_alphas_are_within_the_radius_and_restored_to_the_bit(by):
    net = nn.Sequential(block(), nn.BatchNorm1d(2), block())
    x = torch.randn(4, 2, 8)
    _, alphas = split_parameters(net)
    before = [alpha.detach().clone() for alpha in alphas]
    for alpha in alphas:
        alpha.requires_grad_(False)

    def loss():
        return net(x).square().mean()

    def slopes():
        return torch.autograd.grad(loss(), alphas)

    around = Perturbing(by, 0.1, 0.3).around
    with around(alphas, slopes, 0.5, torch.Generator().manual_seed(0)):
        moved = [alpha - old for alpha, old in zip(alphas, before, strict=True)]
        perturbed = float(loss().detach())
    assert 0.05 < max(float(m.abs().max()) for m in moved) <= 0.2 + 1e-6
    assert all(torch.equal(alpha, old) for alpha, old in zip(alphas, before, strict=True))
    assert not any(alpha.requires_grad for alpha in alphas)
    assert (perturbed > float(loss().detach())) or by == "uniform"


def test_ascent_finds_more_loss_than_draws_do():
    net, x = nn.Sequential(block()), torch.randn(8, 2, 8)
    _, alphas = split_parameters(net)
    losses = {"uniform": [], "ascent": []}
    for by, seen in losses.items():
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            slopes = lambda: torch.autograd.grad(net(x).square().mean(), alphas)  # noqa: E731
            with Perturbing(by, 0.5, 0.5).around(alphas, slopes, 0.0, generator):
                seen.append(float(net(x).square().mean().detach()))
    assert min(losses["ascent"]) >= max(losses["uniform"])


def test_alphas_are_restored_when_the_step_fails():
    net = block()
    before = net.alpha.detach().clone()
    with (
        pytest.raises(ArithmeticError),
        Perturbing().around([net.alpha], lambda: (), 0.0, torch.Generator()),
    ):
        raise ArithmeticError
    assert torch.equal(net.alpha, before)


@pytest.mark.parametrize(
    "arguments", [{"kind": "chance"}, {"start": -1.0}, {"kind": "ascent", "end": -1.0}]
)
def test_a_senseless_perturbation_is_refused(arguments):
    with pytest.raises(UserError, match=r"search\.perturbation"):
        Perturbing(**arguments)


def test_entropy_sets_in_late_and_makes_decisions_certain():
    made = block()
    entropy = Entropy(weight=2.0, start=0.5)
    p = made.alpha.detach().softmax(0)
    exact = -(p * p.log()).sum()
    assert entropy([made], 0.3) == 0
    assert_close(entropy([made], 0.75).detach(), exact)
    assert_close(entropy([made], 1.0).detach(), 2 * exact)
    optimizer = torch.optim.SGD([made.alpha], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        entropy([made], 1.0).backward()
        optimizer.step()
    assert made.alpha.softmax(0).max() > 0.95
    assert made.alpha.argmax() == p.argmax()


def test_zero_one_drives_each_sigmoid_away_from_a_half():
    made = block()
    made.alpha.data = torch.tensor([0.3, -0.2, 1.0])
    assert float(ZeroOne(10.0)([made], 0.0).detach()) == pytest.approx(
        -10 * float((made.alpha.detach().sigmoid() - 0.5).square().mean())
    )
    ZeroOne()([made], 0.0).backward()
    assert torch.equal(made.alpha.grad.sign(), -made.alpha.detach().sign())


def test_the_dirichlet_term_is_least_without_preference():
    made = block()
    assert float(DirichletKL(1.0)([made], 0.0).detach()) > 0.01
    made.alpha.data.zero_()
    term = DirichletKL(1.0)([made], 0.0)
    term.backward()
    assert float(term.detach()) == pytest.approx(0, abs=1e-6)
    assert_close(made.alpha.grad, torch.zeros(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [Entropy, ZeroOne, DirichletKL])
def test_a_weight_that_is_no_number_is_refused(make):
    with pytest.raises(UserError, match="must be finite"):
        make(weight=float("nan"))


def test_statistics_are_kept_to_the_bit():
    net = nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))
    net(torch.randn(4, 2, 8))
    before = copy.deepcopy(net.state_dict())
    with kept_statistics(net):
        net(torch.randn(4, 2, 8))
        assert not torch.equal(net[1].running_mean, before["1.running_mean"])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_number_of_decisions_is_not_changed_by_a_skip():
    assert len(list(decisions(skipping()))) == 1
