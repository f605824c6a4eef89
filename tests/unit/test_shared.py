"""Several modules that stand for one decision."""

import copy

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.decision import apply, decisions, free, resample, sample_path, sites, split_parameters
from nas.discretization import discretize
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import Shared


def block(tied_to=None, channels=2) -> ChoiceBlock:
    ops = {f"k{k}": nn.Conv1d(channels, channels, k, padding=k // 2) for k in (1, 3)}
    return ChoiceBlock(ops, tied_to=tied_to)


class Net(nn.Module):
    """One decision named apart, carried out by two blocks; one of a block, followed by another."""

    input_shape = (2, 8)
    name = "net"

    def __init__(self) -> None:
        super().__init__()
        self.apart = Shared(("k1", "k3"))
        own = block()
        self.layers = nn.Sequential(block(self.apart), own, block(self.apart), block(own))

    def forward(self, x):
        return self.layers(x)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def test_each_decision_is_named_once():
    assert [name for name, _ in decisions(net())] == ["apart", "layers.1"]
    assert len(list(sites(net()))) == 5
    assert len(split_parameters(net()).alphas) == 2
    assert sum("alpha" in key for key in net().state_dict()) == 2


@pytest.mark.parametrize("first", ["k1", "k3"])
@pytest.mark.parametrize("second", ["k1", "k3"])
def test_all_blocks_take_what_is_taken(first, second):
    made, x = net(), torch.randn(1, 2, 8)
    arch = Arch("net", {"apart": first, "layers.1": second})
    network = discretize(made, arch)
    kernels = [layer.kernel_size[0] for layer in network.layers]
    assert kernels == [int(option[1]) for option in (first, second, first, second)]
    assert not any(isinstance(m, Shared) for m in network.modules())
    for cost, exact in ((Params(), sum(p.numel() for p in network.parameters())),):
        assert ExpectedCost(made, cost, made.input_shape).of(arch.choices) == exact
    macs = sum(4 * k * 8 for k in kernels)
    assert ExpectedCost(made, MACs(), made.input_shape).of(arch.choices) == macs
    apply(made, arch)
    assert torch.equal(made(x), network(x))


def test_blocks_mix_with_the_same_theta_after_each_draw():
    made = net()
    for _, site in sites(made):
        site.gumbel = True
    for draw in (resample, sample_path, lambda model: free(model)):
        draw(made)
        thetas = [layer.theta for layer in made.layers]
        assert torch.equal(thetas[0], thetas[2])
        assert torch.equal(thetas[1], thetas[3])


def test_the_gradient_of_a_decision_is_that_of_all_its_blocks():
    made, x = net(), torch.randn(1, 2, 8)
    made(x).square().sum().backward()
    alone = copy.deepcopy(made)
    h = 1e-3
    for k in range(2):
        values = []
        for side in (h, -h):
            alone.apart.alpha.data.copy_(made.apart.alpha.data)
            alone.apart.alpha.data[k] += side
            values.append(float(alone(x).square().sum().detach()))
        slope = (values[0] - values[1]) / (2 * h)
        assert float(made.apart.alpha.grad[k]) == pytest.approx(slope, rel=0.02, abs=1e-3)


def test_a_copy_has_a_decision_of_its_own():
    made = net()
    twin = copy.deepcopy(made)
    twin.apart.alpha.data.fill_(3.0)
    assert twin.layers[0].alpha is twin.apart.alpha
    assert not (made.layers[0].alpha == 3).any()
    fresh = net()
    fresh.load_state_dict(twin.state_dict())
    assert (fresh.layers[2].alpha == 3).all()


def test_other_options_cannot_be_shared():
    with pytest.raises(UserError, match="the same options"):
        ChoiceBlock({"a": nn.Identity(), "b": nn.ReLU()}, tied_to=block())
