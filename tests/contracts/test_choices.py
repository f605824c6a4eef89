"""A choice block computes the weighted sum of what its candidates give for one and the same input.

Whatever they are: modules that write on their input, take several, give structures of tensors.
"""

import copy
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from nas.arch import Arch
from nas.cost.analytic import MACs, Params
from nas.cost.expected import expected
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.decision import resample
from nas.discrete import discretize
from nas.errors import UserError
from nas.export.codegen import python_source
from nas.ops.catalogue import allowed, build, known_names
from nas.supernet.choice import ChoiceBlock
from nas.supernet.incoming import Node, pairs
from nas.supernet.own_input import guard_of
from nas.supernet.proxyless import ExactPath, TwoPaths, draw_mixing, mixing
from nas.supernet.relax import one_path, softmax, straight_through
from nas.supernet.relaxed import Shared

SEEDS = st.integers(0, 2**16)
HARD = [one_path, straight_through]
BYTES = 1.02


class Does(nn.Module):
    """Something done to the input, and a convolution of what that gives."""

    def __init__(self, first: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.conv = first, nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.first(self, x))


def add_to(self: nn.Module, x: Tensor) -> Tensor:
    x += 1
    return x


def part(self: nn.Module, x: Tensor) -> Tensor:
    x[:, :2].mul_(3)
    return x


def later(self: nn.Module, x: Tensor) -> Tensor:
    y = self.conv(x * 2)
    x.sigmoid_()
    return x + y


def first_in_chain(first: nn.Module) -> nn.Module:
    return nn.Sequential(first, nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True))


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: first_in_chain(nn.SiLU(inplace=True)),
    "alone": lambda: nn.ELU(inplace=True),
    "method": lambda: Does(lambda self, x: x.sin_()),
    "functional": lambda: Does(lambda self, x: F.silu(x, inplace=True)),
    "augmented": lambda: Does(add_to),
    "part": lambda: Does(part),
    "later": lambda: Does(later),
    "view": lambda: Does(lambda self, x: x.flatten(1).add_(2).view_as(x)),
    "training": lambda: Does(lambda self, x: x.cos_() if self.training else x.tanh_()),
    "looks": lambda: Does(lambda self, x: x.sin_() if x.sum() < 1e9 else x),
    "nested": lambda: nn.Sequential(
        ChoiceBlock([first_in_chain(nn.SiLU(inplace=True)), nn.Identity()]), nn.Conv2d(4, 4, 1)
    ),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "norm": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    "relu": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "own": lambda: Does(lambda self, x: x.sin()),
    "scaled": lambda: build("mb_k3_e2", 4, 4),
}
ANY = WRITERS | OTHERS


class Apart(nn.Module):
    """`op` on a copy of its input: what a candidate must come to."""

    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x.clone())


class Around(nn.Module):
    """A block whose input is made and read again by others."""

    def __init__(self, block: nn.Module, writes: bool = False) -> None:
        super().__init__()
        self.stem, self.block, self.writes = nn.Conv2d(3, 4, 3, padding=1), block, writes

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.block(x)
        return (F.silu(y, inplace=True) if self.writes else y) + x.tanh()


def block_of(kinds: list[str], relax: Any = softmax, gumbel: bool = False) -> ChoiceBlock:
    block = ChoiceBlock({f"{i}_{kind}": ANY[kind]() for i, kind in enumerate(kinds)}, relax, gumbel)
    nn.init.normal_(block.alpha)
    return block


@st.composite
def mixed_kinds(draw: Any) -> list[str]:
    kinds = [draw(st.sampled_from(list(WRITERS)))]
    kinds += draw(st.lists(st.sampled_from(list(ANY)), min_size=1, max_size=3))
    return draw(st.permutations(kinds))


def by_hand(net: Around, theta: Tensor, x: Tensor) -> Tensor:
    """`net` with its block written out, every candidate on a copy of the input."""
    x = net.stem(x)
    ops = net.block.candidates.values()
    y = sum(weight * op(x.clone()) for weight, op in zip(theta, ops, strict=True))
    return y + x.tanh()


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in net.named_parameters()}


def assert_same_gradients(net: nn.Module, other: nn.Module) -> None:
    """None is a zero, but for weights of candidates that are not seen it is asserted elsewhere."""
    ours, theirs = gradients(net), gradients(other)
    for name in ours:
        zero = torch.zeros_like(net.get_parameter(name))
        pair = (zero if g is None else g for g in (ours[name], theirs[name]))
        assert_close(*pair, rtol=1e-4, atol=1e-5, msg=name)


@settings(max_examples=30)
@given(mixed_kinds(), st.sampled_from([softmax, straight_through]), SEEDS, st.booleans())
def test_every_candidate_sees_the_input_as_it_came(kinds, relax, seed, training):
    torch.manual_seed(seed)
    net = Around(block_of(kinds, relax)).double().train(training)
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 5, 5).double()
    for _ in range(2):  # what is learned in the first step holds in the next
        net.zero_grad()
        twin.zero_grad()
        given_x = x.clone()
        y = net(given_x)
        right = by_hand(twin, twin.block.theta, x)
        assert_close(y, right)
        assert torch.equal(given_x, x)
        y.square().sum().backward()
        right.square().sum().backward()
        assert_same_gradients(net, twin)


@settings(max_examples=20)
@given(mixed_kinds(), SEEDS, st.booleans())
def test_a_network_taken_out_reads_what_the_supernet_read(kinds, seed, ran):
    torch.manual_seed(seed)
    net, x = Around(block_of(kinds)).eval(), torch.randn(2, 3, 5, 5)
    if ran:
        net(x)
    for option in net.block.options:
        net.block.choose(option)
        choices = {n: d.options[0] for n, d in net.named_modules() if isinstance(d, ChoiceBlock)}
        network = discretize(net, Arch("Around", {**choices, "block": str(option)}))
        for name, decision in net.named_modules():
            if isinstance(decision, ChoiceBlock) and name != "block":
                decision.choose(decision.options[0])
        assert torch.equal(net(x), network(x))
        assert torch.equal(net(x), copy.deepcopy(network)(x))
        net.block.free()


@pytest.mark.parametrize("kind", sorted(WRITERS.keys() - {"nested", "looks", "view"}))
def test_an_exported_network_reads_what_the_supernet_read(kind):
    net, x = Around(block_of([kind, "conv"])).eval(), torch.randn(2, 3, 5, 5)
    network = discretize(net, Arch("Around", {"block": f"0_{kind}"}))
    net.block.choose(f"0_{kind}")
    right = net(x)
    program = torch.export.export(network, (x,)).module()
    assert_close(program(x), right)
    space: dict[str, Any] = {"__file__": "network.py"}
    text = python_source(network, x, "a test", {"INPUT_SHAPE": [3, 5, 5]}, "network.pt")
    exec(compile(text, "network.py", "exec"), space)
    made = space["build"]()
    made.load_state_dict(network.state_dict())
    assert torch.equal(made.eval()(x), right)


@pytest.mark.parametrize("draw", [TwoPaths.draw, ExactPath.draw])
@settings(max_examples=10)
@given(mixed_kinds(), SEEDS)
def test_sampled_gates_judge_what_the_input_was(draw, kinds, seed):
    torch.manual_seed(seed)
    net = Around(block_of([k for k in kinds if k != "nested"] + ["conv", "own"])).eval()
    twin = copy.deepcopy(net)
    twin.block.candidates = nn.ModuleDict({k: Apart(o) for k, o in twin.block.candidates.items()})
    x, found = torch.randn(2, 3, 5, 5), []
    for made in (net, twin):
        draws = draw_mixing(made, draw, torch.Generator().manual_seed(seed))
        with mixing(made, draws):
            y = made(x)
            y.square().sum().backward()
        found.append((y, made.block.alpha.grad, made.stem.weight.grad))
    for ours, right in zip(*found, strict=True):
        assert_close(ours, right, rtol=1e-4, atol=1e-4)


def test_who_does_not_write_gets_the_input_itself():
    seen: list[int] = []
    block = ChoiceBlock([Does(lambda self, x: seen.append(id(x)) or x), nn.Identity()])
    x = torch.randn(2, 4, 5, 5)
    for training in (True, False):
        block.train(training)
        block(x)
        seen.clear()
        block(x)
        assert seen == [id(x)]


def test_operations_of_the_catalogue_and_of_pytorch_need_no_guard():
    for name in known_names():
        if allowed(name, 4, 4, 1, 2):
            op, x = build(name, 4, 4), torch.randn(2, 4, 8, 8)
            op(x)
            assert x._version == 0, name
            assert guard_of(ChoiceBlock({name: op, "skip": nn.Identity()}).candidates[name]) is None
    plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    assert guard_of(ChoiceBlock([plain, nn.Identity()]).candidates["0_Sequential"]) is None


def test_a_write_that_comes_late_is_an_error_and_not_a_wrong_number():
    class Late(nn.Module):
        write = False

        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() if self.write else x * 2

    block = ChoiceBlock({"late": Late(), "skip": nn.Identity()})
    block(torch.randn(2, 4))
    block.candidates["late"].write = True
    with pytest.raises(UserError, match="'late' has written on its input"):
        block(torch.randn(2, 4))


def test_looking_whether_a_module_writes_leaves_no_trace():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.calls = nn.BatchNorm2d(4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return F.dropout(self.norm(x)) + torch.rand(())

    block = ChoiceBlock({"counts": Counts(), "skip": nn.Identity()}).train()
    x, state = torch.randn(2, 4, 5, 5), torch.get_rng_state()
    y = block(x)
    assert block.candidates["counts"].calls == 1
    assert int(block.candidates["counts"].norm.num_batches_tracked) == 1
    torch.set_rng_state(state)
    assert torch.equal(block(x), y)


def test_half_precision_and_inference_mode_find_out_the_same():
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        net, x = Around(block_of(["functional", "identity"])).eval(), torch.randn(2, 3, 5, 5)
        with context:
            assert_close(net(x), by_hand(net, net.block.theta, x))
        assert guard_of(net.block.candidates["0_functional"]).writes == {False: True}
        kept = Around(block_of(["own", "identity"])).eval()
        with context:
            kept(x)
        assert guard_of(kept.block.candidates["0_own"]).writes == {False: False}


# What reads a block's output may write on it.


@settings(max_examples=30)
@given(
    st.lists(
        st.sampled_from(["identity", "conv", "norm", "own", "scaled", "functional"]), min_size=2
    ),
    st.sampled_from(HARD),
    SEEDS,
)
def test_what_follows_a_block_may_write_on_its_output(kinds, relax, seed):
    torch.manual_seed(seed)
    net = Around(block_of(kinds, relax, gumbel=True), writes=True).double()
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 5, 5).double()
    for step in range(3):
        resample(net.block, torch.Generator().manual_seed(seed + step))
        twin.block.load_state_dict(net.block.state_dict())
        net.zero_grad()
        twin.zero_grad()
        y = net(x)
        inner = twin.stem(x)
        outs = [op(inner) for op in twin.block.candidates.values()]
        theta = twin.block.theta
        if relax is one_path:
            outs = [
                o if v else torch.zeros_like(o) for o, v in zip(outs, theta.tolist(), strict=True)
            ]
        right = F.silu(sum(w * o for w, o in zip(theta, outs, strict=True))) + inner.tanh()
        assert_close(y, right)
        y.square().sum().backward()
        right.square().sum().backward()
        assert_same_gradients(net, twin)


# Structures.

Pair = namedtuple("Pair", ["first", "second"])


class Gives(nn.Module):
    """A drawn structure whose tensors depend on weights and on all arguments."""

    def __init__(self, structure: Any) -> None:
        super().__init__()
        self.structure, self.mix = structure, nn.Linear(3, 3)

    def forward(self, x: Tensor, *others: Tensor, mask: Tensor | None = None) -> Any:
        y = self.mix(x)
        for other in others:
            y = y + other
        if mask is not None:
            y = y * mask
        values = {"plain": y, "wide": torch.cat([y, y], -1), "sum": y.sum(-1)}
        values |= {"index": y.argmax(-1), "bool": y > 0, "complex": torch.complex(y, -y)}
        return tree_map(lambda leaf: values.get(leaf, leaf), self.structure)


leaves = st.sampled_from(["plain", "wide", "sum", "index", "bool", "complex", None, 3, 0.5])
structures = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, inner)
        | st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=5,
)


@settings(max_examples=60)
@given(
    structures.filter(lambda s: "plain" in tree_leaves(s) or "sum" in tree_leaves(s)),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([softmax, *HARD]),
    SEEDS,
)
def test_structures_are_mixed_leaf_by_leaf(structure, extra, masked, relax, seed):
    torch.manual_seed(seed)
    block = ChoiceBlock({k: Gives(structure) for k in "pqr"}, relax)
    nn.init.normal_(block.alpha)
    x = torch.randn(2, 3, requires_grad=True)
    args = (x, *torch.randn(extra, 2, 3))
    kwargs = {"mask": torch.rand(2, 3)} if masked else {}
    theta = block.theta
    parts = [op(*args, **kwargs) for op in block.candidates.values()]

    def mix(*each: Any) -> Any:
        if not isinstance(each[0], Tensor):
            return each[0]
        if each[0].is_floating_point() or each[0].is_complex():
            return sum(w * leaf for w, leaf in zip(theta, each, strict=True))
        return each[int(theta.argmax())]

    right = tree_map(mix, *parts)
    y = block(*args, **kwargs)
    assert type(y) is type(right)
    for ours, theirs in zip(tree_leaves(y), tree_leaves(right), strict=True):
        assert_close(ours, theirs) if isinstance(ours, Tensor) else None
        assert isinstance(ours, Tensor) or ours == theirs

    def loss(out: Any) -> Tensor:
        parts = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        parts = [leaf for leaf in parts if leaf.is_floating_point() or leaf.is_complex()]
        return torch.stack([leaf.abs().square().sum() for leaf in parts]).sum()

    expected = torch.autograd.grad(loss(right), [block.alpha, x])
    if relax is one_path:  # its alphas have a gradient of their own
        expected = (torch.autograd.grad(loss(y), block.alpha, retain_graph=True)[0], expected[1])
    for ours, theirs in zip(torch.autograd.grad(loss(y), [block.alpha, x]), expected, strict=True):
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@settings(max_examples=40)
@given(structures, structures, st.sampled_from([softmax, straight_through]))
def test_what_cannot_be_mixed_is_named(first, other, relax):
    block, x = ChoiceBlock({"ours": Gives(first), "yours": Gives(other)}, relax), torch.randn(2, 3)

    def shape(leaf: Any) -> Any:
        kinds = {"index": "whole", "bool": "whole", "complex": "float"}
        out = Gives(leaf)(x)
        return (out.shape, kinds.get(leaf, "float")) if isinstance(out, Tensor) else repr(leaf)

    alike = repr(tree_map(shape, first)) == repr(tree_map(shape, other))
    message = ""
    try:
        tensors = [t for t in tree_leaves(block(x)) if isinstance(t, Tensor) and t.requires_grad]
        torch.stack([t.abs().sum() for t in tensors] or [block.alpha.sum()]).sum().backward()
    except UserError as error:
        message = str(error)
    seen = [t for t in tree_leaves(Gives(first)(x)) if isinstance(t, Tensor) and t.requires_grad]
    judged = relax is softmax or seen  # nothing is judged by an output without a gradient
    if "{" not in repr(first):  # keys have no order
        assert bool(message) == bool(judged and not alike)
    assert not message or ("ours" in message and "yours" in message)


def test_arguments_that_a_candidate_does_not_take_are_named():
    block = ChoiceBlock({"takes": Gives("plain"), "refuses": nn.Linear(3, 3)})
    with pytest.raises(UserError, match="'refuses' \\(Linear\\) cannot be called"):
        block(torch.randn(2, 3), mask=torch.rand(2, 3))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return len(3)

    with pytest.raises(TypeError, match="has no len"):
        ChoiceBlock([Broken(), nn.Identity()])(torch.randn(2, 3))


def test_tensors_that_cannot_be_found_are_named():
    class Opaque(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return {x}

    with pytest.raises(UserError, match="gives a set"):
        ChoiceBlock([Opaque(), Opaque()])(torch.randn(2, 3))


class Branches(nn.Module):
    """Takes two tensors and gives two."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, kernel, padding=kernel // 2, bias=False)

    def forward(self, a: Tensor, b: Tensor, *, gate: Tensor) -> dict[str, Tensor]:
        y = self.conv(a.relu_())
        return {"y": y, "z": b * gate} if y.shape[-1] > 1 else {"z": b * gate, "y": y}


class Forks(nn.Module):
    """Two blocks over structures, one of whose outputs goes through a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.blocks = nn.ModuleList(
            ChoiceBlock({f"k{k}": Branches(k) for k in (1, 3, 5)}) for _ in range(2)
        )
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a = b = self.stem(x)
        for block in self.blocks:
            out = block(a, b, gate=b.sigmoid())
            a, b = self.norm(out["y"]) if block is self.blocks[1] else out["y"], out["z"]
        return (a + b).mean((2, 3))


@pytest.mark.parametrize("option", ["k1", "k3", "k5"])
def test_costs_of_blocks_over_structures_are_those_of_the_network(option):
    net = Forks().eval()
    choices = {"blocks.0": option, "blocks.1": "k3"}
    network = discretize(net, Arch("Forks", choices))
    for model in (Params(), MACs(), PeakMemory()):
        cost, plain = (expected(n, model, trace(n, (3, 6, 6))) for n in (net, network))
        assert cost.of(choices) == plain.of({}) > 0


# The gradient of what is seen, and of what is not.


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
