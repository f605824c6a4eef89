"""One candidate is seen: the gradient of those that are not, and the bytes that are kept."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from nas.decision import resample
from nas.supernet.choice import ChoiceBlock
from nas.supernet.edges import Node, pairs
from nas.supernet.relax import Shared, one_path, straight_through

SEEDS = st.integers(0, 2**16)
HARD = [one_path, straight_through]
BYTES = 1.02


def reference(block: ChoiceBlock, x: Tensor) -> Tensor:
    """Hard minus soft plus soft, all candidates running (Jang et al. 2017)."""
    soft = block.logits.softmax(-1).to(x.dtype)
    hard = F.one_hot(soft.argmax(), len(soft)) - soft.detach() + soft
    return sum(h * op(x) for h, op in zip(hard, block.candidates.values(), strict=True))


def smooth() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())


@settings(max_examples=20)
@given(SEEDS, st.integers(2, 4), st.sampled_from([0.3, 1.0, 5.0]))
def test_straight_through_is_the_estimator_of_the_paper(seed, count, tau):
    torch.manual_seed(seed)
    ops = [smooth() for _ in range(count - 1)] + [nn.Identity()]
    block = ChoiceBlock(ops, straight_through, gumbel=True).double()
    nn.init.normal_(block.alpha)
    block.tau.fill_(tau)
    resample(block, torch.Generator().manual_seed(seed))
    x = torch.randn(2, 4, 5, 5).double().requires_grad_()
    target = torch.randn(2, 4, 5, 5).double()
    weights = dict(block.candidates.named_parameters())

    found = [
        torch.autograd.grad(
            (y - target).square().sum(), [block.alpha, x, *weights.values()], allow_unused=True
        )
        for y in (block(x), reference(block, x))
    ]
    soft = block.logits.softmax(-1).detach()
    outs = [op(x).detach() for op in ops]
    seen = int(soft.argmax())
    g = 2 * (outs[seen] - target)
    scores = torch.stack([(g * out).sum() for out in outs])
    assert_close(found[0][0].double(), soft * (scores - soft @ scores) / tau, rtol=1e-5, atol=1e-5)
    for name, ours, theirs in zip(["alpha", "x", *weights], *found, strict=True):
        if name in weights and not name.startswith(f"{block.options[seen]}."):
            assert ours is None, name
            assert not theirs.any(), name
        else:
            assert_close(ours, theirs, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("relax", HARD)
def test_no_optimizer_moves_the_weights_of_candidates_that_are_not_seen(relax):
    block = ChoiceBlock([smooth() for _ in range(3)], relax)
    optimizers = [
        torch.optim.SGD(block.candidates.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(block.candidates.parameters(), lr=0.1, weight_decay=0.1),
    ]
    for chosen in (0, 1, 0, 2):  # each has momentum by then
        with torch.no_grad():
            block.alpha.copy_(5.0 * F.one_hot(torch.tensor(chosen), 3))
        before = copy.deepcopy(block.candidates.state_dict())
        for optimizer in optimizers:
            optimizer.zero_grad()
            block(torch.randn(2, 4, 5, 5)).square().sum().backward()
            optimizer.step()
        after = block.candidates.state_dict()
        moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
        assert moved == {block.options[chosen]}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_chosen_candidate_alone_runs(frozen):
    ran: list[str] = []
    block = ChoiceBlock({k: smooth() for k in "abc"}, straight_through)
    for name, op in block.candidates.items():
        op.register_forward_hook(lambda *_, name=name: ran.append(name))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    if frozen:  # e.g. a step of the weights
        block.alpha.requires_grad_(False)
    else:
        block.choose("a")
    block(x).sum().backward()
    assert ran == ["a"]
    assert frozen or not block.alpha.grad.any()


@pytest.mark.parametrize("steps", [1, 2])
def test_second_derivatives_are_those_of_the_sum_written_out(steps):
    torch.manual_seed(0)
    blocks = [ChoiceBlock([smooth(), smooth()], straight_through) for _ in range(2)]
    net = nn.Sequential(*blocks).double()
    for block in blocks:
        nn.init.normal_(block.alpha)
    alphas, x = [block.alpha for block in blocks], torch.randn(2, 4, 5, 5).double()
    for _ in range(steps):  # also once it is known that nobody writes on the output
        found = []
        for y in (net(x), reference(blocks[1], reference(blocks[0], x))):
            first = torch.autograd.grad(y.square().sum(), alphas, create_graph=True)
            second = torch.autograd.grad(torch.cat(first).square().sum(), alphas)
            found.append([*first, *second])
        for ours, theirs in zip(*found, strict=True):
            assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_edges_that_are_not_kept_are_judged_too():
    torch.manual_seed(0)
    lead = Shared(pairs(3), straight_through)
    nn.init.normal_(lead.alpha)
    node = Node([smooth() for _ in range(3)], lead)
    states = [torch.randn(2, 4, 5, 5) for _ in range(3)]
    weights = lead.theta @ node.keeps
    right = sum(w * edge(x) for w, edge, x in zip(weights, node.edges, states, strict=True))
    right.square().sum().backward()
    expected, lead.alpha.grad = lead.alpha.grad, None
    for edge in node.edges:
        edge.zero_grad()
    y = node(states)
    assert_close(y, right)
    y.square().sum().backward()
    assert_close(lead.alpha.grad, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.grad is None for p in node.edges.parameters()) == 2


# Bytes.


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """What autograd keeps for the backward pass, each storage once; runs that pass."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = model(x).square().mean()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    y.backward()
    return total


class Own(nn.Module):
    """A user's module: layers, a function, and perhaps its input added."""

    def __init__(self, kernel: int, last: str, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, kernel, padding=kernel // 2)
        self.norm, self.last, self.residual = nn.BatchNorm2d(8), last, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y = {"norm": lambda y: y, "relu": F.relu, "silu": F.silu, "drop": F.dropout2d}[self.last](y)
        return y + x if self.residual else y


@st.composite
def users_op(draw: Any) -> nn.Module:
    kernel = draw(st.sampled_from([1, 3, 5]))
    conv = nn.Conv2d(8, 8, kernel, padding=kernel // 2)
    if draw(st.booleans()):
        return Own(
            kernel, draw(st.sampled_from(["norm", "relu", "silu", "drop"])), draw(st.booleans())
        )
    rest = draw(st.sampled_from(["", "relu", "norm", "gelu", "pool"]))
    layers = {"relu": nn.ReLU, "norm": lambda: nn.BatchNorm2d(8), "gelu": nn.GELU}
    layers["pool"] = lambda: nn.AvgPool2d(3, 1, 1)
    return nn.Sequential(conv, layers[rest]()) if rest else conv


@settings(max_examples=30)
@given(st.data(), st.sampled_from(HARD), SEEDS)
def test_a_hard_path_over_any_modules_keeps_what_its_plain_network_keeps(data, relax, seed):
    torch.manual_seed(seed)
    blocks = [
        ChoiceBlock([data.draw(users_op()) for _ in range(3)], relax, gumbel=True) for _ in range(3)
    ]
    # What reads the last block's output keeps it, as most layers do.
    supernet, x = nn.Sequential(*blocks, nn.Conv2d(8, 2, 1)), torch.randn(8, 8, 12, 12)
    for step in range(3):
        resample(supernet, torch.Generator().manual_seed(seed + step))
        chosen = [block.candidates[block.options[int(block.theta.argmax())]] for block in blocks]
        plain = nn.Sequential(*chosen, supernet[-1])
        assert saved_bytes(supernet, x) <= BYTES * saved_bytes(plain, x)


def relu_conv_norm() -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))


@pytest.mark.parametrize("amp", [False, True])
def test_an_output_that_no_reader_keeps_is_not_kept_for_theta_either(amp):
    torch.manual_seed(0)
    blocks = [ChoiceBlock([relu_conv_norm() for _ in range(3)], one_path) for _ in range(4)]
    net, x = nn.Sequential(*blocks, nn.ReLU(), nn.Conv2d(8, 2, 1)), torch.randn(8, 8, 12, 12)
    plain = nn.Sequential(*(block.candidates[block.options[0]] for block in blocks), *net[4:])
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        saved_bytes(net, x)  # where it is seen that each candidate ends in a norm
        assert saved_bytes(net, x) <= BYTES * saved_bytes(plain, x)


class Twice(nn.Module):
    """Uses its norm in the middle as well, or once in a while does not end in it."""

    def __init__(self, ends: bool) -> None:
        super().__init__()
        self.norm, self.conv, self.ends = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), ends
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        if self.ends:
            return self.norm(self.conv(self.norm(x).tanh()))
        y: Tensor = self.norm(self.conv(x))
        return y if self.passes < 3 else y + x


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("relax", HARD)
@pytest.mark.parametrize("make", [relu_conv_norm, lambda: Twice(True), lambda: Twice(False)])
def test_theta_has_the_gradient_of_its_output_whatever_a_candidate_ends_in(make, relax, amp):
    torch.manual_seed(0)
    block = ChoiceBlock([make(), nn.Conv2d(8, 8, 1)], relax)
    for op in block.candidates.values():
        for norm in (m for m in op.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    x, cotangent = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
    for _ in range(4):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            theta = block.theta
            theta.retain_grad()
            y = block.run_one(theta, 0, (), (x,), {})
        y.backward(cotangent.to(y.dtype))
        assert theta.grad is not None
        expected = (y.detach().double() * cotangent).sum()
        close = {"rtol": 2e-2, "atol": 0.5} if amp else {"rtol": 1e-4, "atol": 1e-3}
        assert_close(theta.grad[0].double(), expected, **close)
        op = block.candidates[block.options[0]]
        weight = op.norm.weight if isinstance(op, Twice) else op[-1].weight
        assert isinstance(weight, nn.Parameter)
        assert weight.grad is not None


def test_a_skip_keeps_nothing_once_its_reader_is_known():
    torch.manual_seed(0)
    block = ChoiceBlock([nn.Identity(), Own(3, "relu", False)], one_path)
    with torch.no_grad():
        block.alpha[0] = 1.0
    net = nn.Sequential(nn.Conv2d(8, 8, 1), block, nn.Conv2d(8, 8, 1))
    x = torch.randn(8, 8, 12, 12)
    plain = saved_bytes(nn.Sequential(net[0], net[2]), x)
    saved_bytes(net, x)
    assert saved_bytes(net, x) <= BYTES * plain
