"""The order of channels: Taylor scores are slopes of gates, narrower networks keep the best."""

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nas.compress.convert import searchable
from nas.compress.rules import Rules
from nas.config.model import with_model
from nas.decision import decisions
from nas.errors import UserError

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "channel_order.py"))
put_in_order, taylor, widths = SCRIPT["put_in_order"], SCRIPT["taylor"], SCRIPT["widths"]


class Net(nn.Module):
    """Two groups of channels, one of them read twice; a gate for each of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.other = nn.Conv2d(8, 16, 3), nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(16, 3)
        self.gates: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self._gated(self.norm(self.first(x)).relu())
        x = self._gated((self.second(x) + self.other(x)).relu())
        return self.head(x.mean((2, 3)))

    def _gated(self, x: Tensor) -> Tensor:
        gate = self.gates.get(x.shape[1])
        return x if gate is None else x * gate[:, None, None]


@pytest.fixture(params=range(3))
def network(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(request.param)
    made = Net()
    for buffer in (made.norm.running_mean, made.norm.running_var):
        assert buffer is not None
        buffer.uniform_(0.5, 1.5)
    return made.eval()


@pytest.mark.parametrize("rules", [Rules(), Rules(operations={"include": ["head"]})])
def test_scores_are_the_squared_slopes_of_gates(network: Net, rules: Rules) -> None:
    batches = [(torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 1])) for _ in range(2)]
    supernet = searchable(network, (1, 6, 6), rules).train()
    found = {len(w.first): score for w, score in taylor(supernet, batches, F.cross_entropy).items()}
    assert supernet.training
    assert all(decision.open.all() for _, decision in decisions(supernet))
    network.gates = {size: torch.ones(size, requires_grad=True) for size in (8, 16)}
    expected = dict.fromkeys((8, 16), torch.zeros(()))
    for x, y in batches:
        loss = F.cross_entropy(network(x), y)
        slopes = torch.autograd.grad(loss, list(network.gates.values()))
        for size, slope in zip(network.gates, slopes, strict=True):
            expected[size] = expected[size] + slope.square()
    assert found.keys() == expected.keys()
    for size, score in found.items():
        torch.testing.assert_close(score, expected[size])


@given(st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_narrower_networks_keep_the_channels_of_the_largest_scores(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    supernet = searchable(Net().eval(), (1, 6, 6)).eval()
    x = torch.randn(2, 1, 6, 6, generator=draw)
    for _, decision in decisions(supernet):
        decision.choose(decision.options[-1])
    before = supernet(x)
    scores = {one: torch.rand(len(one.first), generator=draw) for _, one in widths(supernet)}
    put_in_order(scores)
    for width, score in scores.items():
        for k, option in enumerate(width.options):
            kept = width.first <= k
            assert int(kept.sum()) == option
            assert not (~kept).any() or score[kept].min() >= score[~kept].max()
    assert torch.equal(supernet(x), before)


def test_groups_that_are_decided_together_are_put_in_order_each_by_itself() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(1, 16, 1)
            self.last = nn.Conv2d(24, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))

    ((_, width),) = widths(searchable(Joined(), (1, 4, 4)))
    assert sorted(width.groups) == [8, 16]
    counts = [(part <= 3).sum() for part in width.first.split(width.groups)]
    put_in_order({width: torch.arange(24.0)})
    assert [(part <= 3).sum() for part in width.first.split(width.groups)] == counts
    for part in width.first.split(width.groups):
        assert part.tolist() == sorted(part.tolist(), reverse=True)


def test_words_of_a_network_become_those_of_its_space() -> None:
    words = [
        "model=a.b:C",
        "model.args.n=3",
        "model.args={k:[1,2]}",
        "model.weights=w.pt",
        "seed=1",
    ]
    recipe = ["space=given", "search=compress", "finetune=compress"]
    node = "space.model={_target_:a.b.C,_partial_:true,n:3,k:[1,2]}"
    assert with_model(words) == [*recipe, "seed=1", "space.weights=w.pt", node]
    assert with_model(["model=a:b", "search=spos", "finetune=default"])[0] == "space=given"
    assert "search=compress" not in with_model(["model=a:b", "+experiment=darts"])
    assert with_model(["seed=1", "--config-dir", "model"]) == ["seed=1", "--config-dir", "model"]
    with pytest.raises(UserError, match="leave one of them out"):
        with_model(["model=a:b", "space=darts"])
