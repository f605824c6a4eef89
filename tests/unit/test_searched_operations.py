"""Operations in the place of trained layers: what they compute at the start, and their costs."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from nas.arch import Arch
from nas.compress import least_squares
from nas.compress.candidates import fitted
from nas.compress.kernels import Kernels, searched_kernels
from nas.compress.modules import KEPT
from nas.compress.moments import flat_weight, moments
from nas.compress.operations import Operations, operations_found, searched_operations
from nas.compress.taps import ElasticTaps
from nas.cost.analytic import MACs, Params
from nas.cost.expected import ExpectedCost
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import Searchable, apply, decisions
from nas.discretization import discretize
from nas.errors import UserError

from ..contracts.strategies import counted

NAMES = ("low_rank_2", "low_rank_3", "grouped_2", "grouped_4", "separable_2", "dw_pw", "dw_pw_2")


def correlated(*shape):
    """Positive inputs whose channels and neighbours go together, as activations do."""
    x = torch.randn(shape[0], 3, *shape[2:])
    mix = nn.Conv2d(3, shape[1], 3, padding=1) if len(shape) == 4 else nn.Conv1d(3, shape[1], 1)
    return mix(x).detach().relu() + 0.1 * torch.rand(shape)


@st.composite
def layers(draw):
    """A convolution or linear layer, and what it reads."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    bias, outputs = draw(st.booleans()), draw(st.sampled_from([8, 12]))
    kind = draw(st.sampled_from(["linear", "1d", "2d"]))
    if kind == "linear":
        return nn.Linear(12, outputs, bias), correlated(40, 12, 5).transpose(1, 2)
    mode = draw(st.sampled_from(["zeros", "replicate"]))
    stride, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    if kind == "1d":
        conv = nn.Conv1d(
            8, outputs, 5, stride, "same" if stride == 1 else 2, dilation, 1, bias, mode
        )
        return conv, correlated(6, 8, 30)
    kernel = draw(st.sampled_from([(3, 3), (3, 5), (1, 1)]))
    conv = nn.Conv2d(8, outputs, kernel, (stride, 1), (1, 2), (1, dilation), 1, bias, mode)
    return conv, correlated(6, 8, 11, 9)


@settings(max_examples=25, deadline=None)
@given(layers())
def test_candidates_change_the_outputs_as_little_as_they_say_and_less_than_without_data(made):
    layer, x = made
    supernet = searched_operations(
        nn.Sequential(layer), [x[:2], x[2:]], Operations(candidates=NAMES)
    )
    y, block = layer(x), supernet[0]
    dims = [d for d in range(y.ndim) if d != (y.ndim - 1 if isinstance(layer, nn.Linear) else 1)]
    variance = (y - y.mean(dims, keepdim=True)).square().mean(dims).sum()
    block.choose(KEPT)
    assert torch.equal(supernet(x), y)
    for name in block.options[:-1]:
        block.choose(name)
        error = (supernet(x) - y).square().mean(dims).sum() / variance
        assert_close(error.item(), block.errors[name], rtol=1e-3, atol=1e-5)
        few = sum(p.numel() for p in block.candidates[name].parameters() if p.ndim > 1)
        assert few < layer.weight.numel()
        if not name.startswith("dw_pw"):
            assert few <= layer.weight.numel() / int(name[-1])


def naive(W, name, candidate):
    """The same form from the weights alone: what is left, or the singular value decomposition."""
    if name.startswith("grouped"):
        count = int(name[-1])
        mask = torch.block_diag(*[torch.ones(len(W) // count, W.shape[1] // count)] * count)
        return W * mask.reshape(*mask.shape, *[1] * (W.ndim - 2))
    if name.startswith("low_rank"):
        left, shape, back = W.flatten(1), W.shape, (lambda x: x)
        rank = candidate[0].weight.shape[0]
    elif name.startswith("dw_pw"):
        left, rank = W.flatten(2).transpose(0, 1), candidate[0].weight.shape[0] // W.shape[1]
        shape, back = W.shape, (lambda x: x.transpose(0, 1))
    else:
        o, c, h, w = W.shape
        left, rank = W.permute(1, 2, 0, 3).reshape(c * h, -1), candidate[0].weight.shape[0]
        shape, back = W.shape, (lambda x: x.reshape(c, h, o, w).permute(2, 0, 1, 3))
    u, s, v = torch.linalg.svd(left, full_matrices=False)
    made = (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]
    return back(made).reshape(shape)


@settings(max_examples=15, deadline=None)
@given(layers(), st.integers(1, 60))
def test_no_error_is_above_that_of_the_weights_alone(made, samples):
    layer, x = made
    x = x[: max(1, samples // 10)]  # fewer patches than a layer reads values, too
    known = moments(nn.Sequential(layer), [layer], [x])[layer]
    W, G = flat_weight(layer)[0], known.of_change(layer.bias is not None)[0]
    variance = least_squares.change(W, 0 * W, known.of_change(True)[0])
    for name in searched_operations(nn.Sequential(layer), [x], Operations(candidates=NAMES))[
        0
    ].options[:-1]:
        fit = fitted(name, layer, known)
        rough = naive(W.reshape(layer.weight.shape), name, fit.module).flatten(1)
        assert fit.error <= float(least_squares.change(W, rough, G) / variance) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_data_are_used(name):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 12, 3), correlated(8, 8, 12, 12)
    known = moments(nn.Sequential(layer), [layer], [x])[layer]
    W, G = flat_weight(layer)[0], known.of_change(True)[0]
    fit = fitted(name, layer, known)
    rough = naive(W.reshape(layer.weight.shape), name, fit.module).flatten(1)
    assert fit.error < 0.88 * least_squares.change(W, rough, G) / least_squares.change(W, 0 * W, G)


@pytest.mark.parametrize("name", ["low_rank_2", "grouped_2", "separable_2", "dw_pw", "dw_pw_2"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_that_form_is_found(name, bias):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(8, 12, 3, padding=1, bias=bias), correlated(4, 8, 9, 9)
    known = moments(nn.Sequential(layer), [layer], [x])[layer]
    form = fitted(name, layer, known).module
    for parameter in form.parameters():
        nn.init.normal_(parameter)
    # The weights of the row of modules as those of one convolution: what it does to unit impulses.
    with torch.no_grad():
        for parameter in form.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
        impulses = torch.zeros(8, 8, 5, 5)
        impulses[range(8), range(8), 2, 2] = 1
        layer.weight.copy_(form(impulses).permute(1, 0, 2, 3)[..., 1:4, 1:4].flip(2, 3))
        assert_close(layer(impulses) - layer(0 * impulses), form(impulses), rtol=1e-4, atol=1e-4)
    assert fitted(name, layer, known).error < 1e-9


def small():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6),
    ).eval()  # fmt: skip


def test_one_hot_is_the_plain_network_and_its_costs_are_exact_with_kernels_inside():
    torch.manual_seed(0)
    net, shape = small(), (4, 8, 8)
    batches = [torch.randn(6, *shape)]
    supernet = searched_operations(net, batches, Operations(exclude=["6"]))
    supernet = searched_kernels(supernet, shape, Kernels(exclude=["0"], refit=True), batches)
    own = {name: d.options for name, d in decisions(supernet)}
    assert list(own) == ["0", "3", "3.candidates.given.kernel"]
    traced, x = trace(supernet, shape), torch.randn(2, *shape)
    expected = {cost.name: ExpectedCost(supernet, cost, traced) for cost in (Params(), MACs())}
    peak = PeakMemory().expected(supernet, traced)
    for taken in product(*own.values()):
        arch = Arch("Sequential", dict(zip(own, taken, strict=True)))
        network = discretize(supernet, arch)
        apply(supernet, arch)
        assert torch.equal(supernet(x), network(x))
        if taken[:2] == (KEPT, KEPT) and taken[2] == 3:
            assert torch.equal(net(x), network(x))
            assert list(network.state_dict()) == list(net.state_dict())
        assert not any(isinstance(module, Searchable) for module in network.modules())
        network.input_shape = shape
        assert {n: cost.of(arch.choices) for n, cost in expected.items()} == counted(network)
        assert peak.of(arch.choices) == PeakMemory().expected(network, shape)().item()


@pytest.mark.parametrize("groups", [1, 4])
def test_refitted_taps_come_nearer_to_the_outputs_than_those_cut_out(groups):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(8, 8, 5, padding=2, groups=groups), correlated(8, 8, 12, 12)
    net, shape = nn.Sequential(conv), (8, 12, 12)
    cut, refit = (
        searched_kernels(net, shape, Kernels(refit=on), [x] if on else None) for on in (False, True)
    )
    for size in (1, 3, 5):
        cut[0].kernel.choose(size)
        refit[0].kernel.choose(size)
        off, on = ((s(x) - conv(x)).square().mean() for s in (cut, refit))
        assert on < 0.9 * off if size < 5 else torch.equal(refit(x), conv(x))
    assert isinstance(refit[0], ElasticTaps)
    refit[0].kernel.free()
    theta = refit[0].kernel.theta
    plain = [refit[0].materialize({refit[0].kernel: size})(x) for size in (1, 3, 5)]
    assert_close(refit(x), sum(t * y for t, y in zip(theta, plain, strict=True)))
    with pytest.raises(UserError, match="at least one batch"):
        searched_kernels(net, shape, Kernels(refit=True), [])


def test_what_cannot_be_replaced_is_said_of_what_is_named():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(2 * x)

    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), Own(4, 4, 3), nn.Conv2d(4, 4, 3))
    found = operations_found(net, Operations(include=["?"], candidates=["separable_1", "dw_pw_9"]))
    said = [f.why_not for f in found]
    assert ["groups" in said[0], "forward" in said[1], found[2].options] == [
        True, True, ("separable_1", KEPT),
    ]  # fmt: skip
    assert len(operations_found(net, Operations(candidates=["dw_pw_9"]))) == 0
    for name in ("lowrank_2", "dw_pw_0", "low_rank", "low_rank_x"):
        with pytest.raises(UserError, match=f"there is no '{name}'"):
            Operations(candidates=[name])
    frozen = nn.Sequential(nn.Linear(8, 8)).requires_grad_(False)
    block = searched_operations(frozen, [torch.randn(9, 8)])[0]
    assert not any(p.requires_grad for p in block.candidates.parameters())
