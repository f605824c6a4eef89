"""Extraction: what the plain network keeps of the supernet, and what it must not share."""

import copy

import pytest
import torch
from torch import nn

from nas.arch import Arch
from nas.decision import decisions, resample
from nas.discretization import arch_of, discretize
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.relax import straight_through


def conv(kernel: int) -> nn.Conv1d:
    return nn.Conv1d(2, 2, kernel, padding=kernel // 2)


class Net(nn.Module):
    """A fixed layer, a choice with a BatchNorm and a dropout, and a choice inside a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3)
        self.body = ChoiceBlock(
            {"norm": nn.Sequential(conv(3), nn.BatchNorm1d(2), nn.Dropout(0.5)), "plain": conv(5)}
        )
        inner = ChoiceBlock({"k1": conv(1), "k3": conv(3)})
        self.tail = ChoiceBlock({"deep": nn.Sequential(inner, nn.ReLU()), "flat": conv(1)})

    def forward(self, x):
        return self.tail(self.body(self.stem(x)))


DEEP = Arch("Net", {"body": "norm", "tail": "deep", "tail.candidates.deep.0": "k3"})
FLAT = Arch("Net", {"body": "plain", "tail": "flat", "tail.candidates.deep.0": "k3"})


def storages(model: nn.Module) -> set[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_the_options_stand_where_the_decisions_stood():
    deep, flat = discretize(Net(), DEEP), discretize(Net(), FLAT)
    assert [type(layer).__name__ for layer in deep.body] == ["Conv1d", "BatchNorm1d", "Dropout"]
    assert deep.tail[0].kernel_size == (3,)
    assert flat.body.kernel_size == (5,)
    assert isinstance(flat.tail, nn.Conv1d)
    assert not any(decisions(deep))
    assert not any("alpha" in key or "candidates" in key for key in deep.state_dict())


@pytest.mark.parametrize("arch", [DEEP, FLAT])
def test_nothing_is_shared_with_the_supernet(arch):
    net = Net()
    network = discretize(net, arch)
    assert not storages(net) & storages(network)
    assert not {id(m) for m in net.modules()} & {id(m) for m in network.modules()}
    before = copy.deepcopy(net.state_dict())
    network.train()(torch.randn(4, 2, 8)).sum().backward()
    torch.optim.SGD(network.parameters(), 1.0).step()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_supernet_stays_as_it_is():
    net = Net()
    for _, decision in decisions(net):
        decision.gumbel = True
    net.body.choose("plain")
    resample(net)
    before, modules = copy.deepcopy(net.state_dict()), list(net.modules())
    for arch in (DEEP, FLAT, None):
        discretize(net, arch)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert list(net.modules()) == modules


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_frozen_weights_are_kept(training):
    net = Net().train(training)
    net.body.candidates["norm"][1].train(not training)
    net.stem.weight.requires_grad_(False)
    net.body.candidates["norm"][0].bias.requires_grad_(False)
    network = discretize(net, DEEP)
    modes = {name: module.training for name, module in network.named_modules()}
    assert modes.pop("body.1") is (not training)
    assert set(modes.values()) == {training}
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"stem.weight", "body.0.bias"}


def test_weights_and_statistics_are_inherited():
    net = Net().train()
    net(torch.randn(4, 2, 8))
    network = discretize(net, DEEP)
    source = net.body.candidates["norm"].state_dict()
    assert all(torch.equal(v, source[key]) for key, v in network.body.state_dict().items())
    assert network.body[1].num_batches_tracked == 1


def test_after_a_training_step_it_still_works():
    net = Net()
    for _, decision in decisions(net):
        decision.relax, decision.gumbel = straight_through, True
    resample(net)
    net(torch.randn(4, 2, 8)).sum().backward()
    network = discretize(net)
    assert network(torch.randn(1, 2, 8)).shape == (1, 2, 8)
    assert all(parameter.is_leaf for parameter in network.parameters())


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_block_used_alone_and_inside_another_is_replaced_in_both_places(order):
    shared = ChoiceBlock({"k1": conv(1), "k3": conv(3)})
    outer = ChoiceBlock({"deep": nn.Sequential(shared, nn.ReLU()), "flat": conv(1)})
    network = discretize(nn.Sequential(*[(shared, outer)[i] for i in order]))
    alone, within = network[order[0]], network[order[1]]
    assert not any(decisions(network))
    assert within[0] is alone
    assert alone.kernel_size == (1,)


def test_a_shared_candidate_stays_shared():
    op = conv(3)
    net = nn.Sequential(ChoiceBlock({"a": op, "b": conv(1)}), ChoiceBlock({"a": op, "b": conv(1)}))
    first, second = discretize(net)
    assert first is second
    assert first is not op


def test_a_lone_block_becomes_its_option():
    block = ChoiceBlock({"a": conv(1), "b": conv(3)})
    block.alpha.data = torch.tensor([0.0, 1.0])
    network = discretize(block)
    assert type(network) is nn.Conv1d
    assert network.kernel_size == (3,)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"body": "norm"}, "lacks the decisions"),
        (dict(DEEP.choices) | {"body": "none"}, "'body': no option 'none' here"),
    ],
)
def test_an_arch_that_does_not_fit_is_refused_and_nothing_is_chosen(choices, says):
    net = Net()
    with pytest.raises(UserError, match=says):
        discretize(net, Arch("Net", choices))
    assert all(decision.open.all() for _, decision in decisions(net))


def test_the_name_of_the_space_is_the_models_own_or_its_class():
    net = Net()
    assert arch_of(net).space == "Net"
    net.name = "mine"
    assert arch_of(net).space == "mine"
    assert arch_of(net, "given").space == "given"
    with pytest.raises(UserError, match="of space 'Net', this supernet is 'mine'"):
        discretize(net, DEEP)


def test_convolutions_are_torchs_own():
    supernet = ChoiceBlock({"a": build("conv_k3", 2, 2), "b": build("sep_k3", 2, 2)})
    network = discretize(nn.Sequential(supernet))
    assert {type(m) for m in network.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    assert not {type(m) for m in supernet.modules()} & {nn.Conv2d}
