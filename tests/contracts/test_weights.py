"""Weights on their way into a layer: computed by hooks, parametrizations, or a module's forward."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.decision import apply
from nas.discretization import arch_of, discretize
from nas.errors import UserError
from nas.export.loading import load_weights, state_bytes
from nas.latency.units import units_of
from nas.recalibrate import recalibrate
from nas.report.summary import summarize
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import straight_through

from .reference_peak import peak

N = 6
EYE = torch.eye(N, dtype=torch.bool)

# Each maps a matrix (N, N) to another, without a product that the counting convention counts.
CHANGES = {
    "standardised": lambda w: (w - w.mean(1, keepdim=True)) / (w.std(1, keepdim=True) + 1e-5),
    "straight through": lambda w: w.sign().detach() - w.detach() + w,
    "fake-quantized": lambda w: torch.fake_quantize_per_tensor_affine(w, 0.1, 0, -128, 127),
    "triangle": torch.tril,
    "skew": lambda w: w.triu(1) - w.triu(1).mT,
    "masked": lambda w: w.masked_fill(EYE.to(w.device), 0.0),
    "positive": F.softplus,
    "relu": torch.relu,
    "logarithm": lambda w: w.abs().log1p().exp(),
    "clipped": lambda w: w / w.abs().amax().clamp(min=1e-3),
    "padded": lambda w: F.pad(w[:, 1:-1], (1, 1)),
    "rolled": lambda w: w.roll(1, 0).flip(1),
    "normed": lambda w: F.layer_norm(w, (N,)),
    "unit rows": lambda w: F.normalize(w, dim=0),
    "spectrum": lambda w: torch.fft.irfft(torch.fft.rfft(w), n=N),
    "sorted": lambda w: w.sort(dim=1).values,
    "rows": lambda w: w[torch.arange(N - 1, -1, -1, device=w.device)],
    "joined": lambda w: torch.cat([w[:2], w[2:]]) + torch.stack([w[0]] * N),
    "blocks": lambda w: torch.block_diag(w[:3, :3], w[3:, 3:]),
    "in place": lambda w: w.clone().mul_(2).add_(torch.ones_like(w)),
    "written": lambda w: (
        torch.zeros_like(w).copy_(w).index_add_(0, torch.tensor([0], device=w.device), w[1:2])
    ),
    "accumulated": lambda w: w.cumsum(0).softmax(-1),
    "inverse": lambda w: torch.linalg.inv(w + 9 * torch.eye(N, device=w.device)),
    "detached": lambda w: w.data,
    # And two that are products, which count where they run.
    "low rank": lambda w: w[:, :2] @ w[:2],
    "smoothed": lambda w: F.conv2d(w[None, None], w[None, None, :3, :3], padding=1)[0, 0],
}


class Changed(nn.Module):
    """A layer whose matrix goes through `changes` before each call."""

    def __init__(self, changes: list[str], image: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(N, N) + 0.5)
        self.changes, self.image = changes, image

    def forward(self, x):
        w = self.weight
        for name in self.changes:
            w = CHANGES[name](w)
        return F.conv2d(x, w[:, :, None, None]) if self.image else F.linear(x, w)


def flops(network: nn.Module, x: torch.Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(x)
    return counter.get_total_flops()


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(CHANGES)), min_size=1, max_size=4), st.booleans())
def test_only_products_count_whatever_a_weight_goes_through(changes, image):
    shape = (N, 3, 3) if image else (N,)
    block = ChoiceBlock({"changed": Changed(changes, image), "skip": nn.Identity()})
    net = nn.Sequential(block)
    cost = ExpectedCost(net, MACs(), shape)
    network = discretize(net, Arch("Sequential", {"0": "changed"}))
    assert 2 * cost.of({"0": "changed"}) == flops(network, torch.zeros(1, *shape))
    assert cost.of({"0": "skip"}) == 0


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_an_unknown_operator_on_data_and_what_was_a_weight_is_refused(change):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.rand(N, N) + 0.5)

        def forward(self, x):
            return torch.cdist(x, CHANGES[change](self.rows))

    with pytest.raises(UserError, match=r"puts a weight into the operator '_cdist_forward'"):
        ExpectedCost(Table(), MACs(), (N,))


def test_an_unknown_operator_on_weights_alone_or_data_alone_is_none_of_ours():
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(torch.rand(N, N))

        def forward(self, x):
            return F.linear(torch.cdist(x, x), torch.cdist(self.rows, self.rows)[:, :1])

    assert ExpectedCost(Table(), MACs(), (N,))().item() == N


NORMS = {
    "layer": (nn.LayerNorm((4, 6, 6)), (4, 6, 6)),
    "rms": (nn.RMSNorm((4, 6, 6)), (4, 6, 6)),
    "group": (nn.GroupNorm(2, 4), (4, 6, 6)),
    "instance": (nn.InstanceNorm2d(4, affine=True), (4, 6, 6)),
    "position": (None, (4, 6, 6)),
    "prelu": (nn.PReLU(4), (4, 6, 6)),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_and_scales_of_data_cost_nothing(name):
    layer, shape = NORMS[name]
    if layer is None:

        class Position(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.place, self.token = (
                    nn.Parameter(torch.rand(4, 6, 6)),
                    nn.Parameter(torch.rand(1, 4, 1, 6)),
                )

            def forward(self, x):
                x = torch.cat([x * self.place + self.place, self.token], 2)
                return torch.where(x > 0, x, self.token).lerp(self.token, 0.5)[:, :, :6]

        layer = Position()
    net = nn.Sequential(layer, nn.Conv2d(4, 4, 1))
    assert ExpectedCost(net, MACs(), shape)().item() == 4 * 4 * 36


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=10)
def test_a_bilinear_layer_is_two_products(first, second, out, rows):
    layer = nn.Bilinear(first, second, out)
    pair = (torch.randn(1, rows, first), torch.randn(1, rows, second))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        every = (pair[0][0] @ layer.weight.movedim(1, 0).flatten(1)).view(rows, out, second)
        by_hand = (every @ pair[1][0][:, :, None])[..., 0] + layer.bias
    torch.testing.assert_close(by_hand, layer(*pair)[0])
    assert 2 * ExpectedCost(layer, MACs(), pair)().item() == counter.get_total_flops()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_of_rows_costs_what_its_weights_multiply(mode):
    rows, ids = nn.EmbeddingBag(9, 5, mode=mode), torch.zeros(2, 3, dtype=torch.long)
    net = nn.Sequential(rows, nn.Linear(5, 2))
    assert ExpectedCost(net, MACs(), ids)().item() == 2 * 5 * 2
    assert ExpectedCost(net, Params(), ids)().item() == 9 * 5 + 12
    if mode == "sum":
        weighted = (ids, None, torch.rand(2, 3))
        assert ExpectedCost(rows, MACs(), weighted)().item() == 2 * 3 * 5


class Sequence(nn.Module):
    """A layer over a sequence; `look` makes the dry run take the CPU."""

    def __init__(self, layer: nn.Module, look: bool) -> None:
        super().__init__()
        self.layer, self.look = layer, look

    def forward(self, x):
        if self.look and float(x.sum()) > 1e9:
            return x
        given = (x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else (x,)
        out = self.layer(*given)
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (nn.LSTM(8, 4, batch_first=True), 5 * 4 * 4 * (8 + 4)),
        (nn.GRU(8, 4, batch_first=True), 5 * 3 * 4 * (8 + 4)),
        (nn.MultiheadAttention(8, 2, batch_first=True), 5 * 8 * 8 * 4 + 2 * 5 * 5 * 8),
        (
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            5 * 8 * 8 * 4 + 2 * 5 * 5 * 8 + 2 * 5 * 8 * 16,
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_one_kernel_does_counts_as_the_products_it_is_made_of(layer, macs, look):
    assert ExpectedCost(Sequence(layer, look), MACs(), (5, 8))().item() == macs


def test_torchs_counter_misses_what_a_kernel_of_the_cpu_does_whole():
    """Why `FlopCounterMode` is no judge of fused attention and of an LSTM on a CPU."""
    x = torch.randn(1, 2, 5, 4)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), FlopCounterMode(display=False) as fused:
        F.scaled_dot_product_attention(x, x, x)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
        F.scaled_dot_product_attention(x, x, x)
    assert fused.get_total_flops() == 0
    assert plain.get_total_flops() == 2 * 2 * (2 * 5 * 5 * 4)

    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x)

    assert 2 * ExpectedCost(Attention(), MACs(), x)().item() == plain.get_total_flops()

    lstm, steps = nn.LSTM(8, 4, batch_first=True), torch.randn(1, 5, 8)
    if torch.backends.mkldnn.is_available():
        assert flops(lstm, steps) == 0
    assert flops(nn.Linear(8, 1, bias=False), steps[0, :1]) == 16  # a product that it sees
    matrix = nn.Parameter(torch.rand(4, 8))
    with FlopCounterMode(display=False) as vector, torch.no_grad():
        matrix @ steps[0, 0]
        nn.Bilinear(8, 8, 2)(steps, steps)
    assert vector.get_total_flops() == 0
    assert flops(lstm.to("meta"), steps.to("meta")) == 2 * 5 * 4 * 4 * (8 + 4)


HOOKS = {
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "prune channels": lambda conv: prune.ln_structured(conv, "weight", 0.5, n=2, dim=0),
    "prune twice": lambda conv: prune.random_unstructured(
        prune.l1_unstructured(conv, "weight", 0.3), "weight", 0.3
    ),
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "new weight_norm": parametrizations.weight_norm,
    "new spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


def hooked(kind: str) -> nn.Sequential:
    conv = HOOKS[kind](nn.Conv2d(4, 4, 3, padding=1))
    head = HOOKS[kind](nn.Linear(4, 4))
    block = ChoiceBlock({"conv": nn.Sequential(conv, nn.BatchNorm2d(4)), "skip": nn.Identity()})
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(block, nn.BatchNorm2d(4), pool, head)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", HOOKS)
def test_weights_made_by_hooks_survive_every_copy(kind, tmp_path):
    torch.manual_seed(0)
    net, x = hooked(kind), torch.randn(2, 4, 6, 6)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        net[0].relax = straight_through
        assert ExpectedCost(net, MACs(), (4, 6, 6)).of({"0": "conv"}) >= 4 * 4 * 9 * 36 + 16
        assert units_of(net, (4, 6, 6)).to_measure
        discretize(net)
        optimizer.zero_grad()
        net.train()(x).square().mean().backward()
        optimizer.step()
    arch = Arch("Sequential", {"0": "conv"})
    apply(net, arch)
    network = discretize(net).eval()
    torch.testing.assert_close(net.eval()(x), network(x))
    assert all(p.is_leaf for p in network.parameters())
    assert sum(p.numel() for p in network.parameters()) == ExpectedCost(
        net, Params(), (4, 6, 6)
    ).of(arch.choices)
    assert summarize(net, arch_of(net), (4, 6, 6), {"params": Params()})
    recalibrate(network, [x])
    # The copy trains by itself, and its file is read back into another.
    fresh = discretize(net)
    network.train()(x).square().mean().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    (tmp_path / "network.pt").write_bytes(state_bytes(network))
    load_weights(fresh, tmp_path / "network.pt")
    torch.testing.assert_close(fresh.eval()(x), network.eval()(x))


class Standardised(nn.Module):
    def forward(self, w):
        return (w - w.mean()) / (w.std() + 1e-5)


def test_what_is_made_of_a_weight_takes_memory_while_it_lives():
    conv = nn.Conv2d(4, 8, 3, padding=1)
    parametrize.register_parametrization(conv, "weight", Standardised())

    class Plain(nn.Module):
        """The same, as torch.fx follows it."""

        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = conv.parametrizations.weight.original, conv.bias

        def forward(self, x):
            w = self.weight
            w = (w - w.mean()) / (w.std() + 1e-5)
            return F.conv2d(x, w, self.bias, padding=1)

    for side in (2, 12):
        found = PeakMemory(fuse=False).expected(conv, (4, side, side))().item()
        assert found == peak(Plain(), torch.randn(1, 4, side, side), fuse=False)
