"""Any network becomes a supernet of its own layers, whose networks are plain and priced exactly."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import nas
from nas.compress.convert import Rules, converted, searchable


class Net(nn.Module):
    """Residual sum, depthwise, concatenation, shared, flatten; ``(N, 3, 8, 8) -> (N, 5)``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.act = nn.PReLU(32)
        self.project = nn.Conv2d(32, 16, 1)
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 3, padding=1)
        self.shared = nn.Conv2d(20, 20, 1)
        self.classifier = nn.Linear(20 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.project(self.act(self.depthwise(self.wide(x))))
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = self.shared(self.shared(x).sigmoid())
        return self.classifier(F.max_pool2d(x, 2).flatten(1))


def held_to_identities(net: nn.Module, shape: tuple[int, ...], archs: int = 4) -> nn.Module:
    """The supernet of `net`, after all that must hold of it."""
    net.eval()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    supernet = searchable(net, shape)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        expected = net(x)
        for _, decision in nas.decisions(supernet):
            decision.choose(decision.options[-1])
        assert torch.equal(supernet(x), expected)
    traced = nas.trace(supernet, shape)
    params = nas.ExpectedCost(supernet, nas.Params(), traced)
    macs = nas.ExpectedCost(supernet, nas.MACs(), traced)
    for _ in range(archs):
        nas.sample_path(supernet)
        choices = nas.arch_of(supernet, "net").choices
        network = nas.discretize(supernet)
        with torch.no_grad():
            assert torch.equal(network(x), supernet(x))
            with FlopCounterMode(display=False) as counter:
                network(x[:1])
        assert params.of(choices) == sum(p.numel() for p in network.parameters())
        assert macs.of(choices) == counter.get_total_flops() / 2
        assert list(network.state_dict()) == list(before)
        assert [type(m) for m in network.modules()] == [type(m) for m in net.modules()]
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    nas.free(supernet)
    return supernet


def test_a_network_of_every_kind_of_tie():
    supernet = held_to_identities(Net(), (3, 8, 8))
    names = [name for name, _ in nas.decisions(supernet)]
    assert names == ["stem.channels", "wide.channels", "left.channels"]


def test_rules_choose_layers_by_name_and_by_class():
    rows = converted(Net(), (3, 8, 8), Rules(exclude=["wide"])).rows
    assert {row.decision for row in rows} == {"stem.channels", "left.channels", None}
    assert [row.why for row in rows if "wide" in row.layers] == ["wide is in exclude=['wide']"]
    with pytest.raises(nas.UserError, match="no channels of Net can be searched: "):
        searchable(Net(), (3, 8, 8), Rules(exclude=["Conv2d"]))
