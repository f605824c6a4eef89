"""A trace runs each distinct call once, and is what it is where every call is run."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from nas.cost import recorder
from nas.cost.analytic import MACs, Size
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import Trace, trace
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import Elastic, ElasticDepth, ElasticWidth, elastic

from .test_spaces import built

SHAPE = (2, 8)


Runs = Callable[[nn.Module], tuple[int, Trace]]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Traces a model, and counts how many convolutions are run for it."""
    forward, count = nn.Conv1d.forward, [0]

    def counted(self: nn.Conv1d, x: Tensor) -> Tensor:
        count[0] += 1
        return forward(self, x)

    monkeypatch.setattr(nn.Conv1d, "forward", counted)

    def run(model: nn.Module) -> tuple[int, Trace]:
        count[0] = 0
        traced = trace(model, SHAPE)
        return count[0], traced

    return run


def conv(kernel: int) -> nn.Conv1d:
    return nn.Conv1d(2, 2, kernel, padding=kernel // 2)


def block(candidates: int = 2) -> ChoiceBlock:
    return ChoiceBlock([nn.Sequential(conv(2 * k + 1), nn.ReLU()) for k in range(candidates)])


def test_blocks_that_are_alike_are_run_once_and_recorded_each(runs):
    found = [runs(nn.Sequential(*(block() for _ in range(n)))) for n in (2, 4, 6)]
    assert [count for count, _ in found] == [2, 2, 2]
    few, more, most = (len(traced.operators) for _, traced in found)
    assert most - more == more - few > 0


def test_runs_grow_with_the_candidates_alone(runs):
    found = [runs(nn.Sequential(block(n), block(n)))[0] for n in (2, 4, 6)]
    assert found == [2, 4, 6]


def test_a_searched_depth_runs_its_blocks_once(runs):
    def stage(depth: int) -> ElasticDepth:
        # Of kernels that differ: none is like another.
        blocks = OrderedDict((f"b{i}", conv(2 * i + 1)) for i in range(depth))
        return ElasticDepth(blocks, Elastic(range(1, depth + 1)))

    assert [runs(stage(depth))[0] for depth in (2, 4, 8)] == [2, 4, 8]


class Alternating(nn.Module):
    """Another layer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(1), conv(3)])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.layers[(self.calls - 1) % 2](x)
        return y


def test_a_module_that_changes_itself_is_run_at_each_call(runs):
    module = Alternating()
    count, traced = runs(nn.Sequential(module, block(1), module, block(1), module))
    macs = [layer.spec.kernel for layer in traced.layers if layer.spec.is_call]
    assert macs == [(1,), (1,), (3,), (1,), (1,)]
    assert count == 2  # one of each kernel


class Counting(nn.Module):
    """Its first call differs from the later ones, by what lies on the class."""

    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3)

    def forward(self, x: Tensor) -> Tensor:
        Counting.calls += 1
        return self.conv(x) if Counting.calls == 1 else self.conv(self.conv(x))


def test_a_module_that_changes_its_class_is_run_at_each_call(runs):
    Counting.calls = 0
    _, traced = runs(nn.Sequential(Counting(), Counting(), Counting()))
    assert sum(layer.spec.kind == "conv" for layer in traced.layers) == 5


class Frozen(nn.Module):
    """Another layer where its first one is frozen."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(1), conv(3)])
        self.layers[0].requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers[int(self.layers[0].weight.requires_grad)](x)
        return y


def test_frozen_weights_are_told_from_others(runs):
    _, traced = runs(nn.Sequential(Frozen(True), Frozen(False), Frozen(True), Frozen(False)))
    kernels = [layer.spec.kernel for layer in traced.layers if layer.spec.is_call]
    assert kernels == [(1,), (3,), (1,), (3,)]


def widths() -> nn.Module:
    number = elastic([1, 2])
    first = ElasticWidth(partial(nn.Conv1d, kernel_size=1), 2, number)
    again = ElasticWidth(partial(nn.Conv1d, kernel_size=1), number, 2)
    tied = conv(1)
    sharing = nn.Sequential(conv(1), conv(1))
    sharing[1].weight = sharing[0].weight
    two = ChoiceBlock([nn.Sequential(conv(1), conv(1)), nn.Sequential(tied, tied), sharing])
    return nn.Sequential(first, again, two, first, again, ChoiceBlock([tied, conv(1)]))


MODELS: dict[str, Any] = {
    "widths": lambda: (widths(), SHAPE),
    **{
        name: partial(lambda name: (built(name, (2, 8, 8), width=0.1), (2, 8, 8)), name)
        for name in ("chain_tiny", "nas_bench_201", "ofa_mobilenet_small", "vit_tiny")
    },
}


def plain(traced: Trace) -> dict[str, Any]:
    """All of it in values that compare: identities of weights as places, tensors as shapes."""
    weights: dict[Any, int] = {}
    found = {field.name: getattr(traced, field.name) for field in fields(traced)}
    found["inputs"] = None
    found["operators"] = [
        {**asdict(o), "weight": o.weight and weights.setdefault(o.weight, len(weights))}
        for o in traced.operators
    ]
    shape = partial(tree_map_only, Tensor, lambda x: (x.shape, x.stride(), x.dtype))
    found["pieces"] = [
        (p.path, p.condition, shape((p.args, p.kwargs)), p.first, p.end, p.follows)
        for p in traced.pieces
    ]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_trace_of_every_call(name, monkeypatch):
    model, shape = MODELS[name]()
    traced = trace(model, shape)
    monkeypatch.setattr(recorder, "call_of", lambda *_: None)
    every = trace(model, shape)
    assert plain(traced) == plain(every)
    for cost in (MACs(), Size(fold_norm=True)):
        found = [float(ExpectedCost(model, cost, one)().detach()) for one in (traced, every)]
        assert found[0] == found[1]
    found = [float(PeakMemory().expected(model, one)().detach()) for one in (traced, every)]
    assert found[0] == found[1]
