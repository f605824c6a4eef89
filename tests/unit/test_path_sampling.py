"""Which paths a step of one-shot training runs, and what learns from it."""

from collections import Counter
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nas import ChoiceBlock, MACs, build_op
from nas.cost.expected import expected
from nas.decision import decisions, split_parameters
from nas.errors import UserError
from nas.search.oneshot import OneShot
from nas.search.path_sampling import AllPaths, Sandwich, StrictFairness, UniformPath

X = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 1, 0])


class Small(nn.Module):
    """Blocks of four, three and two options."""

    def __init__(self) -> None:
        super().__init__()
        names = ("conv_k3", "conv_k5", "sep_k3", "identity")
        blocks = [ChoiceBlock({n: build_op(n, 2, 2) for n in names[:k]}) for k in (4, 3, 2)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.blocks(x).mean((2, 3)))


def started(sampling):
    torch.manual_seed(0)
    model = Small()
    sampling.start(model, {"macs": expected(model, MACs(), (2, 6, 6))})
    return model


def by_labels(logits):
    return F.cross_entropy(logits, Y)


def step(sampling, model, generator):
    """The option of each block on each path of one step; gradients are left on the weights."""
    model.zero_grad()
    taken = []
    for loss in sampling.paths(by_labels, generator):
        loss(model(X)).backward()
        taken.append(tuple(str(d.best()) for _, d in decisions(model)))
    return taken


def test_strict_fairness_trains_every_option_once_a_step():
    sampling = StrictFairness()
    model, generator = started(sampling), torch.Generator().manual_seed(0)
    ran = Counter()
    for i, (_, decision) in enumerate(decisions(model)):
        for name, op in decision.candidates.items():
            op.register_forward_hook(lambda *_, key=(i, name): ran.update([key]))
    orders = set()
    for _ in range(6):
        taken = step(sampling, model, generator)
        orders.add(tuple(path[0] for path in taken))
        assert len(taken) == 4
        assert {path[0] for path in taken} == set(dict(decisions(model))["blocks.0"].options)
    assert len(orders) > 1
    # 24 paths: each of four options 6 times, of three 8 times, of two 12 times.
    for (block, _), count in ran.items():
        assert count == {0: 6, 1: 8, 2: 12}[block]
    for parameter in dict(decisions(model))["blocks.0"].candidates.parameters():
        assert parameter.grad is not None


def test_a_uniform_path_leaves_the_others_without_gradient():
    sampling = UniformPath()
    model, generator = started(sampling), torch.Generator().manual_seed(0)
    seen = Counter()
    for _ in range(150):
        (path,) = step(sampling, model, generator)
        seen.update([path])
        for (_, decision), option in zip(decisions(model), path, strict=True):
            for name, op in decision.candidates.items():
                grads = [p.grad is not None for p in op.parameters()]
                assert all(grads) if name == option else not any(grads)
    assert len(seen) == 24
    assert max(seen.values()) < 3 * 150 / 24


def test_bins_train_large_and_small_as_often():
    sampling = UniformPath(bins=4)
    model, generator = started(sampling), torch.Generator().manual_seed(0)
    counts = Counter()
    for _ in range(200):
        for _ in sampling.paths(by_labels, generator):
            cost = sampling.priced.of({n: d.best() for n, d in decisions(model)})
            counts.update([sum(cost > edge for edge in sampling.edges[1:-1])])
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 25


def test_the_sandwich_learns_from_the_largest_network():
    sampling = Sandwich(random=1)
    model, generator = started(sampling), torch.Generator().manual_seed(0)
    paths = sampling.paths(by_labels, generator)

    by_truth = next(paths)
    assert [d.best() for _, d in decisions(model)] == ["conv_k5", "conv_k5", "conv_k5"]
    teacher = model(X)
    assert by_truth(teacher) == by_labels(teacher)
    wanted = teacher.softmax(-1)
    for loss in paths:
        student = model(X)
        cross = -(wanted.detach() * student.log_softmax(-1)).sum(-1).mean()
        torch.testing.assert_close(loss(student), cross)
        teacher.grad = None
        loss(student).backward(retain_graph=True)
    assert [d.best() for _, d in decisions(model)] == ["identity", "sep_k3", "conv_k3"]


def test_all_paths_is_the_mean_of_the_candidates():
    sampling = AllPaths()
    model = started(sampling).eval()
    list(sampling.paths(by_labels, torch.Generator()))
    block = model.blocks[0]
    mean = torch.stack([op(X) for op in block.candidates.values()]).mean(0)
    torch.testing.assert_close(block(X), mean)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: UniformPath(bins=1), "bins=1"),
        (lambda: UniformPath(tries=0), "tries=0"),
        (lambda: Sandwich(random=-1), "random=-1"),
        (lambda: started(Sandwich(cost="joules")), r"cost=joules is not one of \['macs'\]"),
    ],
)
def test_bad_values_are_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize("sampling", [AllPaths(), UniformPath(), StrictFairness(), Sandwich()])
def test_no_gradient_is_computed_for_alphas_and_they_thaw_afterwards(sampling):
    torch.manual_seed(0)
    net = Small()
    fixed, *searched = split_parameters(net).alphas
    fixed.requires_grad_(False)  # by the user
    costs = {"macs": expected(net, MACs(), (2, 6, 6))}
    module = OneShot(
        net, costs, sampling, lambda **_: None, lambda p: torch.optim.SGD(p, lr=0.1), epochs=1
    )
    seen, weights = [], [p.clone() for p in split_parameters(net).weights]
    step = torch.optim.SGD.step

    def look(self, *arguments, **options):
        seen.extend(alpha.grad for alpha in (fixed, *searched))
        return step(self, *arguments, **options)

    data = TensorDataset(torch.randn(8, 2, 6, 6), torch.tensor([0, 1] * 4))
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with patch.object(torch.optim.SGD, "step", look):
        trainer.fit(module, DataLoader(data, batch_size=4))
    assert seen
    assert all(grad is None for grad in seen)
    assert not fixed.requires_grad
    assert all(alpha.requires_grad for alpha in searched)
    pairs = zip(weights, split_parameters(net).weights, strict=True)
    assert any(not torch.equal(before, now) for before, now in pairs)
