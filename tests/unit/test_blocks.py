"""Candidate ops: their shapes, what they compute, and the folded multiplication."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.testing import assert_close

from nas.ops.catalogue import known_names
from nas.supernet.candidates import Scalable
from nas.supernet.elastic import Elastic
from nas.supernet.elastic_ops import ALL_OPS, op_exclusion_reason
from nas.supernet.elastic_ops import build_op as build

SIDES = {1: (9,), 2: (9, 6)}
SITES = [
    (ndim, channels, stride)
    for ndim in (1, 2)
    for channels in ((8, 8), (8, 12))
    for stride in (1, 2)
]
# One name of each form, and the bottleneck without an expansion.
NAMES = ["conv_k3", "sep_k5", "mb_k3_e1", "mb_k3_e3", "mb_k5_e3_se", "grp_k3_g4", "ssep_k3"]
NAMES += ["rconv_k3", "dil_k3", "sep2_k3", "avgpool_k3_norm"]
SCALABLE = [
    (name, *site)
    for name in NAMES
    for site in SITES
    if op_exclusion_reason(name, *site[1], stride=site[2], ndim=site[0]) is None
]


def make(name: str, ndim: int, channels: tuple[int, int], stride: int, **more: str) -> nn.Module:
    torch.manual_seed(0)
    op = build(name, *channels, stride=stride, ndim=ndim, **more).double()
    for key, parameter in op.named_parameters():
        nn.init.uniform_(parameter, *((0.5, 1.5) if key.endswith("weight") else (-0.5, 0.5)))
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    return op


def sample(ndim: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, *SIDES[ndim], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", known_names(ALL_OPS))
def test_every_op_gives_the_same_shape_and_leaves_its_input_alone(name):
    fits = [s for s in SITES if op_exclusion_reason(name, *s[1], stride=s[2], ndim=s[0]) is None]
    assert fits
    for ndim, channels, stride in fits:
        x = sample(ndim, channels[0])
        y = make(name, ndim, channels, stride)(x)
        assert y.shape == (3, channels[1], *(-(-side // stride) for side in SIDES[ndim]))
        assert y.isfinite().all()
        assert torch.equal(x, sample(ndim, channels[0]))


def run(op: nn.Module, folded: bool, scale_value: float, ndim: int, channels: int):
    """Output, gradients and buffers of scale * op(x), folded or not."""
    op = copy.deepcopy(op)
    x = sample(ndim, channels).requires_grad_()
    scale = torch.tensor(scale_value, dtype=torch.float64, requires_grad=True)
    y = op.scaled(x, scale) if folded else scale * op(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    (y * weight).sum().backward()
    grads = {key: parameter.grad for key, parameter in op.named_parameters()}
    return y.detach(), x.grad, scale.grad, grads, dict(op.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "ndim", "channels", "stride"), SCALABLE)
def test_scaled_is_the_product_in_values_gradients_and_statistics(
    name, ndim, channels, stride, training
):
    op = make(name, ndim, channels, stride).train(training)
    for scale in (0.3, 1.0, 1.7):
        folded = run(op, True, scale, ndim, channels[0])
        assert_close(folded, run(op, False, scale, ndim, channels[0]))


def rank_of(name: str) -> int:
    """2, or 1 for what takes sequences alone."""
    return 2 if op_exclusion_reason(name, 8, 8) is None else 1


@pytest.mark.parametrize("name", known_names(ALL_OPS))
def test_the_ops_that_end_in_a_batchnorm_are_scalable(name):
    # A shuffle block ends in what it keeps of its input; an elastic op slices its norm.
    without = name in ("identity", "zero", "skip") or ("pool" in name and "norm" not in name)
    without |= name.startswith(("shuffle", "elastic", "lstm", "gru"))
    assert isinstance(build(name, 8, 8, ndim=rank_of(name)), Scalable) == (not without)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "ndim", "channels", "stride"), SCALABLE)
def test_scaled_by_one_is_the_op_to_the_bit(name, ndim, channels, stride, training):
    op = make(name, ndim, channels, stride).train(training).float()
    x = sample(ndim, channels[0]).float()
    twin = copy.deepcopy(op)
    assert torch.equal(op.scaled(x, torch.ones(())), twin(x))
    assert_close(dict(op.named_buffers()), dict(twin.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["relu", "relu6", "hardswish", "silu"])
def test_scaled_is_right_for_every_activation(activation):
    op = make("sep_k3", 2, (4, 4), 1, activation=activation)
    assert_close(run(op, True, 7.0, 2, 4), run(op, False, 7.0, 2, 4))


@pytest.mark.parametrize("change", [{"momentum": None}, {"affine": False}, {"track": False}])
def test_scaled_follows_the_settings_of_the_norm(change):
    op = make("conv_k3", 2, (4, 5), 1)
    norm = nn.BatchNorm2d(
        5,
        momentum=change.get("momentum", 0.1),
        affine=change.get("affine", True),
        track_running_stats=change.get("track", True),
    )
    op[1] = norm.double()
    for _ in range(2):  # the second pass tells a cumulative mean from a moving one
        op(sample(2, 4))
    assert_close(run(op, True, 0.4, 2, 4), run(op, False, 0.4, 2, 4))


def test_scaled_does_not_read_or_write_the_output_once_more():
    op, scale = make("conv_k3", 2, (4, 5), 1), torch.tensor(0.5, dtype=torch.float64)
    shapes = []

    class Products(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "mul" in str(func):
                shapes.append(tuple(out.shape))
            return out

    with Products():
        op.scaled(sample(2, 4), scale)
    assert shapes == [(5,), (5,)]  # weight and bias of the BatchNorm, nothing larger


@pytest.mark.parametrize("name", ["conv_k3", "mb_k3_e3"])
def test_hooks_see_a_scaled_call(name):
    op, calls = make(name, 2, (4, 4), 1), []
    op.register_forward_hook(lambda *_: calls.append("op"))
    norm = [layer for layer in op.modules() if isinstance(layer, nn.BatchNorm2d)][-1]
    norm.register_forward_hook(lambda *_: calls.append("norm"))
    op.scaled(sample(2, 4), torch.ones((), dtype=torch.float64))
    assert calls == ["norm", "op"]


def test_mbconv_layers():
    layers = [type(layer).__name__ for layer in build("mb_k5_e6_se", 16, 24, 2).branch]
    wide = ["Conv2d", "BatchNorm2d", "ReLU6"]
    assert layers == [*wide, *wide, "SqueezeExcitation", "Conv2d", "BatchNorm2d"]
    block = build("mb_k5_e6_se", 16, 24, 2).branch
    assert (block[3].kernel_size, block[3].stride) == ((5, 5), (2, 2))
    assert block[3].groups == 96
    assert block[6].reduce.out_channels == 4
    assert len(build("mb_k3_e1", 16, 16).branch) == 5


def test_mbconv_is_branch_plus_input_only_where_the_shape_is_kept():
    x = sample(2, 4)
    for channels, stride in [((4, 4), 1), ((4, 4), 2), ((4, 6), 1)]:
        op = make("mb_k3_e3", 2, channels, stride).eval()
        kept = stride == 1 and channels[0] == channels[1]
        assert_close(op(x), op.branch(x) + x if kept else op.branch(x))


@pytest.mark.parametrize("name", [name for name in known_names(ALL_OPS) if "pool" not in name])
def test_no_convolution_before_a_batchnorm_has_a_bias(name):
    layers = list(build(name, 8, 8, ndim=rank_of(name)).modules())
    convs = [
        conv
        for conv, after in pairwise(layers)
        if isinstance(conv, nn.Conv1d | nn.Conv2d) and isinstance(after, _BatchNorm)
    ]
    assert all(conv.bias is None for conv in convs)
    assert bool(convs) == (name not in ("identity", "zero", "skip", "lstm", "gru"))


def test_zero_passes_on_neither_nan_nor_gradient():
    x = torch.full((2, 3, 5, 5), torch.nan)
    assert torch.equal(build("zero", 3, 7, stride=2)(x), torch.zeros(2, 7, 3, 3))


def test_identity_is_its_input():
    x = sample(2, 4)
    assert build("identity", 4, 4)(x) is x


def test_average_pool_of_a_constant_is_that_constant():
    x = torch.full((1, 2, 5, 5), 3.0)
    assert_close(build("avgpool_k3", 2, 2)(x), x)


def test_max_pool_of_negative_values_is_negative():
    assert (build("maxpool_k3", 2, 2, ndim=1)(-torch.ones(1, 2, 5)) == -1).all()


def test_shuffle_deals_the_groups_out():
    shuffle = build("grp_k3_g2", 6, 6)[0]
    channels = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffle(channels).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_spatially_separable_sees_the_whole_square():
    op = make("ssep_k5", 2, (1, 1), 1).eval()
    for layer in (0, 3):
        nn.init.ones_(op[layer].weight)
    for layer in (1, 4):
        nn.init.zeros_(op[layer].bias)
    spot = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    spot[0, 0, 4, 4] = 1
    seen = op(spot)[0, 0] > 0
    assert seen.sum() == 25
    assert seen[2:7, 2:7].all()


@pytest.mark.parametrize("name", ["rconv_k3", "dil_k5", "sep2_k3"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_cell_ops_rectify_a_copy_of_their_input_first(name, activation):
    op = build(name, 4, 6, stride=2, activation=activation)
    assert isinstance(op[0], nn.SiLU if activation else nn.ReLU)
    assert not getattr(op[0], "inplace", False)
    assert isinstance(op[-1], nn.BatchNorm2d)


def test_dilated_ops_reach_twice_as_far():
    op = build("dil_k3", 1, 1)
    x = torch.zeros(1, 1, 9, 9, requires_grad=True)
    op[1](x)[0, 0, 4, 4].backward()
    assert x.grad[0, 0].nonzero().amin() == 2
    assert x.grad[0, 0].nonzero().amax() == 6
    assert (x.grad != 0).sum() == 9


def test_a_skip_is_the_input_or_half_its_size():
    x = sample(2, 4).float()
    assert build("skip", 4, 4)(x) is x
    assert build("skip", 4, 6, stride=2)(x).shape == (3, 6, 5, 3)


@pytest.mark.parametrize("name", ["mb_k3_e3", "res_k3", "tcn_k3_d2"])
@torch.no_grad()
def test_a_residual_of_searched_channels_masks_what_it_makes_alone(name):
    width = Elastic([2, 4])
    op = build(name, width, width, ndim=rank_of(name)).eval()
    x = torch.randn(2, 4, *[6] * rank_of(name))
    there = torch.tensor([1.0, 1.0, *width.theta[1:].repeat(2)]).view(-1, *[1] * rank_of(name))
    y = op.op.branch(x) * there + x
    assert_close(op(x), y if name.startswith("mb") else y.relu())
