"""What every space in `configs/space` must do; found by listing the folder."""

import copy
from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.trace import trace
from nas.decision import apply, decisions, free, split_parameters
from nas.discretization import discretize
from nas.errors import UserError

from .strategies import counted, randomized, sample

CONFIGS = {
    path.stem: path
    for path in (Path(__file__).parents[2] / "configs" / "space").glob("*.yaml")
    if path.stem != "given"  # which is made of a network: see test_compress.py
}
CLASSES = 3
SMALLER = {"darts": {"cells": 3}, "nas_bench_201": {"cells": 1}}  # all cells of a kind are alike
SEQUENCES, IMAGES = {"tcn"}, {"darts", "nas_bench_201"}
# And so are the other stages; test_mnasnet.py has all.
STAGES = {"mnasnet": (1, 3), "ofa": (1, 4), "tcn": (0, 2)}


def shape_of(name: str, *shape: int) -> tuple[int, ...]:
    """The shape, without its last side for a space of sequences."""
    return shape[:-1] if name in SEQUENCES else shape


def built(
    name: str,
    shape: tuple[int, ...],
    all_stages: bool = False,
    outputs: int = CLASSES,
    **overrides: float,
) -> nn.Module:
    table = yaml.safe_load(CONFIGS[name].read_text(encoding="utf-8")) | overrides
    table |= SMALLER.get(name, {})
    if not all_stages and (family := name.partition("_")[0]) in STAGES:
        table["stages"] = table["stages"][slice(*STAGES[family])]
        for stage in table["stages"]:
            stage.update({"depth": stage["depth"][:2]} if "depth" in stage else {})
    module, _, attribute = table["_target_"].rpartition(".")
    arguments = {key: value for key, value in table.items() if not key.startswith("_")}
    make = getattr(import_module(module), attribute)
    return make(input_shape=shape, num_outputs=outputs, **arguments)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def space(request) -> nn.Module:
    """Narrow, on small images, in eval mode."""
    return randomized(built(request.param, shape_of(request.param, 2, 8, 8), width=0.1)).eval()


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def whole(request) -> nn.Module:
    """At full width on 224 x 224, without memory or arithmetic: counts that float32 cannot hold."""
    with torch.device("meta"):
        return built(request.param, shape_of(request.param, 3, 224, 224)).eval()


def covering(space: nn.Module) -> Iterator[Arch]:
    """A few architectures in which every option of every decision is taken once."""
    own = dict(decisions(space))
    for k in range(max(len(decision.options) for decision in own.values())):
        # Not option k everywhere: neighbours must fit whatever is beside them.
        taken = {n: d.options[(k + i) % len(d.options)] for i, (n, d) in enumerate(own.items())}
        yield Arch(space.name, taken)


def test_the_listing_finds_them():
    assert {"chain", "chain_tiny", "mobilenet", "mobilenet_tiny"} <= set(CONFIGS)


def test_forward_gives_logits(space):
    assert space(sample(space, batch=2)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_space_takes_sequences_or_says_what_it_takes(name):
    if name in IMAGES:
        with pytest.raises(UserError, match="images"):
            built(name, (2, 16), width=0.1)
    else:
        network = built(name, (2, 16), width=0.1)
        assert network(torch.randn(2, 2, 16)).shape == (2, CLASSES)


def test_names_are_unique_and_lead_to_the_decision(space):
    names = [name for name, _ in decisions(space)]
    assert 0 < len(set(names)) == len(names)
    assert all(space.get_submodule(name) is decision for name, decision in decisions(space))


def test_every_option_runs_and_extracts(space):
    x = sample(space)
    for arch in covering(space):
        network = discretize(space, arch)
        apply(space, arch)
        assert torch.equal(space(x), network(x))
        assert not any(decisions(network))
        assert counted(network)["macs"] > 0
    free(space)


def test_every_arch_survives_a_file(space, tmp_path):
    for arch in covering(space):
        arch.save(tmp_path / "arch.json")
        assert Arch.load(tmp_path / "arch.json") == arch


def test_costs_at_full_width_are_exact(whole):
    traced = trace(whole, whole.input_shape)
    assert dict(traced.options) == {name: len(d.options) for name, d in decisions(whole)}
    expected = {cost.name: ExpectedCost(whole, cost, traced) for cost in (Params(), MACs())}
    for arch in islice(covering(whole), 3):  # each is another option of every decision
        with torch.device("meta"):
            exact = counted(discretize(whole, arch))
        assert {name: cost.of(arch.choices) for name, cost in expected.items()} == exact


def test_a_step_trains_weights_and_alphas(space):
    network = copy.deepcopy(space).train()
    network(sample(network, batch=2)).square().sum().backward()
    assert all(alpha.grad.abs().sum() > 0 for alpha in split_parameters(network).alphas)
    assert list(network.parameters())[-1].grad.abs().sum() > 0  # of the last layer
