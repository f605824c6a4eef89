"""Functions over the decisions of a model: choosing, drawing, and splitting its parameters."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.decision import apply, decisions, free, resample, sample_path, split_parameters
from nas.discretization import arch_of
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock


def block(*kernels: int, **more) -> ChoiceBlock:
    return ChoiceBlock({f"k{k}": nn.Conv1d(2, 2, k, padding=k // 2) for k in kernels}, **more)


class Net(nn.Module):
    """A block used twice, and one nested in another."""

    name = "net"

    def __init__(self, **more) -> None:
        super().__init__()
        self.first = block(1, 3, **more)
        self.outer = ChoiceBlock(
            {"deep": nn.Sequential(block(3, 5, **more), nn.ReLU()), "flat": nn.Conv1d(2, 2, 1)},
            **more,
        )
        self.last = self.first

    def forward(self, x):
        return self.last(self.outer(self.first(x)))


NAMES = ["first", "outer", "outer.candidates.deep.0"]
CHOICES = {"first": "k3", "outer": "deep", "outer.candidates.deep.0": "k5"}


def test_a_decision_is_named_once_by_its_first_path():
    assert [name for name, _ in decisions(Net())] == NAMES


def test_apply_is_undone_by_free_and_read_by_arch_of():
    net, arch = Net(), Arch("net", CHOICES)
    apply(net, arch)
    assert arch_of(net) == arch
    free(net)
    assert all(decision.open.all() for _, decision in decisions(net))
    assert arch_of(net).choices["first"] == "k1"


@pytest.mark.parametrize(
    ("space", "choices", "says"),
    [
        ("other", CHOICES, "of space 'other', this supernet is 'net'"),
        ("net", {"first": "k3"}, r"lacks the decisions \['outer', 'outer.candidates.deep.0'\]"),
        ("net", CHOICES | {"more": "k1"}, r"has unknown ones \['more'\]"),
        ("net", CHOICES | {"first": "k7"}, r"'first': no option 'k7' here, only \['k1', 'k3'\]"),
        ("net", CHOICES | {"first": 3}, "'first': no option 3 here"),
    ],
)
def test_an_arch_that_does_not_fit_is_refused(space, choices, says):
    with pytest.raises(UserError, match=says):
        apply(Net(), Arch(space, choices))


def test_best_looks_at_alpha_and_not_at_the_draw():
    made = block(1, 3, 5, gumbel=True)
    made.alpha.data = torch.tensor([0.0, 0.1, 0.0])
    for seed in range(20):
        made.resample(torch.Generator().manual_seed(seed))
        assert made.best() == "k3"
    made.open[1] = False
    assert made.best() in ("k1", "k5")


def test_one_draw_serves_both_uses_of_a_block():
    net, thetas = Net(gumbel=True), []
    for candidate in net.first.candidates.values():
        candidate.register_forward_hook(lambda *_: thetas.append(net.first.theta.detach()))
    resample(net)
    net(torch.randn(1, 2, 8))
    assert len(thetas) == 4
    assert all(torch.equal(theta, thetas[0]) for theta in thetas)


@pytest.mark.parametrize("draw", [resample, sample_path])
def test_draws_come_from_the_generator_alone(draw):
    seen = []
    for seed, everywhere in ((1, 0), (1, 5), (2, 0)):
        torch.manual_seed(everywhere)
        net, state = Net(gumbel=True), torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            draw(net, generator)
        assert torch.equal(torch.get_rng_state(), state)
        seen.append(torch.cat([decision.theta for _, decision in decisions(net)]).tolist())
    assert seen[0] == seen[1] != seen[2]


def test_sample_path_takes_every_option_equally_often():
    made, generator = block(1, 3, 5), torch.Generator().manual_seed(0)
    made.alpha.data = torch.tensor([0.0, 5.0, 0.0])
    counts = torch.zeros(3)
    for _ in range(600):
        sample_path(made, generator)
        counts += made.theta.detach()
    assert counts.sum() == 600
    assert (counts > 160).all()


def test_parameters_are_split_in_the_order_of_the_modules_each_once():
    net = Net()
    weights, alphas = split_parameters(net)
    assert [id(alpha) for alpha in alphas] == [id(decision.alpha) for _, decision in decisions(net)]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    order = list(names.values())
    assert [names[id(w)] for w in weights] == [name for name in order if not name.endswith("alpha")]
    assert len(weights) + len(alphas) == len(order)


ORDER = """
from nas.decision import split_parameters
from nas.spaces.staged import StagedSpace

net = StagedSpace((1, 8, 8), 2, [{"ops": ["conv_k3", "sep_k3"], "channels": 4, "repeat": 8}])
names = {id(parameter): name for name, parameter in net.named_parameters()}
order = [[names[id(parameter)] for parameter in part] for part in split_parameters(net)]
"""


def test_the_order_is_the_same_in_another_process():
    here: dict[str, list[list[str]]] = {}
    exec(ORDER, here)
    there = subprocess.check_output([sys.executable, "-c", ORDER + "print(order)"], text=True)
    assert there.strip() == str(here["order"])
    assert len(here["order"][1]) == 8


def test_a_model_can_be_copied_and_reloaded_after_a_step():
    net = Net(gumbel=True)
    resample(net)
    x = torch.randn(2, 2, 8)
    net(x).sum().backward()
    twin, fresh = copy.deepcopy(net), Net(gumbel=True)
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    assert torch.equal(fresh(x), net(x))
    assert twin.first.alpha is not net.first.alpha


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        ({}, "at least one candidate op"),
        ([], "at least one candidate op"),
        ({"a": "conv_k3"}, "candidate 'a' must be an nn.Module, got str"),
        ({"a.b": nn.ReLU()}, "'a.b' must be a string, not empty and without a dot"),
        ({"": nn.ReLU()}, "'' must be a string, not empty"),
        ({3: nn.ReLU()}, "candidate name 3 must be a string"),
        ({"half": nn.ReLU()}, "'half' is an attribute of nn.ModuleDict: choose another"),
    ],
)
def test_candidates_that_cannot_be_are_refused(candidates, says):
    with pytest.raises(UserError, match=says):
        ChoiceBlock(candidates)


def test_one_module_given_twice_is_refused():
    conv = nn.Conv1d(2, 2, 1)
    with pytest.raises(UserError, match=r"candidates \['a', 'b'\] are the same module object"):
        ChoiceBlock({"a": conv, "b": conv})


def test_a_list_of_candidates_is_named_by_place_and_class():
    assert ChoiceBlock([nn.ReLU(), nn.Tanh(), nn.ReLU()]).options == ("0_ReLU", "1_Tanh", "2_ReLU")


def test_theta_is_relaxed_at_the_temperature():
    made = block(1, 3, 5, gumbel=True)
    nn.init.normal_(made.alpha)
    made.resample()
    made.tau.fill_(0.5)
    torch.testing.assert_close(made.theta, (2 * (made.alpha + made.noise)).softmax(0))


def test_forward_is_the_weighted_sum():
    made, x = block(1, 3, 5), torch.randn(2, 2, 8)
    nn.init.normal_(made.alpha)
    terms = zip(made.alpha.softmax(0), made.candidates.values(), strict=True)
    torch.testing.assert_close(made(x), sum(theta * op(x) for theta, op in terms))
