"""The trace: what is counted, what is refused, and that the model is left alone."""

import copy
from collections import Counter
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nas.copying import copied
from nas.cost import operators
from nas.cost.analytic import MACs, Params
from nas.cost.dry_run import unroll
from nas.cost.expected import ExpectedCost
from nas.cost.shapes import run_operator
from nas.cost.trace import trace
from nas.decision import Searchable, decisions
from nas.errors import UserError
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic import ElasticWidth, elastic
from nas.supernet.elastic_ops import build_op

from .forward import Forward

SHAPE = (2, 8)


def conv(kernel: int, **more) -> nn.Conv1d:
    return nn.Conv1d(2, 2, kernel, padding=kernel // 2, bias=False, **more)


def costs(model: nn.Module, example=SHAPE) -> tuple[float, float]:
    traced = trace(model, example)
    return tuple(ExpectedCost(model, cost, traced)().item() for cost in (Params(), MACs()))


def test_a_layer_called_twice_counts_its_macs_per_call_and_its_params_once():
    net = Forward(lambda self, x: self.a(self.a(x)[..., ::2]), a=conv(3))
    assert costs(net) == (12, 12 * 8 + 12 * 4)


def test_code_that_puts_a_size_into_an_operator_behind_searched_widths():
    width = elastic([1, 2])
    first = ElasticWidth(partial(nn.Conv1d, kernel_size=1, bias=False), 2, width)
    last = ElasticWidth(partial(nn.Linear, bias=False), width, 3)

    def forward(self, x):
        y = self.first(x)
        return self.last(y.view(len(y), y.shape[1], -1).mean(2).flatten(1))

    net = Forward(forward, first=first, last=last)
    for channels in (1, 2):
        width.choose(channels)
        assert costs(net) == (5 * channels, (2 * 8 + 3) * channels)


def test_a_candidate_shared_by_two_blocks_counts_where_it_is_taken():
    op = conv(3)
    net = nn.Sequential(ChoiceBlock({"a": op, "b": conv(1)}), ChoiceBlock({"a": op, "c": conv(5)}))
    for first, second, expected in (
        ("a", "a", (12, 24 * 8)),
        ("a", "c", (32, 32 * 8)),
        ("b", "a", (16, 16 * 8)),
        ("b", "c", (24, 24 * 8)),
    ):
        net[0].choose(first)
        net[1].choose(second)
        assert costs(net) == expected


def test_a_candidate_called_outside_its_block_always_counts():
    op = conv(3)
    block = ChoiceBlock({"a": op, "b": conv(1)})
    net = Forward(lambda self, x: self.block(self.op(x)), block=block, op=op)
    block.choose("b")
    assert costs(net) == (12 + 4, (12 + 4) * 8)


def test_a_candidate_inside_another_candidate_of_its_block():
    op = conv(3)
    block = ChoiceBlock({"once": op, "twice": nn.Sequential(op, op), "other": conv(1)})
    found = {}
    for option in block.options:
        block.choose(option)
        found[option] = costs(block)
    assert found == {"once": (12, 96), "twice": (12, 192), "other": (4, 32)}


def test_attention_is_priced_as_the_products_it_is_made_of():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    net = Forward(lambda self, x: self.a(x, x, x, need_weights=False)[0], a=layer)
    counter = FlopCounterMode(display=False)
    # Told to use plain products: the counter has no formula for the fused kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), counter:
        net(torch.randn(1, 5, 8))
    params = sum(p.numel() for p in net.parameters())
    assert costs(net, (5, 8)) == (params, counter.get_total_flops() // 2)


def test_a_matrix_product_of_inputs_counts_too():
    net = Forward(lambda self, x, y: x @ y)
    pair = (torch.randn(3, 4, 5), torch.randn(3, 5, 6))
    assert costs(net, pair) == (0, 3 * 4 * 5 * 6)


def test_an_unused_layer_is_stored_and_never_run():
    net = Forward(lambda self, x: self.a(x), a=conv(1), idle=conv(5))
    assert costs(net) == (4 + 20, 4 * 8)


def looks_at_values(self, x):
    return self.a(x) if float(x.sum()) >= 0 else x


def test_a_forward_that_looks_at_values_is_traced_on_the_cpu():
    assert costs(Forward(looks_at_values, a=conv(3))) == (12, 96)


def draws(self, x):
    return self.drop(self.norm(self.block(x))) + 0 * torch.rand(())


def draws_and_looks(self, x):
    return draws(self, x) if float(torch.rand(())) >= 0 else x


@pytest.mark.parametrize("forward", [draws, draws_and_looks])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(forward, training):
    block = ChoiceBlock([conv(3), conv(1)], gumbel=True)
    net = Forward(forward, block=block, norm=nn.BatchNorm1d(2), drop=nn.Dropout())
    net.train(training)
    net.norm.train(not training)
    block.resample()
    before, theta = copy.deepcopy(net.state_dict()), block.theta.detach()
    random, hooks = torch.get_rng_state(), Counter(count_hooks(net))
    trace(net, SHAPE)
    assert torch.equal(torch.get_rng_state(), random)
    assert Counter(count_hooks(net)) == hooks
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(block.theta, theta)
    assert [m.training for m in (net, net.norm, net.drop)] == [training, not training, training]
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert not block.unrolled


def count_hooks(model: nn.Module) -> dict[str, int]:
    return {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks)
        for name, module in model.named_modules()
    }


def test_a_trace_lists_calls_then_parameters_with_their_gates():
    net = nn.Sequential(conv(3), ChoiceBlock({"a": conv(1), "b": nn.Identity()}))
    layers = trace(net, SHAPE).layers
    kinds = [(layer.spec.kind, layer.spec.module) for layer in layers]
    taken = frozenset({frozenset({("1", 0)})})
    always = frozenset({frozenset()})
    assert kinds == [
        ("conv", "0"),
        ("conv", "1.candidates.a"),
        ("parameter", "0"),
        ("parameter", "1.a"),
    ]
    assert [layer.active_if for layer in layers] == [always, taken, always, taken]
    assert layers[0].spec.out_size == (8,)


def test_candidates_of_different_shapes_are_named_with_their_block():
    good = ChoiceBlock([conv(1), conv(3)])
    bad = ChoiceBlock({"whole": conv(3), "halved": conv(3, stride=2)})
    net = Forward(lambda self, x: self.body(x), body=nn.Sequential(good, bad))
    with pytest.raises(UserError, match=r"body\.1: .*'halved' gives \(1, 2, 4\) and 'whole'"):
        trace(net, SHAPE)


class Table(nn.Module):
    """Distances to rows of a weight: an operator that nothing has a price for."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return torch.cdist(x[0], self.rows)


def test_an_unknown_operator_on_weights_is_named_with_its_module():
    net = nn.Sequential(conv(1), Table())
    with pytest.raises(UserError, match="module '1' puts a weight into the operator '_cdist"):
        trace(net, SHAPE)


def test_an_operator_can_be_registered(monkeypatch):
    monkeypatch.setattr(operators, "_CALLS", dict(operators._CALLS))
    monkeypatch.setattr(operators, "_FREE", set(operators._FREE))
    net = nn.Sequential(conv(1), Table())
    operators.register("_cdist_forward", None)
    assert costs(net) == (4 + 24, 32)
    operators.register(
        "_cdist_forward",
        lambda args, out: {
            "kind": "linear",
            "in_channels": args[1].shape[-1],
            "out_channels": out.shape[-1],
            "out_size": (out.shape[-2],),
        },
    )
    assert costs(net) == (4 + 24, 32 + 2 * 8 * 3)


def test_a_forward_that_fails_is_reported_with_the_shape():
    with pytest.raises(UserError, match=r"Conv1d fails for an input of shape \[\(1, 3, 8\)\]"):
        trace(conv(3), (3, 8))


def test_inputs_that_are_not_float_are_given_as_tensors():
    net = Forward(lambda self, x: self.b(self.a(x)), a=nn.Embedding(9, 4), b=nn.Linear(4, 2))
    assert costs(net, torch.zeros(1, 5, dtype=torch.long)) == (36 + 10, 5 * 4 * 2)


def test_no_decision_is_an_exact_number():
    assert not any(decisions(conv(1)))
    assert costs(conv(1)) == (4, 32)


def test_a_model_in_training_mode_is_traced_as_it_will_be_deployed():
    # In training mode a BatchNorm refuses the single value per channel that one sample leaves.
    net = nn.Sequential(nn.AdaptiveAvgPool1d(1), conv(1), nn.BatchNorm1d(2)).train()
    assert costs(net) == (4 + 4, 4)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (torch.ops.aten.relu.default, ()),
        (torch.ops.aten.add.Tensor, (2.5,)),
        (torch.ops.aten.add.Tensor, (2,)),
        (torch.ops.aten.sum.dim_IntList, ([1],)),
        (torch.ops.aten.split_with_sizes_copy.default, ([1, 2], 1)),
        (torch.ops.aten._unsafe_view.default, ([6, 4],)),
        (torch.ops.aten.view.default, ([6, 4],)),
        (torch.ops.aten.relu_.default, ()),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_an_operator_without_memory_gives_each_time_what_it_gives_first(operator, arguments, dtype):
    for size in ((2, 3, 4), (2, 3, 4), (4, 3, 2), (2, 3, 4)):
        x = torch.zeros(size, device="meta", dtype=dtype)
        wanted = operator(x.clone(), *arguments)
        found = run_operator(operator, (x, *arguments), {})
        several = isinstance(wanted, list | tuple)
        assert isinstance(found, list | tuple) == several
        pairs = zip(wanted if several else [wanted], found if several else [found], strict=True)
        for one, other in pairs:
            assert (one.shape, one.stride(), one.dtype) == (
                other.shape,
                other.stride(),
                other.dtype,
            )
        shared = [y.untyped_storage()._cdata for y in (found if several else [found])]
        of_input = operator in (
            torch.ops.aten._unsafe_view.default,
            torch.ops.aten.view.default,
            torch.ops.aten.relu_.default,
        )
        assert (x.untyped_storage()._cdata in shared) == of_input


MATRIX, BIAS = torch.zeros(4, 3, device="meta"), torch.zeros(3, device="meta")
IMAGE, GATE = torch.zeros(2, 3, 4, 5, device="meta"), torch.zeros(2, 3, 1, 1, device="meta")
KERNEL, SLIDES = torch.zeros(3, 3, 3, 2, device="meta"), ([2, 1], [1, 3], [1, 2])
LARGE = ([1, 1], [0, 0], [1, 1])


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (torch.ops.aten.mean.dim, (IMAGE, [-1, 1])),
        (torch.ops.aten.mean.dim, (IMAGE, [2, 3], True)),
        (torch.ops.aten.mean.dim, (IMAGE.mT, [2])),
        (torch.ops.aten.addmm.default, (BIAS, MATRIX, MATRIX.mT @ MATRIX)),
        (torch.ops.aten.add.Tensor, (IMAGE, IMAGE)),
        (torch.ops.aten.mul.Tensor, (IMAGE, IMAGE.half())),
        (torch.ops.aten.mul.Tensor, (IMAGE, IMAGE[:, :, :1, :1])),
        (torch.ops.aten.mul.Tensor, (IMAGE, GATE)),
        (torch.ops.aten.add.Tensor, (GATE, IMAGE[0, 0].clone())),
        (torch.ops.aten.relu.default, (IMAGE,)),
        (torch.ops.aten.sigmoid.default, (IMAGE.mT,)),
        (torch.ops.aten.sum.dim_IntList, (IMAGE, [1])),
        (torch.ops.aten.sum.dim_IntList, (IMAGE, [])),
        (torch.ops.aten.cat.default, ([IMAGE, IMAGE[:, :1].clone()], 1)),
        (torch.ops.aten.cat.default, ([IMAGE, IMAGE.double()], -1)),
        (torch.ops.aten.stack.default, ([IMAGE, IMAGE], -1)),
        (torch.ops.aten.stack.default, ([IMAGE, IMAGE],)),
        (torch.ops.aten.convolution.default, (IMAGE, KERNEL, None, *SLIDES, False, [0, 0], 1)),
        (torch.ops.aten.convolution.default, (IMAGE, KERNEL, BIAS, *SLIDES, False, [0, 0], 1)),
        (torch.ops.aten.convolution.default, (IMAGE, KERNEL, None, *SLIDES, True, [0, 0], 1)),
        (torch.ops.aten.convolution.default, (IMAGE.mT, KERNEL, None, *SLIDES, False, [0, 0], 1)),
        (torch.ops.aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [1, 1], False, False)),
        (torch.ops.aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [1, 1], True, False)),
        (torch.ops.aten.avg_pool2d.default, (IMAGE, [2, 3])),
        (torch.ops.aten.hardtanh.default, (IMAGE, 0.0, 6.0)),
        (torch.ops.aten.hardtanh_.default, (IMAGE, 0.0, 6.0)),
    ],
)
def test_shapes_told_without_the_compiler_are_those_of_pytorch(operator, arguments):
    wanted, found = operator(*arguments), run_operator(operator, arguments, {})
    assert (found.shape, found.stride(), found.dtype) == (
        wanted.shape,
        wanted.stride(),
        wanted.dtype,
    )
    assert (found is IMAGE) == (wanted is IMAGE)


@pytest.mark.parametrize(
    ("operator", "arguments"),
    [
        (torch.ops.aten.mean.dim, (IMAGE, [4])),
        (torch.ops.aten.addmm.default, (BIAS, MATRIX, MATRIX)),
        (torch.ops.aten.addmm.default, (BIAS[:2], MATRIX, MATRIX.mT @ MATRIX)),
        (torch.ops.aten.add.Tensor, (IMAGE, IMAGE[:, :2])),
        (torch.ops.aten.add.Tensor, (IMAGE, IMAGE[:, :2].clone())),
        (torch.ops.aten.cat.default, ([IMAGE, GATE], 1)),
        (torch.ops.aten.stack.default, ([IMAGE, GATE],)),
        (torch.ops.aten.sum.dim_IntList, (IMAGE, [1, 1])),
        (torch.ops.aten.convolution.default, (IMAGE, KERNEL, None, *SLIDES, False, [0, 0], 3)),
        (torch.ops.aten.convolution.default, (GATE, KERNEL, None, *LARGE, False, [0, 0], 1)),
        (torch.ops.aten.avg_pool2d.default, (IMAGE, [3, 3], [2, 2], [2, 2], False, False)),
    ],
)
def test_what_pytorch_refuses_is_refused(operator, arguments):
    with pytest.raises((RuntimeError, IndexError)):
        run_operator(operator, arguments, {})


class Shares(Searchable):
    """What it becomes are its own parts, beside one that is new."""

    def __init__(self, width) -> None:
        super().__init__()
        self.width, self.own = width, conv(3)

    def decisions(self):
        return (self.width,)

    def materialize(self, options):
        new = conv(1)
        return nn.Sequential(self.own, new) if options[self.width] > 1 else nn.Sequential(new)


def test_what_is_unrolled_has_no_part_of_the_supernet_and_keeps_ties():
    inner = Shares(elastic([1, 2]))
    made, _ = unroll(nn.Sequential(inner, inner.own))
    kept = {id(part) for part in (*inner.modules(), *inner.parameters())}
    assert kept.isdisjoint(map(id, (*made.modules(), *made.parameters())))
    one, two = made[0].candidates.values()
    assert (len(one), len(two)) == (1, 2)
    assert two[0] is made[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_op_without_values_becomes_what_one_with_values_does(dtype, frozen):
    width = elastic([2, 4])
    op = build_op("mb_k3_e3_se", width, width, activation="relu").to(dtype)
    op.op.branch[0].weight.requires_grad_(not frozen)
    bare = copied(op, device="meta")
    for one, other in zip(op.combinations(), bare.combinations(), strict=True):
        tensors = [
            {name: (x.shape, x.dtype, x.requires_grad, type(x)) for name, x in made.items()}
            for made in (
                {**dict(module.named_parameters()), **dict(module.named_buffers())}
                for module in (op.materialize(one), bare.materialize(other))
            )
        ]
        assert tensors[0] == tensors[1]
