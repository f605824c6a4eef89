"""`peak_memory` against networks that are played node by node, see `reference_peak`."""

import math
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas.arch import Arch
from nas.cost.memory import PeakMemory
from nas.cost.polynomial import Polynomial
from nas.cost.trace import trace
from nas.decision import apply, decisions, free, sample_path
from nas.discretization import arch_of, discretize
from nas.ops.blocks import Zero
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import straight_through

from .elastic_nets import drawn_archs, searched_widths
from .reference_peak import peak
from .strategies import archs, probability, randomized, sample, some_archs, supernets

SPACES = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs" / "space").glob("*.yaml"))
    if path.stem != "given"  # which is made of a network
]
LONG = ("mnasnet", "mobilenet", "ofa", "tcn")  # whole, their many variants of a stage take long
BOTH = (PeakMemory(), PeakMemory(fuse=False))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Mirror(nn.Module):
    """A permutation that must be copied, then a sum of a thing with itself."""

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(2, 3)
        return (y + y).sigmoid()


class Half(nn.Module):
    """A slice: of one sample's channels, so that it is a view of twice its size."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.twice(x)[:, :4] * 2


class Graph(nn.Module):
    """States, each a layer of an earlier one or the sum of two; the last few are joined."""

    input_shape = (4, 3, 3)

    def __init__(self, layers: list[nn.Module | None], sources: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer or nn.Identity() for layer in layers)
        self.sums = [layer is None for layer in layers]
        self.sources = sources

    def forward(self, x: Tensor) -> Tensor:
        states = [x]
        for layer, summed, (i, j) in zip(self.layers, self.sums, self.sources, strict=True):
            states.append(states[i] + states[j] if summed else layer(states[i]))
        return torch.cat(states[-2:], dim=1)


CANDIDATES = {
    "identity": nn.Identity,
    "relu": lambda: nn.ReLU(),
    "relu_": lambda: nn.ReLU(inplace=True),
    "norm": lambda: nn.BatchNorm2d(4),
    "conv": lambda: nn.Conv2d(4, 4, 1),
    "wide": lambda: nn.Sequential(nn.Conv2d(4, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)),
    "residual": lambda: Residual(nn.Conv2d(4, 4, 1)),
    "empty": lambda: Residual(nn.Identity()),
    "zero": lambda: Zero(4, 1),
    "mirror": Mirror,
    "half": Half,
}


@st.composite
def graphs(draw) -> Graph:
    """Skips across choices, among which are many that make no buffer, or write over their input."""

    def candidate(depth: int) -> nn.Module:
        if depth == 0 and draw(st.integers(0, 4)) == 0:
            inner = [candidate(1) for _ in range(2)]
            return Residual(ChoiceBlock(inner)) if draw(st.booleans()) else ChoiceBlock(inner)
        return CANDIDATES[draw(st.sampled_from(sorted(CANDIDATES)))]()

    layers: list[nn.Module | None] = []
    sources = []
    blocks: list[nn.Module] = []
    for n in range(1, draw(st.integers(3, 7))):
        kinds = ["choice", "choice", "sum", "plain", "again"]
        kind = draw(st.sampled_from(kinds)) if blocks else "choice"
        if kind == "again" and blocks:
            layers.append(draw(st.sampled_from(blocks)))
        elif kind in ("choice", "again") and len(blocks) < 4:
            count = draw(st.integers(1 if blocks else 2, 3))
            blocks.append(ChoiceBlock([candidate(0) for _ in range(count)]))
            layers.append(blocks[-1])
        else:
            layers.append(None if kind == "sum" else candidate(1))
        near = st.integers(max(0, n - 3), n - 1)
        sources.append((draw(near), draw(near)))
    return randomized(Graph(layers, sources)).eval()


def at(net: nn.Module, arch: Arch, terms: Polynomial) -> float:
    """A polynomial at the one-hot thetas of `arch`, in plain Python."""
    taken = {(n, d.options.index(arch.choices[n])) for n, d in decisions(net)}
    return sum(value for term, value in terms.items() if term <= taken)


def check_exact(net: nn.Module, chosen: list) -> None:
    traced = trace(net, net.input_shape)
    x = sample(net)
    for cost in BOTH:
        expected = cost.expected(net, traced)
        for arch in chosen:
            apply(net, arch)
            exact = peak(discretize(net, arch), x, fuse=cost.fuse)
            assert expected.of(arch.choices) == expected().item() == exact
            assert max(at(net, arch, row) for row in expected.constraints) == exact
        free(net)


@settings(max_examples=20)
@given(supernets())
def test_one_hot_peak_is_that_of_the_extracted_network(net):
    check_exact(net, some_archs(net))


@settings(max_examples=30)
@given(graphs())
def test_skips_and_outputs_that_are_inputs(net):
    check_exact(net, some_archs(net, 6))


@settings(max_examples=15)
@given(searched_widths())
def test_what_stands_behind_searched_widths(net):
    check_exact(net, drawn_archs(net))


def built(path: Path, shape: tuple[int, ...], **overrides: float) -> nn.Module:
    table = yaml.safe_load(path.read_text(encoding="utf-8")) | overrides
    if path.stem.partition("_")[0] in LONG:
        table["stages"] = table["stages"][:2]
    module, _, attribute = table["_target_"].rpartition(".")
    arguments = {key: value for key, value in table.items() if not key.startswith("_")}
    return getattr(import_module(module), attribute)(input_shape=shape, num_outputs=3, **arguments)


# torch.fx, which the interpreter of these tests is built on, cannot follow FactorizedReduce's pad.
MARKS = {
    "mnasnet": [pytest.mark.slow],
    "mnasnet_small": [pytest.mark.slow],
}
TRACEABLE = [
    pytest.param(path, id=path.stem, marks=MARKS.get(path.stem, []))
    for path in SPACES
    if path.stem != "darts"
]


@pytest.mark.parametrize("path", TRACEABLE)
def test_random_architectures_of_every_space(path):
    net = built(path, (2, 16) if path.stem == "tcn" else (2, 16, 16), width=0.2).eval()
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for _ in range(3):
        sample_path(net, generator)
        chosen.append(arch_of(net))
    free(net)
    check_exact(net, chosen)


def small(net: nn.Module) -> bool:
    return math.prod(len(d.options) for _, d in decisions(net)) <= 100


@settings(max_examples=15)
@given(st.one_of(graphs(), supernets()).filter(small), st.sampled_from(BOTH))
def test_the_expected_peak_is_the_mean_over_all_architectures(net, cost):
    expected = cost.expected(net, net.input_shape)
    peaks = {arch: expected.of(arch.choices) for arch in archs(net)}
    mean = sum(probability(net, arch) * value for arch, value in peaks.items())
    assert expected().item() == pytest.approx(mean)
    assert expected.mean().item() == pytest.approx(sum(peaks.values()) / len(peaks))


@settings(max_examples=12)
@given(st.one_of(graphs(), supernets()), st.sampled_from(BOTH))
def test_the_gradient_is_that_of_the_value(net, cost):
    expected = cost.expected(net, net.input_shape)
    own = dict(decisions(net))
    logits = {name: d.alpha.detach().double().requires_grad_() for name, d in own.items()}

    def value(*alphas: Tensor) -> Tensor:
        thetas = {n: alpha.softmax(-1) for n, alpha in zip(own, alphas, strict=True)}
        return expected.at(thetas) / 1e3

    torch.autograd.gradcheck(value, tuple(logits.values()), eps=1e-6, atol=1e-4)
    # And that of alphas is this one, through the theta of float32 that the forward pass uses.
    expected().backward()
    (1e3 * value(*logits.values())).backward()
    for name, decision in own.items():
        right = logits[name].grad.float()
        torch.testing.assert_close(decision.alpha.grad, right, rtol=1e-3, atol=0.5)


@settings(max_examples=10)
@given(st.one_of(graphs(), supernets()).filter(small), st.sampled_from(BOTH))
def test_descending_the_penalty_alone_finds_less_memory(net, cost):
    expected = cost.expected(net, net.input_shape)
    peaks = [expected.of(arch.choices) for arch in archs(net)]
    before = expected().item()
    optimizer = torch.optim.Adam([d.alpha for _, d in decisions(net)], lr=0.2)
    for _ in range(60):
        optimizer.zero_grad()
        expected().backward()
        optimizer.step()
    assert max(peaks) == min(peaks) or expected().item() < before
    assert expected.of(arch_of(net).choices) <= before * 1.001


@settings(max_examples=10)
@given(graphs(), st.sampled_from(BOTH))
def test_a_hard_sample_has_the_peak_of_what_it_runs(net, cost):
    for _, decision in decisions(net):
        decision.relax = straight_through
    expected = cost.expected(net, net.input_shape)
    assert expected().item() == expected.of(arch_of(net).choices)
    expected().backward()
    assert all(d.alpha.grad.isfinite().all() for _, d in decisions(net))


@settings(max_examples=10)
@given(graphs(), st.sampled_from([32, 8, 4]))
def test_the_parameters_that_are_stored_can_be_added(net, bits):
    plain = PeakMemory().expected(net, net.input_shape)
    stored = PeakMemory(weights=True, weight_bits=bits).expected(net, net.input_shape)
    for arch in some_archs(net):
        params = sum(p.numel() for p in discretize(net, arch).parameters())
        assert stored.of(arch.choices) == plain.of(arch.choices) + params * bits / 8
