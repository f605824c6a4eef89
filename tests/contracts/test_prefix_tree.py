"""Ranking along the tree of first stages: each network's scores are those it has alone."""

from collections.abc import Sequence
from functools import partial
from weakref import WeakSet

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nas
from nas.arch import Arch
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import NotFiniteError
from nas.recalibrate import recalibrate
from nas.search import prefix_tree
from nas.search.prefix_tree import PrefixTree, stages, validated
from nas.search.scoring import in_turn
from nas.spaces.nas_bench_201 import NasBench201
from nas.supernet.speed import prepare_network
from nas.tasks.classification import Classification

from .elastic_nets import Draw, drawn_archs, elastic_nets
from .strategies import randomized

CPU = torch.device("cpu")


class Own(nn.Module):
    """A user's module with a choice, which writes on its input and has a norm behind the choice."""

    def __init__(self, write: bool) -> None:
        super().__init__()
        ops = {"conv": nn.Conv2d(4, 4, 3, padding=1), "not": nn.Identity()}
        self.choice, self.norm, self.write = nas.ChoiceBlock(ops), nn.BatchNorm2d(4), write

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.choice(x.sigmoid_() if self.write else x.sigmoid()))
        return y


class Writes(nn.Module):
    """Writes on its input where autograd does not count it, first or behind a choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.choice = way, convs()

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "data":
            x.data[x < 0] -= 1  # nothing where a ReLU stands before
        elif self.way == "numpy":
            x.detach().numpy()[:, 1:] *= 0.5
        elif self.way == "set":
            x.set_(x.flip(0))
        elif self.way == "assigned":
            x.data = 0.5 * x.data
        return self.choice(x)


class Flat(nn.Module):
    """A view that no network with channels last can take."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 4, -1).view(x.shape) + 1


class Counts(nn.Module):
    """Gives something else at each call, also in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


def convs() -> nas.ChoiceBlock:
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
    return nas.ChoiceBlock({"one": layers, "less": nn.Conv2d(4, 4, 1), "not": nn.Identity()})


def nested() -> nas.ChoiceBlock:
    inner = nn.Sequential(convs(), nn.BatchNorm2d(4), convs())
    return nas.ChoiceBlock({"inner": inner, "outer": nn.BatchNorm2d(4)})


PARTS = {
    "convs": convs,
    "nested": nested,
    "own": lambda: Own(False),
    "writes": lambda: Own(True),
    "view": lambda: nas.ChoiceBlock({"view": Flat(), "not": nn.Identity()}),
    "fixed": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "relu": lambda: nn.ReLU(inplace=True),
    "counts": Counts,
    **{way: partial(Writes, way) for way in ("data", "numpy", "set", "assigned")},
}


@st.composite
def sequences(draw: Draw) -> nn.Module:
    """A user's own row of modules; some of their norms stand in several of them."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    names = draw(st.lists(st.sampled_from(list(PARTS)), min_size=1, max_size=5))
    parts = [PARTS[name]() for name in [*names, "convs"]]
    if draw(st.booleans()):
        parts.append(parts[draw(st.integers(0, len(parts) - 1))])
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    net.name = "drawn"
    return randomized(net).eval()


def tree_of(net: nn.Module, shape: Sequence[int], speed: str, memory: int, batches: int = 2):
    task = Classification()
    task.outputs = 3
    generator = torch.Generator().manual_seed(0)
    xs = [torch.randn(6, *shape, generator=generator) for _ in range(batches)]
    val = [(torch.randn(n, *shape, generator=generator), torch.arange(n) % 3) for n in (4, 3)]

    def validation():
        return ((x.clone(), targets) for x, targets in val)  # a network may write on its input

    return PrefixTree(net, task, validation, xs, CPU, speed, memory)


def alone(tree: PrefixTree, arch: Arch) -> dict[str, float]:
    """The scores of a network that is made, calibrated and validated by itself."""
    network = discretize(tree.supernet, arch).eval()
    x = next(iter(tree.validation()))[0][:2]
    prepare_network(network, "kernels" if tree.faster else "none", torch.zeros_like(x))
    if tree.calibration:
        recalibrate(network, [x.clone() for x in tree.calibration])
    return validated(network, tree.task, tree.validation(), CPU)


class Peak:
    """The most bytes of outputs that all stages there are have kept at any time."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.most, self.stages = 0, WeakSet[prefix_tree._Stage]()
        keep, begin = PrefixTree._keep, prefix_tree._Stage.__init__

        def kept(*args: object) -> None:
            keep(*args)
            outputs = [y for stage in self.stages for y in stage.outputs or ()]
            self.most = max(self.most, sum(y.untyped_storage().nbytes() for y in outputs))

        def begun(stage: prefix_tree._Stage, *args: object) -> None:
            begin(stage, *args)
            self.stages.add(stage)

        patched.setattr(PrefixTree, "_keep", kept)
        patched.setattr(prefix_tree._Stage, "__init__", begun)


@settings(max_examples=15)
@given(
    st.one_of(elastic_nets(), sequences()),
    st.sampled_from(["none", "kernels"]),
    st.sampled_from([0, 3_000, 10_000, 10**9]),
    st.sampled_from([0, 2]),
    st.booleans(),
)
def test_each_network_has_the_scores_that_it_has_alone(net, speed, memory, batches, in_order):
    archs = drawn_archs(net, 5)
    shape = getattr(net, "input_shape", (4, 6, 5))
    tree = tree_of(net, shape, speed, memory, batches)
    with pytest.MonkeyPatch.context() as patched:
        peak = Peak(patched)
        for index in tree.order(archs) if in_order else range(len(archs)):
            assert tree(archs[index]) == alone(tree, archs[index])
    assert peak.most <= memory


def chain() -> nn.Sequential:
    return nn.Sequential(*(convs() for _ in range(3)), nn.Flatten(), nn.Linear(4 * 30, 3)).eval()


def taken(net: nn.Module, options: Sequence[str]) -> Arch:
    names = [name for name, _ in decisions(net)]
    return Arch("Sequential", dict(zip(names, options, strict=True)))


@given(st.lists(st.tuples(*[st.sampled_from(["one", "less", "not"])] * 3), min_size=1, max_size=30))
@settings(max_examples=10)
def test_in_order_every_first_stage_is_run_once(picks):
    net, runs = chain(), [0]
    tree, archs = tree_of(net, (4, 6, 5), "none", 10**9), [taken(net, one) for one in picks]
    with pytest.MonkeyPatch.context() as patched:
        keep = PrefixTree._keep

        def counted(*args: object) -> None:
            runs[0] += 1
            keep(*args)

        patched.setattr(PrefixTree, "_keep", counted)
        for index in tree.order(archs):
            tree(archs[index])
    inner = {pick[:k] for pick in picks for k in (1, 2)}
    assert runs[0] == 4 * (len(inner) + len(picks))  # of two batches of each kind


@pytest.mark.parametrize("memory", [0, 3_000, 10**9])
def test_what_one_network_does_to_its_modules_is_nothing_to_the_next(memory):
    net = nn.Sequential(Counts(), convs(), Counts(), convs(), nn.Flatten(), nn.Linear(120, 3))
    tree = tree_of(net.eval(), (4, 6, 5), "none", memory)
    for options in (["one", "less"], ["one", "one"], ["less", "one"], ["less", "one"]):
        arch = taken(net, options)
        assert tree(arch) == alone(tree, arch)


@pytest.mark.parametrize("name", ["writes", "data", "numpy", "set", "assigned"])
@pytest.mark.parametrize("memory", [0, 10**9])
def test_what_a_stage_writes_on_its_input_is_nothing_to_the_next_network(name, memory):
    torch.manual_seed(0)
    net = nn.Sequential(convs(), PARTS[name](), convs(), nn.Flatten(), nn.Linear(120, 3)).eval()
    tree = tree_of(net, (4, 6, 5), "none", memory)
    second = "conv" if name == "writes" else "one"
    less = (["less", "not", "one"], ["less", "not", "not"], ["less", second, "less"])
    for options in (["one", second, "one"], ["one", "not", "one"], *less, *less):
        arch = taken(net, options)
        assert tree(arch) == alone(tree, arch)
    assert (tree.path[0].outputs is None) == (memory == 0)
    assert list(tree.writes.values()).count(True) == 2


def test_a_stage_that_shares_its_norm_with_another_is_not_run_alone():
    norm = nn.BatchNorm2d(4)
    net = nn.Sequential(convs(), norm, convs(), norm)
    options = {decision: "one" for _, decision in decisions(net)}
    assert len(stages(net, options)) == 1
    assert len(stages(nn.Sequential(*net[:3]), options)) == 2


def test_cells_and_other_modules_of_a_user_are_run_as_a_whole():
    for net in (NasBench201((3, 8, 8), 3, channels=4, cells=1), Own(False)):
        options = {decision: decision.options[0] for _, decision in decisions(net)}
        ((_, modules),) = stages(net, options)
        assert modules == [net]


def test_a_network_that_learned_nothing_is_told_and_the_next_is_scored():
    net = chain()
    net[0].candidates["less"].weight.data.fill_(torch.nan)
    tree = tree_of(net, (4, 6, 5), "kernels", 10**9)
    good = taken(net, ("one", "one", "one"))
    before = tree(good)
    with pytest.raises(NotFiniteError):
        tree(taken(net, ("less", "one", "one")))
    assert tree(good) == before


def test_the_networks_that_a_searcher_asks_for_at_once_are_scored_in_that_order():
    net = chain()
    picks = [("one", "not", "one"), ("less", "one", "one"), ("one", "not", "less")]
    archs = [taken(net, pick) for pick in picks]
    tree = tree_of(net, (4, 6, 5), "none", 10**9)
    assert tree.order(archs) == [0, 2, 1]
    found = list(in_turn(tree, [(arch,) for arch in archs]))
    assert [one.arch for one in found] == [archs[i] for i in (0, 2, 1)]
    assert [one.metrics for one in found] == [alone(tree, one.arch) for one in found]
    assert tree.order(archs) == [1, 0, 2]  # what the last one has comes first


@pytest.mark.parametrize(("first", "speed"), [("writes", "none"), ("view", "kernels")])
def test_what_one_network_does_to_its_inputs_is_nothing_to_the_next(first, speed):
    torch.manual_seed(0)
    net = nn.Sequential(PARTS[first](), convs(), nn.Flatten(), nn.Linear(120, 3)).eval()
    tree = tree_of(net, (4, 6, 5), speed, 10**9)
    options = [option for _, decision in decisions(net) for option in decision.options][:2]
    for option in [*options, *options]:
        arch = taken(net, (option, "one"))
        assert tree(arch) == alone(tree, arch)
    assert tree.channels_last == (speed == "kernels")
