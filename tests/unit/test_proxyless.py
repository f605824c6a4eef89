"""ProxylessNAS's gradients by hand, and what an alpha or a weight step may move."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.decision import Decision, decisions, split_parameters
from nas.errors import UserError
from nas.search.proxyless import exact_step, one_path_step, two_path_step
from nas.spaces.staged import StagedSpace
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op as build
from nas.supernet.proxyless import ExactPath, TwoPaths, draw_mixing, draw_path, mixing
from nas.supernet.relax import softmax

OPS = ("conv_k3", "sep_k3", "mb_k3_e2", "identity", "conv_k5", "mb_k5_e2")
SEEDS = st.integers(0, 2**16)
ADAM = partial(torch.optim.Adam, lr=0.05, betas=(0.0, 0.999), fused=True)


class Net(nn.Module):
    """Two blocks of `count` candidates and a classifier; ``(N, 4, 6, 6) -> (N, 3)``."""

    input_shape = (4, 6, 6)

    def __init__(self, count: int = 4, names: tuple[str, ...] = OPS) -> None:
        super().__init__()
        blocks = [
            ChoiceBlock({n: build(n, 4, 4, activation="silu") for n in names[:count]})
            for _ in range(2)
        ]
        self.first, self.second = blocks
        self.classifier = nn.Linear(4, 3)
        for block in blocks:
            nn.init.normal_(block.alpha)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(x)).mean((2, 3)))


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(size, *Net.input_shape), torch.randint(3, (size,))


def loss_on(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(net(x), labels)


def by_gates(net: Net, x: Tensor, labels: Tensor, shown: dict[Decision, dict[int, float]]):
    """dL/dg ``(K,)`` of both blocks, of an output that is written with gates g:
    ``sum_k g_k op_k(x)``, with the values of g that `shown` says."""
    gates = {
        block: torch.zeros(len(block.options)).index_fill_(
            0, torch.tensor([k for k, g in shown[block].items() if g]), 1.0
        )
        for block in (net.first, net.second)
    }
    for gate in gates.values():
        gate.requires_grad_()
    for block, gate in gates.items():
        outs = [op(x) for op in block.candidates.values()]
        x = sum(
            g * (out if shown[block].get(k) else out.detach())
            for k, (g, out) in enumerate(zip(gate, outs, strict=True))
        )
    F.cross_entropy(net.classifier(x.mean((2, 3))), labels).backward()
    return {block: gate.grad for block, gate in gates.items()}


@settings(max_examples=15)
@given(SEEDS)
def test_the_two_path_gradient_is_that_of_the_formula(seed):
    torch.manual_seed(seed)
    net, (x, labels) = Net().eval(), batch()
    draws = draw_mixing(net, TwoPaths.draw, torch.Generator().manual_seed(seed))
    with mixing(net, draws):
        loss = loss_on(net, x, labels)
        loss.backward()
    shown = {b: {draws[b.alpha].active: 1.0} for b in (net.first, net.second)}
    gates = by_gates(net, x, labels, shown)

    for block in (net.first, net.second):
        a, b = draws[block.alpha].active, draws[block.alpha].inactive
        assert a != b
        q = torch.stack([block.alpha[a], block.alpha[b]]).softmax(0).detach()
        expected = torch.zeros(len(block.options))
        for i, at in enumerate((a, b)):
            for j, of in enumerate((a, b)):
                expected[at] += gates[block][of] * q[j] * (float(i == j) - q[i])
        assert_close(block.alpha.grad, expected, atol=1e-6, rtol=1e-4)

    for block in (net.first, net.second):
        block.choose(block.options[draws[block.alpha].active])
    assert torch.equal(loss_on(net, x, labels), loss)


@settings(max_examples=15)
@given(SEEDS)
def test_the_exact_gradient_is_that_of_gates_over_all_candidates(seed):
    torch.manual_seed(seed)
    net, (x, labels) = Net().eval(), batch()
    draws = draw_mixing(net, ExactPath.draw, torch.Generator().manual_seed(seed))
    with mixing(net, draws):
        loss_on(net, x, labels).backward()
    shown = {b: {draws[b.alpha].active: 1.0} for b in (net.first, net.second)}
    gates = by_gates(net, x, labels, shown)
    for block in (net.first, net.second):
        p = block.alpha.detach().softmax(0)
        assert_close(block.alpha.grad, p * (gates[block] - p @ gates[block]), atol=1e-6, rtol=1e-4)
        assert (block.alpha.grad != 0).all()


@settings(max_examples=15)
@given(SEEDS, st.sampled_from([0.3, 1.0, 4.0]))
def test_candidates_not_sampled_keep_their_probability(seed, tau):
    torch.manual_seed(seed)
    net, data = Net(), batch()
    cost = ExpectedCost(net, Params(), net.input_shape)
    # What would move the others, too.
    optimizer = torch.optim.Adam(split_parameters(net).alphas, lr=0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(seed)
    for block in (net.first, net.second):
        block.tau.fill_(tau)
    moves = 0
    for _ in range(3):
        before = [block.theta.detach() for block in (net.first, net.second)]
        two_path_step(net, lambda: loss_on(net, *data) + cost().log(), optimizer, generator)
        for block, old in zip((net.first, net.second), before, strict=True):
            moved = (block.theta.detach() - old).abs() > 1e-6
            assert moved.sum() <= 2
            moves += int(moved.sum())
    assert moves > 0


def test_two_are_drawn_without_replacement_and_one_of_them_by_its_share():
    block = ChoiceBlock([nn.Identity() for _ in range(3)])
    block.alpha.data = torch.tensor([0.1, 0.3, 0.6]).log()
    generator, draws = torch.Generator().manual_seed(0), 6000
    counts = torch.zeros(3, 3)
    for _ in range(draws):
        draw = TwoPaths.draw(block, generator)
        counts[draw.active, draw.inactive] += 1 / draws
    p = block.alpha.detach().exp()
    expected = torch.zeros(3, 3)
    for a in range(3):
        for b in set(range(3)) - {a}:
            pair = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])
            expected[a, b] = pair * p[a] / (p[a] + p[b])
    assert_close(counts, expected, atol=0.02, rtol=0)


def test_probabilities_that_round_to_zero_can_be_drawn():
    block = ChoiceBlock([nn.Identity() for _ in range(3)])
    block.alpha.data = torch.tensor([0.0, 500.0, -500.0])
    draw = TwoPaths.draw(block)
    assert {draw.active, draw.inactive} == {0, 1}


def test_a_block_of_one_candidate_has_one_path():
    net, data = Net(), batch()
    net.first = ChoiceBlock({"conv_k3": build("conv_k3", 4, 4)})
    before = net.first.alpha.clone()
    optimizer = ADAM(split_parameters(net).alphas)
    two_path_step(net, lambda: loss_on(net, *data), optimizer)
    assert torch.equal(net.first.alpha, before)


@pytest.mark.parametrize("draw", [TwoPaths.draw, ExactPath.draw])
def test_costs_are_expected_under_the_probabilities_and_move_what_was_sampled(draw):
    net = Net()
    cost = ExpectedCost(net, Params(), net.input_shape)
    value = float(cost().detach())
    draws = draw_mixing(net, draw, torch.Generator().manual_seed(0))
    with mixing(net, draws):
        joined = cost()
        joined.backward()
    assert float(joined.detach()) == pytest.approx(value, rel=1e-6)
    (terms,) = cost.constraints
    prices = [
        torch.tensor([terms.get(frozenset({(name, k)}), 0.0) for k in range(4)]).double()
        for name in ("first", "second")
    ]
    for block, price in zip((net.first, net.second), prices, strict=True):
        if isinstance(draws[block.alpha], ExactPath):
            assert (block.alpha.grad != 0).all()
            continue
        two = draws[block.alpha]
        q = block.alpha.detach()[[two.active, two.inactive]].softmax(0)
        slope = float(q.prod() * (price[two.active] - price[two.inactive]))
        expected = torch.zeros(4)
        expected[two.active], expected[two.inactive] = slope, -slope
        assert_close(block.alpha.grad, expected, rtol=1e-4, atol=1e-5)


def test_an_active_zero_moves_no_alpha():
    net, data = Net(), batch()
    net.second = ChoiceBlock({name: build(name, 4, 4) for name in ("zero", "conv_k3")})
    optimizer, generator = ADAM(split_parameters(net).alphas), torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(12):
        state = generator.get_state()
        draws = draw_mixing(net, TwoPaths.draw, generator)
        generator.set_state(state)
        before = net.second.alpha.clone()
        two_path_step(net, lambda: loss_on(net, *data), optimizer, generator)
        zero, moved = draws[net.second.alpha].active == 0, not torch.equal(net.second.alpha, before)
        seen.add((zero, moved))
    assert (True, False) in seen
    assert (False, True) in seen
    assert (True, True) not in seen


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_step_moves_the_weights_of_its_path_alone(momentum):
    net, data, generator = Net(), batch(), torch.Generator().manual_seed(3)
    weights, alphas = split_parameters(net)
    optimizer = torch.optim.SGD(weights, lr=0.1, momentum=momentum, weight_decay=0.1)
    for _ in range(4):
        before = {name: value.clone() for name, value in net.state_dict().items()}
        one_path_step(net, lambda: loss_on(net, *data), optimizer, generator)
        moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
        path = [
            f"{name}.candidates.{block.best()}."
            for name, block in (("first", net.first), ("second", net.second))
        ]
        own = (*path, "classifier", "first.open", "second.open", "first.noise", "second.noise")
        assert any(name.startswith(tuple(path)) for name in moved) or "identity" in str(path)
        assert all(name.startswith(own) for name in moved)
    assert all(alpha.requires_grad and alpha.grad is None for alpha in alphas)


def test_paths_are_drawn_by_their_probabilities():
    net, generator = Net(), torch.Generator().manual_seed(0)
    counts = torch.zeros(4)
    for _ in range(3000):
        draw_path(net, generator)
        counts[int(net.first.theta.argmax())] += 1 / 3000
    assert_close(counts, net.first.alpha.detach().softmax(0), atol=0.03, rtol=0)


def test_an_alpha_step_runs_two_candidates_and_an_exact_one_all_but_keeps_one():
    net, data = Net(count=6), batch()
    ran: list[str] = []
    for name, op in net.second.candidates.items():
        op.register_forward_hook(lambda *_, name=name: ran.append(name))
    optimizer = ADAM(split_parameters(net).alphas)
    two_path_step(net, lambda: loss_on(net, *data), optimizer)
    assert len(ran) == len(set(ran)) == 2
    ran.clear()
    exact_step(net, lambda: loss_on(net, *data), optimizer)
    assert sorted(ran) == sorted(net.second.options)


def saved_bytes(net: nn.Module, loss) -> int:
    """What autograd keeps for the backward pass of `loss`, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        value = loss()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    del value
    return sum(size for address, size in storages.items() if address not in own)


def wide(count: int) -> StagedSpace:
    """Blocks of `count` candidates that all keep the same number of bytes."""
    names = [f"mb_k{1 + 2 * k}_e3" for k in range(count)]
    stages = [{"ops": names, "channels": 8, "repeat": 2}, {"ops": names, "channels": 16}]
    return StagedSpace((3, 12, 12), 5, stages, stem={"channels": 8}, head={"features": 32})


def bytes_kept(count: int, step: str) -> int:
    net = wide(count).train()
    x, labels = torch.randn(4, 3, 12, 12), torch.randint(5, (4,))
    weights, alphas = split_parameters(net)
    draw = {"two": TwoPaths.draw, "exact": ExactPath.draw}.get(step)
    draw_path(net)
    draws = draw_mixing(net, draw) if draw else {}
    for parameter in weights if draw else alphas:
        parameter.requires_grad_(False)
    with mixing(net, draws):
        return saved_bytes(net, lambda: loss_on(net, x, labels))


@pytest.mark.parametrize("step", ["one", "two", "exact"])
def test_memory_does_not_grow_with_the_number_of_candidates(step):
    kept = [bytes_kept(count, step) for count in (3, 6, 12)]
    # The probabilities themselves.
    assert max(kept) - min(kept) <= 3 * 12 * 4 * 8
    assert max(kept) <= 1.02 * bytes_kept(3, "one") + 3 * 12 * 4 * 8


def test_what_follows_a_block_may_work_in_place():
    for draw in (TwoPaths.draw, ExactPath.draw):
        block = ChoiceBlock({n: build(n, 4, 4) for n in ("conv_k3", "identity")})
        x = torch.randn(2, 4, 5, 5, requires_grad=True)
        with mixing(block, draw_mixing(block, draw)):
            F.relu_(block(x + 0)).sum().backward()
        assert (block.alpha.grad != 0).all()


def test_half_precision_keeps_the_gradient_in_float32():
    net, (x, labels) = Net(), batch()
    for step in (two_path_step, exact_step):

        def loss() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return loss_on(net, x, labels)

        step(net, loss, ADAM(split_parameters(net).alphas))
        assert net.first.alpha.grad.dtype == torch.float32
        assert net.first.alpha.grad.isfinite().all()


def test_other_decisions_are_refused():
    class Width(Decision):
        pass

    net = nn.Sequential(Width(["a", "b"]))
    with pytest.raises(UserError, match="search=reinforce"):
        draw_mixing(net, TwoPaths.draw)


def test_a_step_leaves_the_model_as_it_was():
    net, data = Net(), batch()
    before = [p.requires_grad for p in net.parameters()]
    with pytest.raises(ZeroDivisionError):
        two_path_step(net, lambda: 1 / 0, ADAM(split_parameters(net).alphas))
    assert [p.requires_grad for p in net.parameters()] == before
    assert all(d.mixing is None for _, d in decisions(net))
    assert torch.equal(net.first.theta, softmax(net.first.alpha))
    assert data is not None
