"""Any network becomes a supernet of its own layers, whose networks are plain and priced exactly."""

import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from zlib import crc32

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import checkpoint as checkpoints
from torch.utils.flop_counter import FlopCounterMode

import nas
from nas.compress.convert import converted, searchable
from nas.compress.rules import Channels, Rules
from nas.cost.expected import expected
from nas.cost.layer import LayerSpec
from nas.cost.memory import PeakMemory
from nas.cost.trace import Trace
from nas.latency.cost import Latency
from nas.latency.models import UnitTime
from nas.latency.profile import About, Profile
from nas.latency.units import features, indices, units_of
from nas.selection import largest_of, select
from nas.spaces.transformer import EncoderBlock

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
UPSCALE = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIDES = {1: (8,), 2: (6, 4), 3: (4, 4, 2)}


class Joined(nn.Module):
    """What `join` makes of the input and of what several modules give for it."""

    def __init__(self, join: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.join, self.parts = join, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, *(part(x) for part in self.parts))


class ChannelsLast(nn.Module):
    """A residual MLP over the channels of every position, behind a LayerNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.expand, self.reduce = (
            nn.LayerNorm(channels),
            nn.Linear(channels, 24),
            nn.Linear(24, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.expand(self.norm(x.movedim(1, -1))).relu()
        return x + self.reduce(hidden).movedim(-1, 1)


def residual(n: int, c: int) -> nn.Module:
    return Joined(
        torch.add, nn.Sequential(CONV[n](c, 12, 1), nn.PReLU(12), CONV[n](12, c, 1), NORM[n](c))
    )


def depthwise(n: int, c: int) -> nn.Module:
    multiplied = CONV[n](c, 2 * c, 3, padding=1, groups=c)
    return nn.Sequential(multiplied, NORM[n](2 * c), nn.SiLU(), CONV[n](2 * c, c, 1))


def grouped(n: int, c: int) -> nn.Module:
    inner = CONV[n](16, 16, 3, padding=1, groups=2, bias=False)
    return nn.Sequential(CONV[n](c, 16, 1), inner, nn.Sigmoid(), CONV[n](16, c, 1))


def concatenated(n: int, c: int) -> nn.Module:
    parts = CONV[n](c, c // 2, 1), CONV[n](c, c - c // 2, 3, padding=1)
    return Joined(lambda _, *ys: torch.cat(ys, 1), *parts)


def shared(n: int, c: int) -> nn.Module:
    conv = CONV[n](c, c, 1)
    return nn.Sequential(conv, nn.Tanh(), conv)


def excited(n: int, c: int) -> nn.Module:
    squeeze = nn.Sequential(CONV[n](c, 8, 1), nn.ReLU(), CONV[n](8, c, 1), nn.Sigmoid())
    return Joined(torch.mul, squeeze)


def transposed(n: int, c: int) -> nn.Module:
    return nn.Sequential(UPSCALE[n](c, 10, 3, padding=1), nn.ReLU(), CONV[n](10, c, 1))


def gated(n: int, c: int) -> nn.Module:
    return nn.Sequential(CONV[n](c, 24, 1), nn.GLU(1), CONV[n](12, c, 1))


def shuffled(n: int, c: int) -> nn.Module:
    def shuffle(_: Tensor, x: Tensor) -> Tensor:
        size, channels, *sides = x.shape
        parts = x.view(size, 2, channels // 2, *sides)
        return parts.transpose(1, 2).reshape(size, channels, *sides)

    return nn.Sequential(Joined(shuffle, CONV[n](c, 16, 1)), CONV[n](16, c, 1))


def group_normed(n: int, c: int) -> nn.Module:
    return nn.Sequential(CONV[n](c, 16, 1), nn.GroupNorm(4, 16), nn.ReLU(), CONV[n](16, c, 1))


def channels_last(n: int, c: int) -> nn.Module:
    return ChannelsLast(c)


def pixel_shuffled(n: int, c: int) -> nn.Module:
    if n != 2:
        return residual(n, c)
    return nn.Sequential(CONV[n](c, 32, 1), nn.PixelShuffle(2), nn.AvgPool2d(2), CONV[n](8, c, 1))


BLOCKS = (
    residual, depthwise, grouped, concatenated, shared, excited, transposed, gated, shuffled,
    group_normed, channels_last, pixel_shuffled,
)  # fmt: skip


@st.composite
def networks(draw: Callable[[st.SearchStrategy[object]], object]) -> tuple[nn.Module, object]:
    """A network of a few blocks, and the shape of its input."""
    n, width = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([6, 8]))
    blocks = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3))
    body = [CONV[n](3, width, 1), NORM[n](width), nn.ReLU()]
    body += [block(n, width) for block in blocks]
    if draw(st.booleans()):
        size = width * torch.Size(SIDES[n]).numel()
        head = [nn.Flatten(), nn.Linear(size, 4)]
    else:
        head = [Joined(lambda _, x: x.flatten(2).mean(-1), nn.Identity()), nn.Linear(width, 4)]
    net = nn.Sequential(*body, *head)
    for norm in net.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean, -1, 1)
    return net, (3, *SIDES[n])


def held_to_identities(net: nn.Module, shape: tuple[int, ...], archs: int = 3) -> nn.Module:
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
    nas.free(supernet)
    traced = nas.trace(supernet, shape)
    params = nas.ExpectedCost(supernet, nas.Params(), traced)
    macs = nas.ExpectedCost(supernet, nas.MACs(), traced)
    for _ in range(archs):
        nas.sample_path(supernet)
        choices = nas.arch_of(supernet, "net").choices
        network = nas.discretize(supernet)
        with torch.no_grad():
            torch.testing.assert_close(network(x), supernet(x), rtol=1e-5, atol=1e-6)
            with FlopCounterMode(display=False) as counter:
                network(x[:1])
        assert params.of(choices) == sum(p.numel() for p in network.parameters())
        assert macs.of(choices) == counter.get_total_flops() / 2
        assert _made(nas.trace(network, shape), network, {}) == _made(traced, supernet, choices)
        assert list(network.state_dict()) == list(before)
        assert [type(m) for m in network.modules()] == [type(m) for m in net.modules()]
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    nas.free(supernet)
    return supernet


def seconds(layers: Iterable[LayerSpec]) -> float:
    """The time of these layers on a device where any two that differ take different times."""
    texts = (str(replace(layer, module="")) for layer in layers if layer.is_call)
    return sum(crc32(text.encode()) / 2**32 for text in texts)


@settings(max_examples=6)
@given(networks())
def test_latency_is_that_of_the_layers_of_the_discretized_network(drawn):
    net, shape = drawn
    supernet = searchable(net.eval(), shape)
    units = units_of(supernet, shape)
    about = About("net", ((1, *shape),), "x", "", "torch", "cpu", 1, "float32", 1, {}, "")
    times = {
        key: UnitTime(1 + seconds(unit.layers), features(unit.layers))
        for key, unit in units.to_measure.items()
    }
    latency = Latency(Profile(about, times)).expected(supernet, shape)
    own = dict(nas.decisions(supernet))
    for _ in range(3):
        nas.sample_path(supernet)
        choices = nas.arch_of(supernet, "net").choices
        whole = units_of(nas.discretize(supernet), shape).by_key.values()
        calls = len(units.of(indices(own, choices)))
        exact = calls + sum(seconds(unit.layers) for unit in whole)
        assert latency.of(choices) == pytest.approx(exact)


def test_networks_meet_several_budgets_at_once():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), residual(2, 16), nn.Flatten())
    net.append(nn.Linear(16 * 16, 4))
    shape, counts = (3, 6, 6), {"macs": nas.MACs(), "params": nas.Params()}
    supernet = searchable(net, shape, Rules(channels=Channels(choices=4)))
    costs = {n: expected(supernet, c, shape) for n, c in counts.items()}
    costs["peak_memory"] = expected(supernet, PeakMemory(), shape)
    whole = {name: largest_of(cost) for name, cost in costs.items()}
    for tight in whole:
        shares = {name: 0.4 if name == tight else 0.7 for name in whole}
        budgets = {name: share * whole[name] for name, share in shares.items()}
        arch = select(supernet, "net", costs, budgets)
        found = nas.cost_of(nas.discretize(supernet, arch), shape)
        for name, bound in budgets.items():
            assert getattr(found, name) == costs[name].of(arch.choices) <= bound


def _made(traced: Trace, model: nn.Module, choices: object) -> list[tuple[str, list[int]]]:
    """The operators that the network of `choices` runs, and the sizes of what they make."""
    taken = {(name, d.options.index(choices[name])) for name, d in nas.decisions(model)}
    found = [
        (op.name, [traced.buffers[b].numel for b in op.makes])
        for op in traced.operators
        if op.condition <= taken
    ]
    return sorted(found)


@settings(max_examples=12)
@given(networks())
def test_a_drawn_network_and_all_of_its_networks(drawn):
    held_to_identities(*drawn)


@pytest.mark.parametrize("block", BLOCKS)
def test_channels_inside_each_kind_of_block_are_searched(block):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), block(2, 8), nn.Flatten(), nn.Linear(8 * 24, 2))
    rows = converted(net, (3, 6, 4)).rows
    fixed = {name: row.why for row in rows if row.why for name in row.layers}
    fixed.pop("3")  # the outputs
    if block is channels_last:
        assert fixed.keys() == {"0", "1.norm", "1.reduce"}
        assert "a LayerNorm joins them in 1.norm" in fixed["0"]
    else:
        assert fixed == {}


def test_a_channel_that_may_be_gone_counts_by_its_probability():
    net = nn.Sequential(nn.Conv1d(2, 4, 1), nn.Sigmoid(), nn.Conv1d(4, 1, 1))
    supernet, x = searchable(net, (2, 5), Rules(channels=Channels(choices=2))), torch.randn(3, 2, 5)
    ((_, width),) = nas.decisions(supernet)
    assert width.options == (2, 4)
    outputs = []
    for option in width.options:
        width.choose(option)
        outputs.append(supernet(x))
    width.free()
    width.alpha.data[0] = 0.7
    theta = width.theta
    torch.testing.assert_close(supernet(x), theta[0] * outputs[0] + theta[1] * outputs[1])
    supernet(x).sum().backward()
    assert width.alpha.grad.abs().min() > 0


def test_statistics_of_a_narrow_network_are_those_of_its_channels():
    net = nn.Sequential(nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 1, 1))
    supernet = searchable(net, (2, 5), Rules(channels=Channels(choices=2))).train()
    ((_, width),) = nas.decisions(supernet)
    width.choose(4)
    network, x = nas.discretize(supernet), torch.randn(3, 2, 5)
    network(x), supernet(x)
    kept = width.first == 0
    torch.testing.assert_close(supernet[1].running_mean[kept], network[1].running_mean)
    assert (supernet[1].running_mean[~kept] == 0).all()


def test_the_given_network_stays_as_it_is_and_its_copy_is_like_it():
    net = nn.Sequential(nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 1, 1))
    net.train()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    calls = []
    net[0].register_forward_hook(lambda *_: calls.append(1))
    supernet = searchable(net, (2, 5))
    calls.clear()
    assert (net.training, net[1].training) == (supernet.training, supernet[1].training)
    assert not supernet[0].weight.requires_grad
    assert type(net[0]) is nn.Conv1d
    network = nas.discretize(supernet)
    network(torch.randn(2, 2, 5))
    assert calls == [1]
    assert not network[0].weight.requires_grad


def test_a_pickled_supernet_is_the_same():

    supernet = searchable(nn.Sequential(nn.Conv1d(2, 8, 1), nn.Conv1d(8, 1, 1)), (2, 5))
    again = pickle.loads(pickle.dumps(supernet))  # noqa: S301
    x = torch.randn(1, 2, 5)
    assert torch.equal(again(x), supernet(x))


def test_rules_choose_layers_by_name_and_by_class():
    net = nn.Sequential(nn.Conv1d(2, 8, 1), residual(1, 8), nn.Conv1d(8, 1, 1))
    rows = converted(net, (2, 5), Rules(exclude=["1.*.0"])).rows
    assert [row.decision for row in rows] == ["0.channels", None]
    assert rows[1].why == "1.parts.0.0 is in exclude=['1.*.0']"
    only = converted(net, (2, 5), Rules(include=["1.parts.0.[01]"])).rows
    assert [row.decision for row in only if row.decision] == ["1.parts.0.0.channels"]
    with pytest.raises(nas.UserError, match="no channels of Sequential can be searched: 0: "):
        searchable(net, (2, 5), Rules(exclude=["Conv1d"]))


class Scaled(nn.Module):
    """A network that holds a parameter beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 1, 1)
        self.scale = nn.Parameter(torch.ones(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x) * self.scale)


def test_what_the_network_itself_holds_stays_and_is_said_to_be_its_own():
    said = "no channels of Scaled can be searched: the network: scale is held by no layer"
    with pytest.raises(nas.UserError, match=said):
        searchable(Scaled(), (2, 5))


class Written(nn.Module):
    """A network whose code has a number of channels written down."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 1)
        self.last = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)).reshape(-1, 8 * 5))


def test_what_only_looks_as_if_it_could_be_cut_is_tried_and_said():
    rows = {row.layers[0]: row for row in converted(Written(), (2, 5)).rows}
    assert rows["first"].decision == "first.channels"
    assert rows["second"].why.startswith("the network does not run with fewer of them (Runtime")


RULES = {
    "space.rules.exclude='0' must be a list": {"exclude": "0"},
    "is empty: give a value": {"include": [""]},
    "space.rules.exclude: no layer of Sequential is called 'head'": {"exclude": ["0", "head"]},
    "space.rules.kernels.include: no layer .* 'Conv2d'": {"kernels": {"include": ["Conv2d"]}},
    "space.rules.operations.candidates='dw_pw' must be a list": {
        "operations": {"candidates": "dw_pw"}
    },
    "0: nothing smaller is offered for its kernel": {
        "channels": None,
        "kernels": {"include": ["0"], "sizes": [3], "dilations": []},
    },
}


@pytest.mark.parametrize("said", RULES)
def test_rules_that_would_do_nothing_are_refused(said):
    net = nn.Sequential(nn.Conv1d(2, 8, 3), nn.Conv1d(8, 1, 1))
    with pytest.raises(nas.UserError, match=said):
        searchable(net, (2, 5), Rules(**RULES[said]))


class Helped(nn.Module):
    """A network with a second classifier that runs in training alone, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Conv1d(2, 8, 1), nn.BatchNorm1d(8), nn.Conv1d(8, 1, 1)
        self.help, self.other = nn.Conv1d(8, 3, 1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.norm(self.body(x))
        return (self.head(x), self.help(x)) if self.training else self.head(x)


def test_what_runs_in_training_alone_is_cut_with_the_rest():
    found = converted(Helped(), (2, 5))
    ((name, width),) = nas.decisions(found.supernet)
    assert name == "body.channels"
    width.choose(width.options[0])
    network = nas.discretize(found.supernet).train()
    assert network(torch.randn(2, 2, 5))[1].shape == (2, 3, 5)
    assert {row.why for row in found.rows if row.layers == ("other",)} == {
        "other is not called, so that nobody knows what it reads"
    }


class Encoder(nn.Module):
    """An encoder block of four heads over the positions of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = (
            nn.Linear(6, 16),
            EncoderBlock(16, 4, 4, 24),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.transpose(1, 2))).mean(1))


class Masked(nn.Module):
    """Attention that takes a mask by name, and gives its input as well."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(8, 48), nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        size, length, _ = x.shape
        parts = self.qkv(x).reshape(size, length, 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        weights = query @ key.transpose(2, 3)
        weights = (weights if mask is None else weights + mask).softmax(-1)
        return self.proj((weights @ value).transpose(1, 2).flatten(2)), x


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Masked()

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.transpose(1, 2), mask=torch.ones(5, 5).triu(1) * -9)[0]


def test_attention_may_take_and_give_several_tensors():
    supernet = held_to_identities(Asking(), (8, 5))
    assert [name for name, _ in nas.decisions(supernet)] == ["attention.kept_heads"]


def test_heads_of_attention_go_as_a_whole():
    supernet = held_to_identities(Encoder(), (6, 5))
    found = {name: decision.options for name, decision in nas.decisions(supernet)}
    assert found["block.kept_heads"] == (1, 2, 3, 4)
    assert found.keys() == {"block.kept_heads", "block.expand.channels"}
    dict(nas.decisions(supernet))["block.kept_heads"].choose(2)
    network = nas.discretize(supernet)
    assert (network.block.heads, network.block.project.in_features) == (2, 8)


class Positions(nn.Module):
    """A network that adds what an MLP makes of a table of constants."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 6))
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 1)
        self.register_buffer("table", torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.last((self.first(x.transpose(1, 2)) + self.mlp(self.table)).relu())


def test_layers_over_constants_are_searched_too():
    supernet = held_to_identities(Positions(), (4, 5))
    assert [name for name, _ in nas.decisions(supernet)] == ["mlp.0.channels", "mlp.2.channels"]


class Counting(nn.Module):
    """Two layers that read one width, of which the second may run in a checkpoint."""

    def __init__(self, checkpoint: bool) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(3, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.checkpoint, self.fails = checkpoint, False

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.fails:
            raise ValueError("as asked")
        if self.checkpoint:
            right = checkpoints.checkpoint(self.right, y, use_reentrant=False)
        else:
            right = self.right(y)
        return self.left(y) + right


def test_a_pass_computes_probabilities_once_and_the_next_one_anew() -> None:
    torch.manual_seed(0)
    supernet = searchable(Counting(False), (3,)).train()
    calls, relax = [], supernet.first.channels.relax
    supernet.first.channels.relax = lambda logits: (calls.append(1), relax(logits))[1]
    x = torch.randn(2, 3)
    first = supernet(x)
    assert len(calls) == 1
    supernet.first.channels.alpha.data[0] = 9.0  # which no version counter sees
    second = supernet(x)
    assert len(calls) == 2
    assert not torch.allclose(first, second)
    second.sum().backward()  # neither graph is a part of the other
    first.sum().backward()
    supernet.fails = True
    with pytest.raises(ValueError, match="as asked"):
        supernet(x)
    for layer in (supernet.left, supernet.right):
        layer(torch.randn(2, 16))
    assert len(calls) == 5
    plain = nas.discretize(supernet)
    hooks = plain._forward_pre_hooks, plain._forward_hooks, plain._forward_hooks_always_called
    assert not any(hooks)


def test_a_part_that_runs_again_in_the_backward_pass_gives_the_same_gradients() -> None:
    torch.manual_seed(0)
    once = searchable(Counting(False), (3,)).train()
    again = searchable(Counting(True), (3,)).train()
    again.load_state_dict(once.state_dict())
    x = torch.randn(2, 3)
    for net in (once, again):
        net(x).square().sum().backward()
    for one, other in zip(once.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("ndim", [0, 1, 2])
@pytest.mark.parametrize("closed", [False, True])
def test_a_mask_on_a_small_input_is_the_mask_on_the_weight(ndim: int, closed: bool) -> None:
    torch.manual_seed(ndim)
    layers = [nn.Linear(3, 16), nn.Linear(16, 8)]
    if ndim:
        layers = [CONV[ndim](3, 16, 3, padding=1), CONV[ndim](16, 8, 3, padding=1)]
    net = nn.Sequential(layers[0], nn.ReLU6(), layers[1]).double()
    supernet = searchable(net, (3, *[4] * ndim))
    width = supernet[0].channels
    with torch.no_grad():
        width.alpha.copy_(torch.randn(len(width.options)))
        width.open[-1] = not closed
    samples = torch.randn(64, 3, *[4] * ndim, dtype=torch.double)

    def gradients(size: int) -> list[Tensor]:
        supernet.zero_grad()
        made = torch.cat([supernet(x) for x in samples.split(size)])
        made.sin().sum().backward()
        return [made.detach(), *(p.grad for p in supernet.parameters())]

    for few, many in zip(gradients(1), gradients(64), strict=True):
        assert torch.allclose(few, many, atol=1e-6)
    assert width.alpha.grad.abs().max() > 0
