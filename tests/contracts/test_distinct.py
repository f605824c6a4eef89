"""Architectures of one network are one for whoever searches: its canonical form."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas import ChoiceBlock, Params
from nas.arch import Arch
from nas.cost.expected import expected
from nas.decision import decisions, sample_path
from nas.discretization import arch_of, discretize
from nas.distinct import Distinct, canonical
from nas.search.searchers import SEARCHERS, make, search
from nas.search.space import SearchSpace
from nas.search.trials import Trial, TrialLog
from nas.selection import front, select
from nas.spaces.transformer import Transformer

from .elastic_nets import elastic_nets, searched_widths
from .strategies import archs, supernets
from .test_spaces import CONFIGS, built, shape_of


def network(net: nn.Module, arch: Arch) -> tuple[object, ...]:
    """What is extracted, down to which module of the supernet each one is."""
    for number, module in enumerate(net.modules()):
        module.tag = number
    made = discretize(net, arch).named_modules(remove_duplicate=False)
    # An elastic layer becomes a module that is new, and says how large it is.
    return tuple((name, repr(m) if m.tag is None else m.tag) for name, m in _tagged(made))


def _tagged(modules):
    for name, module in modules:
        module.tag = getattr(module, "tag", None)
        if not any(module.children()) or module.tag is None:
            yield name, module


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_equal_networks_and_they_alone_have_one_canonical_form(name):
    space = built(name, shape_of(name, 2, 8, 8), width=0.1)
    distinct, draw = Distinct.of(space), Random(0)
    alike = 0
    for _ in range(4):
        arch = Arch(space.name, {n: draw.choice(o) for n, o in distinct.options.items()})
        own, unread = network(space, arch), distinct.unread(arch)
        assert network(space, distinct.canonical(arch)) == own
        for names in (list(distinct.options), list(distinct.options), unread):
            at = draw.choice(names or list(distinct.options))
            other = replace(arch, choices={**arch.choices, at: draw.choice(distinct.options[at])})
            same = distinct.canonical(other) == distinct.canonical(arch)
            assert same == (network(space, other) == own)
            alike += at in unread
    assert bool(alike) == bool(distinct.read_if)


@settings(max_examples=10)
# Where one module stands in two options, two architectures may have it in one place.
@given(st.one_of(supernets(shared=False), searched_widths()))
def test_the_networks_of_a_supernet_are_counted_and_listed(net):
    distinct = Distinct.of(net)
    every = list(archs(net))
    forms = {distinct.canonical(arch) for arch in every}
    assert distinct.count == len({network(net, arch) for arch in every}) == len(forms)
    rows = [dict(zip(distinct.options, row, strict=True)) for row in distinct.all().tolist()]
    listed = [{n: distinct.options[n][k] for n, k in row.items()} for row in rows]
    assert sorted(map(str, listed)) == sorted(str(in_order(form, distinct)) for form in forms)


def in_order(arch: Arch, distinct: Distinct) -> dict[str, object]:
    return {name: arch.choices[name] for name in distinct.options}


@settings(max_examples=20)
@given(elastic_nets())
def test_many_at_once_are_as_each_alone(net):
    space = SearchSpace.of(net, "drawn", {}, {})
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(20):
        sample_path(net, generator)
        drawn.append(arch_of(net, "drawn"))
    each = space.picks([space.distinct.canonical(arch) for arch in drawn])
    assert np.array_equal(space.distinct.canonical_picks(space.picks(drawn)), each)


def test_published_numbers_of_networks():
    counts = {}
    for name in ("ofa_mobilenet", "nas_bench_201"):
        with torch.device("meta"):
            counts[name] = Distinct.of(built(name, (3, 224, 224), all_stages=True)).count
    assert counts["ofa_mobilenet"] == (9**2 + 9**3 + 9**4) ** 5  # Cai et al. 2020, Section 3.2
    assert counts["nas_bench_201"] == 5**6


class Chain(nn.Module):
    """Twenty choices, each inside an option of the one before."""

    name = "chain"

    def __init__(self) -> None:
        super().__init__()
        inner: nn.Module = nn.Tanh()
        for _ in range(20):
            inner = ChoiceBlock({"stop": nn.Identity(), "on": nn.Sequential(nn.ReLU(), inner)})
        self.first = inner


def test_choices_far_inside_each_other_are_counted():
    distinct = Distinct.of(Chain())
    assert distinct.count == len(distinct.all()) == 21


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, SearchSpace]:
    """2 to 4 encoder blocks of two sizes: 4 + 8 + 16 networks of 3 * 16 architectures."""
    net = Transformer((2, 8), 3, dim=4, head_dim=2, heads=[1, 2], mlp=[4], depth=[2, 3, 4])
    costs = {"params": expected(net, Params(), (2, 8))}
    return net, SearchSpace.of(net, net.name, costs, {})


def test_a_space_holds_each_network_once(small, monkeypatch):
    net, space = small
    assert space.size == len(list(space)) == len({network(net, arch) for arch in space}) == 28
    some = space.picks(list(space)[:2])
    assert len(space.around(some)) == 28
    monkeypatch.setattr("nas.search.space.WHOLE", 0)  # as of a space that is not listed
    near = [space.arch(dict(zip(space.options, row, strict=True))) for row in space.around(some)]
    assert len({network(net, arch) for arch in near}) == len(near) < 28


@pytest.mark.parametrize("name", SEARCHERS)
def test_no_searcher_asks_for_a_network_twice(name, small, tmp_path):
    net, space = small
    asked: list[Arch] = []
    log = TrialLog(tmp_path / "t.jsonl")

    def evaluate(archs: Sequence[Arch]) -> None:
        for arch in archs:
            asked.append(arch)
            loss = 1 + sum(1 / int(str(o)) for o in arch.choices.values())
            log.append(Trial(arch, {"val_loss": loss}, space.price(arch)))

    searcher, _ = make(name, space, 3, ("val_loss", "params"), 20)
    search(searcher, evaluate, log, 20)
    assert len({network(net, arch) for arch in asked}) == len(asked) >= 20
    assert all(canonical(net, arch) == arch for arch in asked)


def test_a_front_of_alphas_holds_each_network_once(small):
    net, space = small
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for _, decision in decisions(net):
            decision.alpha.data = torch.randn(len(decision.options), generator=generator)
        found = front(net, net.name, space.costs, {}, "params", 8)
        assert len({network(net, arch) for arch in found}) == len(found)
        assert all(canonical(net, arch) == arch for arch in found)
        assert network(net, select(net, net.name, space.costs, {})) == network(net, arch_of(net))


def test_what_an_earlier_version_has_written_is_the_same_network(small):
    net, space = small
    old = Arch(net.name, {**next(iter(space)).choices, "blocks.blocks.b3.heads": 2})
    assert space.holds(old)
    assert canonical(net, old) != old
    assert network(net, canonical(net, old)) == network(net, Arch.from_json(old.to_json()))
