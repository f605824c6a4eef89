"""Alphas that descend over a frozen supernet: what moves, what stays, and what is proposed."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from nas import ChoiceBlock, Params, build_op
from nas.cost.expected import expected
from nas.errors import UserError
from nas.search.alpha_descent import GradientSearch
from nas.search.searchers import make
from nas.search.space import SearchSpace

X = torch.randn(32, 2, 6, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """One option of each block passes the input on, the others spoil or shrink it."""

    name = "net"

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                ChoiceBlock({"large": build_op("conv_k5", 2, 2), "mid": build_op("conv_k3", 2, 2)})
                for _ in range(3)
            )
        )
        for block in self.blocks:  # the larger op tells more
            for name, op in block.candidates.items():
                size = op[0].weight.shape[-1] // 2
                op[0].weight.data.zero_()
                for c in range(2):
                    op[0].weight.data[c, c, size, size] = 1.0 if name == "large" else 0.0
                op[1].bias.data.fill_(2.0)

    def forward(self, x):
        return 4 * (self.blocks(x).mean((2, 3)) - 2)


def labels(net: Net) -> torch.Tensor:
    return X.mean((2, 3)).argmax(-1)


def problem(batches: int = 1, budgets=None) -> SimpleNamespace:
    torch.manual_seed(0)
    net = Net()
    y = labels(net)
    loader = [(X, y)] * batches
    trainer = partial(pl.Trainer, accelerator="cpu")
    data = SimpleNamespace(val_dataloader=lambda: loader)
    costs = {"params": expected(net, Params(), (2, 6, 6))}
    return SimpleNamespace(
        supernet=net, space="net", costs=costs, budgets=budgets or {}, data=data, trainer=trainer
    )


def proposed(made: GradientSearch, limit: int = 20) -> list[str]:
    return [",".join(map(str, arch.choices.values())) for arch in made.ask(limit)]


@pytest.mark.parametrize("estimator", ["gumbel", "reinforce"])
def test_nothing_of_the_supernet_changes_and_no_weight_has_a_gradient(estimator):
    given = problem()
    before = copy.deepcopy(given.supernet.state_dict())
    made = GradientSearch(given, 0, estimator=estimator, steps=6, every=2)
    inner = copy.deepcopy(made.supernet.state_dict())
    made.ask(3)
    for state, known in (
        (given.supernet.state_dict(), before),
        (made.supernet.state_dict(), inner),
    ):
        for name, value in state.items():
            moves = state is not before and name.rpartition(".")[2] in ("alpha", "tau")
            assert torch.equal(value, known[name]) or (moves and known is inner), name
    for name, parameter in made.supernet.named_parameters():
        assert parameter.requires_grad
        assert ("alpha" in name) or parameter.grad is None


@pytest.mark.parametrize("estimator", ["gumbel", "reinforce"])
def test_alphas_go_where_the_validation_loss_falls_or_the_cost_does(estimator):
    ends = []
    for strength in (1e-6, 20.0):
        made = GradientSearch(
            problem(), 0, estimator=estimator, strengths=(strength, strength), points=1
        )
        list(made._descent(strength))
        ends.append([int(block.alpha.argmax()) for block in made.supernet.blocks])
    assert ends == [[0, 0, 0], [1, 1, 1]]


def test_networks_are_new_inside_the_budgets_alike_for_a_seed_and_come_to_an_end():
    whole = problem()
    space = SearchSpace(
        "net", dict.fromkeys(whole.costs["params"].options, ("large", "mid")), whole.costs
    )
    prices = sorted(space.price(arch)["params"] for arch in space)
    runs = []
    for _ in range(2):
        given = problem(budgets={"params": prices[4]})
        found = GradientSearch(given, 3, steps=9, every=3).ask(50)
        runs.append([arch.hash for arch in found])
        assert all(space.price(arch)["params"] <= prices[4] for arch in found)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0]) > 1


def test_strengths_fill_the_gaps():
    made = GradientSearch(problem(), strengths=(0.01, 1.0))
    found = [made._strength(number) for number in range(4)]
    assert found == pytest.approx([0.01, 0.1, 10**-1.5, 10**-0.5])


def test_it_needs_a_trained_supernet():
    with pytest.raises(UserError, match=r"search.ranking.searcher=gradient"):
        make("gradient", SearchSpace("s", {"a": (0, 1)}), 0, ("val_loss", "params"), 5)


@pytest.mark.parametrize(
    "change",
    [{"estimator": "grad"}, {"steps": 0}, {"samples": 1}, {"strengths": (1.0, 0.1)}],
)
def test_bad_values_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        GradientSearch(problem(), **change)


def test_without_validation_images_it_says_so():
    with pytest.raises(UserError, match="there are none"):
        GradientSearch(problem(batches=0)).ask(1)
