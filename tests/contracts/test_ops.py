"""What every op of the catalogue must do, found by its name alone."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.decision import decisions
from nas.discretization import discretize
from nas.ops.catalogue import known_names
from nas.supernet.candidates import Scalable
from nas.supernet.elastic_ops import ALL_OPS, op_exclusion_reason
from nas.supernet.elastic_ops import build_op as build

from .strategies import counted, randomized

SIDES = {1: (9,), 2: (7, 6)}
SITES = [(8, 8, 1, 2), (8, 16, 2, 1), (8, 8, 1, 1)]  # in, out, stride, ndim
NAMES = known_names(ALL_OPS)
OPS = [(name, site) for name in NAMES for site in SITES if op_exclusion_reason(name, *site) is None]
SCALABLE = [(name, site) for name, site in OPS if isinstance(build(name, *site), Scalable)]
every_op = pytest.mark.parametrize(("name", "site"), OPS)


def made(name: str, site: tuple[int, int, int, int]) -> nn.Module:
    op = randomized(build(name, *site))
    op.input_shape = (site[0], *SIDES[site[3]])
    return op


def sample(op: nn.Module) -> Tensor:
    return torch.randn(2, *op.input_shape)


def test_every_op_stands_somewhere():
    assert {name for name, _ in OPS} == set(NAMES)


@every_op
def test_shape(name, site):
    op = made(name, site)
    sides = [-(-side // site[2]) for side in op.input_shape[1:]]
    assert op(sample(op)).shape == (2, site[1], *sides)


@every_op
def test_eval_is_deterministic_and_changes_nothing(name, site):
    op = made(name, site).eval()
    before, x = copy.deepcopy(op.state_dict()), sample(op)
    assert torch.equal(op(x), op(x))
    assert_close(op.state_dict(), before, rtol=0, atol=0)


@every_op
def test_a_copy_or_a_loaded_state_computes_the_same(name, site):
    op = made(name, site)
    x = sample(op)
    y = op(x.requires_grad_())
    if y.requires_grad:  # zero is a constant
        y.sum().backward()
    op.eval()
    loaded = made(name, site).eval()
    loaded.load_state_dict(op.state_dict())
    assert torch.equal(copy.deepcopy(op)(x), op(x))
    assert torch.equal(loaded(x), op(x))


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_recurrent_layer_costs_what_its_gates_do_at_each_step(name, gates):
    op = build(name, 5, 6, 1, 1)
    weights = gates * 6 * (5 + 6)
    assert ExpectedCost(op, MACs(), (5, 9))().item() == 9 * weights
    assert ExpectedCost(op, Params(), (5, 9))().item() == weights + 2 * gates * 6


@pytest.mark.parametrize("name", ["tcn_k3_d4", "tcn_k5_d1"])
def test_an_output_of_a_tcn_sees_its_reach_and_nothing_behind_it(name):
    op, kernel, dilation = build(name, 1, 4, 1, 1).eval(), int(name[5]), int(name[8])
    for weight in op.parameters():  # no rectifier may hide anything
        weight.data.abs_()
    x = torch.ones(1, 1, 80, requires_grad=True)
    op(x)[..., 60].sum().backward()
    seen = x.grad[0, 0].nonzero().flatten()
    assert (seen.min().item(), seen.max().item()) == (60 - 2 * (kernel - 1) * dilation, 60)


@pytest.mark.parametrize(("name", "site"), SCALABLE)
def test_scaled_is_scale_times_forward(name, site):
    op = made(name, site).eval()
    x = sample(op)
    assert_close(op.scaled(x, torch.tensor(0.3)), 0.3 * op(x))
    assert torch.equal(op.scaled(x, torch.ones(())), op(x))


@every_op
def test_price_is_that_of_an_independent_counter(name, site):
    op = made(name, site).eval()
    for _, decision in decisions(op):  # of the elastic ones
        decision.choose(decision.options[-1])
    network = discretize(op)
    network.input_shape = op.input_shape
    costs = {c.name: ExpectedCost(op, c, op.input_shape)().item() for c in (Params(), MACs())}
    assert costs == counted(network)
