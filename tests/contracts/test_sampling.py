"""Identity 5: a sampled path runs, stores and trains that path alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from nas.arch import Arch
from nas.decision import apply, decisions, resample, sample_path
from nas.discretization import arch_of, discretize
from nas.spaces.staged import StagedSpace
from nas.supernet.relax import RELAXATIONS, one_path

from .strategies import randomized, sample, some_archs, supernets

STAGES = {
    "conv": {"ops": ["conv_k3", "conv_k5", "sep_k3"], "channels": 16, "repeat": 2},
    "mb": {"ops": ["mb_k3_e3", "mb_k5_e3", "mb_k5_e3_se"], "channels": 16, "repeat": 2},
}


def leaves_run(model: nn.Module, x: Tensor) -> list[str]:
    """The layers that one forward pass calls, in order."""
    called: list[str] = []
    handles = [
        module.register_forward_hook(lambda module, *_: called.append(repr(module)))
        for module in model.modules()
        if not any(module.children())
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return called


def taken(net: nn.Module) -> Arch:
    """The architecture that theta is one-hot for."""
    thetas = {name: decision.theta.tolist() for name, decision in decisions(net)}
    assert all(sorted(theta)[-2:] == [0.0, 1.0] for theta in thetas.values())
    options = {name: decision.options for name, decision in decisions(net)}
    return Arch("Net", {name: options[name][theta.index(1.0)] for name, theta in thetas.items()})


@settings(max_examples=15)
@given(supernets(), st.sampled_from(["choose", "sample_path", "one_path", "one_path_gumbel"]))
def test_only_the_layers_of_the_path_run_and_train(net, way):
    for _, decision in decisions(net):
        decision.relax = one_path
        decision.gumbel = way == "one_path_gumbel"
    if way == "choose":
        apply(net, some_archs(net)[0])
    elif way == "sample_path":
        sample_path(net)
    else:
        resample(net)
    network, x = discretize(net, taken(net)), sample(net)
    assert leaves_run(net, x) == leaves_run(network, x)

    net(x).square().sum().backward()
    network(x).square().sum().backward()
    alphas = {id(decision.alpha) for _, decision in decisions(net)}
    own = [p.grad for p in net.parameters() if id(p) not in alphas and p.grad is not None]
    plain = [p.grad for p in network.parameters() if p.grad is not None]
    # In one order: a supernet registers what it shares at another place than the network does.
    assert_close(
        sorted(float(grad.double().norm()) for grad in own),
        sorted(float(grad.double().norm()) for grad in plain),
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_path_not_taken_keeps_its_statistics(training):
    net = space("conv").train(training)
    sample_path(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net(sample(net, batch=4)).sum().backward()
    moved = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    path = [f"{name}.candidates.{option}." for name, option in arch_of(net).choices.items()]
    assert bool(moved) == training
    assert all(key.startswith((*path, "stem", "head")) for key in moved)


def space(kind: str) -> StagedSpace:
    rows = [{**STAGES[kind], "stride": 2}, {**STAGES[kind], "channels": 32}]
    net = StagedSpace((3, 16, 16), 10, rows, stem={"channels": 16}, head={"features": 64})
    return randomized(net).train()


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """Memory that autograd keeps for the backward pass, each storage once, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves: an address must not be used again

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x)
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in own)


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("way", ["choose", "one_path", "straight_through"])
def test_memory_for_backward_is_that_of_the_plain_network(kind, way):
    net = space(kind)
    for seed in range(4):
        for _, decision in decisions(net):
            decision.free()
            decision.relax, decision.gumbel = RELAXATIONS.get(way, one_path), True
        generator = torch.Generator().manual_seed(seed)
        sample_path(net, generator) if way == "choose" else resample(net, generator)
        arch = Arch(net.name, taken(net).choices)
        x = sample(net, batch=8)
        plain = saved_bytes(discretize(net, arch), x)
        assert plain <= saved_bytes(net, x) <= 1.02 * plain


def test_memory_of_all_paths_is_larger():
    net = space("conv")
    assert saved_bytes(net, sample(net, batch=8)) > 2 * saved_bytes(
        discretize(net), sample(net, batch=8)
    )
