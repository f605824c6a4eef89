"""The two phases of a differentiable search: fair paths while warming up, then frozen weights."""

from collections import Counter
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from nas import ChoiceBlock, Params
from nas.cost.expected import expected
from nas.decision import split_parameters
from nas.errors import UserError
from nas.objective import Plain
from nas.search.darts import BilevelSearch, SecondOrderSearch, SingleLevelSearch
from nas.search.path_sampling import AllPaths, StrictFairness
from nas.search.proxyless import ProxylessSearch
from nas.search.reinforce import ReinforceSearch

from . import test_callbacks

fit = partial(test_callbacks.fit, limit_val_batches=0)
pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about tiny runs


def searched(kind=BilevelSearch, **options):
    torch.manual_seed(0)
    blocks = [
        ChoiceBlock({f"k{k}": nn.Conv2d(c, 4, k, padding=k // 2) for k in sizes})
        for c, sizes in ((1, (1, 3, 5)), (4, (1, 3)))
    ]
    model = nn.Sequential(
        blocks[0],
        nn.BatchNorm2d(4),
        blocks[1],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 10),
    )
    given = {
        "supernet": model,
        "costs": {"params": expected(model, Params(), (1, 8, 8))},
        "objective": Plain(),
        "weight_optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
        "alpha_optimizer": partial(torch.optim.Adam, lr=0.1),
        "epochs": 3,
        "warmup_epochs": 1,
    }
    return kind(**given | options)


class State(pl.Callback):
    """Weights and alphas as they are when alphas begin to move, and at the end."""

    def _of(self, search):
        return [[p.detach().clone() for p in part] for part in split_parameters(search.supernet)]

    def on_train_epoch_start(self, trainer, search):
        if trainer.current_epoch == search.warmup_epochs:
            self.before = self._of(search)
            self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_end(self, trainer, search):
        self.after = self._of(search)


@pytest.mark.parametrize(
    "kind",
    [
        BilevelSearch,
        SingleLevelSearch,
        partial(ReinforceSearch, samples=2),
        partial(ProxylessSearch, exact=True),
    ],
)
@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_weights_do_not_move_a_bit_and_their_rate_ends_with_the_warm_up(kind, freeze):
    state = State()
    fit(searched(kind, freeze_weights=freeze), state)
    same = [all(map(torch.equal, *pair)) for pair in zip(state.before, state.after, strict=True)]
    assert same == [freeze, False]
    assert state.rate == pytest.approx(0.1 * (0.04 if freeze else 0.76))


class Ran(pl.Callback):
    """How often each candidate ran in each step of the warm-up."""

    def on_train_batch_start(self, trainer, search, *_):
        if not hasattr(self, "steps"):
            self.steps = []
            for i, block in enumerate(b for b in search.modules() if isinstance(b, ChoiceBlock)):
                for name, op in block.candidates.items():
                    op.register_forward_hook(lambda *_, k=(i, name): self.steps[-1].update([k]))
        self.steps.append(Counter())

    def on_train_epoch_end(self, trainer, search):
        self.warm = getattr(self, "warm", list(self.steps))


def test_a_fair_warm_up_runs_every_candidate_equally_often():
    ran = Ran()
    fit(searched(path_sampling=StrictFairness(), epochs=2), ran)
    assert len(ran.warm) > 3
    for step in ran.warm:  # three paths a step
        assert [step[0, f"k{k}"] for k in (1, 3, 5)] == [1, 1, 1]
        assert sorted(step[1, f"k{k}"] for k in (1, 3)) == [1, 2]
    uniform = Ran()
    fit(searched(epochs=2), uniform)
    assert all(sum(step.values()) == 2 for step in uniform.warm)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"freeze_weights": True, "warmup_epochs": 0}, "never be trained"),
        ({"path_sampling": AllPaths()}, "samples none"),
    ],
)
def test_phases_without_sense_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        searched(**options)


def test_a_look_ahead_at_weights_that_are_frozen_is_refused():
    with pytest.raises(UserError, match="frozen"):
        fit(searched(SecondOrderSearch, freeze_weights=True))
