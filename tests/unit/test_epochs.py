"""Epochs: their scores are of all samples and logged once; in one piece they give the same."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import callbacks
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.data import digits
from nas.epochs import Scores, Whole, by_epochs
from nas.search.darts import BilevelSearch, SecondOrderSearch, SingleLevelSearch
from nas.search.oneshot import OneShot
from nas.search.path_sampling import StrictFairness
from nas.search.proxyless import ProxylessSearch
from nas.search.reinforce import ReinforceSearch
from nas.tasks import metrics
from nas.tasks.classification import Classification
from nas.tasks.regression import Regression
from nas.train import Training

from .test_callbacks import EPOCHS, SGD, differences, search, supernet, training


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 40), st.integers(0, 99))
def test_scores_are_those_of_all_samples(sizes, most, seed):
    """Whether batches wait for their metrics, or there are too many numbers to wait."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), 3, generator=generator)
    labels = torch.randint(3, (sum(sizes),), generator=generator)
    task, limit, metrics.MOST = Classification(3), metrics.MOST, most
    try:
        scores = Scores(task)
        for _ in range(2):  # the second epoch knows nothing of the first
            for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True):
                scores.add(task.loss(x, y), x, y)
            found = scores.taken()
            assert_close(found["loss"], task.loss(logits, labels))
            assert found["acc"] == (logits.argmax(1) == labels).float().mean()
    finally:
        metrics.MOST = limit
    assert not scores.taken()


@pytest.mark.parametrize("task", [Classification(3), Regression()])
def test_scores_of_an_evaluation_are_followed_by_those_of_a_training(task):
    """Lightning evaluates in inference mode, and trains without."""
    x, y = torch.randn(6, 3), torch.randint(2, (6, 3))
    y = y[:, 0] if isinstance(task, Classification) else y.float()
    scores, found = Scores(task), []
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            for _ in range(2):
                scores.add(torch.ones(()), x, y)
            found.append(scores.taken())
    assert found[0] == found[1] == found[2]


class _Logged(Training):
    """Counts what is logged before the epoch's last batch."""

    early = 0

    def record(self, *args, **options):
        self.early += not self.trainer.is_last_batch
        super().record(*args, **options)


def test_no_step_logs_and_callbacks_know_the_scores_at_the_end_of_an_epoch():
    known = []

    class Reads(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            known.append({n: float(v) for n, v in trainer.callback_metrics.items()})
            assert set(trainer.progress_bar_metrics) == set(known[-1])

    torch.manual_seed(0)
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    module = _Logged(nn.Linear(4, 3), partial(torch.optim.SGD, lr=0.0), epochs=1)
    options = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    pl.Trainer(
        max_epochs=1, accelerator="cpu", enable_model_summary=False, callbacks=[Reads()], **options
    ).fit(module, loader, loader)
    assert module.early == 0
    logits = module.network(x)
    right = float((logits.argmax(1) == y).float().mean())
    loss = float(module.task.loss(logits, y))
    wanted = {f"{s}_{n}": v for s in ("train", "val") for n, v in (("loss", loss), ("acc", right))}
    assert set(known[0]) == set(wanted)
    assert_close(known[0], wanted)


def one_shot():
    model = supernet()
    costs = {"params": ExpectedCost(model, Params(), (1, 8, 8))}
    return OneShot(model, costs, StrictFairness(), lambda *_, **__: None, SGD, epochs=EPOCHS)


MODULES = {
    "training": training,
    "one shot": one_shot,
    "bilevel": partial(search, BilevelSearch, gumbel=True, warmup=1),
    "second order": partial(search, SecondOrderSearch),
    "single level": partial(search, SingleLevelSearch),
    "proxyless": partial(search, ProxylessSearch),
    "reinforce": partial(search, ReinforceSearch),
}


class _Hears(pl.Callback):
    """A callback that is called at each batch."""

    def on_train_batch_start(self, *_):
        pass


class _Validates(pl.Callback):
    """One that is called at each batch of a validation."""

    def on_validation_batch_start(self, *_):
        pass


def trainer_of(**options):
    return pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"num_sanity_val_steps": 0, **options},
    )


def trained(make, whole, hears=()):
    module, data = make(), digits(limit=100, batch_size=16, augment="crop")
    loaders = module.loaders(data) if hasattr(module, "loaders") else data.weight_loader()
    trainer, told = trainer_of(callbacks=[*hears, *([] if whole else [_Hears()])]), []
    given, val = by_epochs(trainer, module, loaders, data.val_dataloader())
    assert (isinstance(given, Whole), val is None) == (whole, whole and not hears)
    module.tell = told.append
    module.clip = 0.05  # so that each step does
    trainer.fit(module, given, val)
    assert all(m.training for m in module.modules())
    states = [optimizer.state_dict() for optimizer in trainer.optimizers]
    rates = [c.scheduler.state_dict()["last_epoch"] for c in trainer.lr_scheduler_configs]
    # Loggers take the last one.
    counts = [*rates, trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped]
    return module.state_dict(), dict(trainer.callback_metrics), states, counts, told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODULES)
def test_an_epoch_in_one_piece_gives_what_lightnings_batches_do(kind):
    whole, batches = (trained(MODULES[kind], way) for way in (True, False))
    assert not differences(list(whole), list(batches))
    if kind == "training":
        assert not differences(list(whole), list(trained(MODULES[kind], True, [_Validates()])))
    told = whole[-1]
    assert len(told) > EPOCHS  # each step tells how far it is
    assert told == sorted(set(told))
    assert told[-1] == EPOCHS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("whole", [True, False])
def test_steps_are_counted_on_from_a_checkpoint_of_the_other_way(whole, tmp_path):
    for way, epochs in ((whole, 1), (not whole, EPOCHS)):
        module, data = training(), digits(limit=100, batch_size=16)
        trainer = trainer_of(callbacks=[] if way else [_Hears()])
        trainer.fit_loop.max_epochs = epochs
        loaders = by_epochs(trainer, module, data.weight_loader(), data.val_dataloader())
        saved = tmp_path / "checkpoint.ckpt"
        trainer.fit(module, *loaders, ckpt_path=saved if saved.exists() else None)
        trainer.save_checkpoint(saved)
    assert trainer.global_step == EPOCHS * module.steps
    assert "val_loss" in trainer.callback_metrics


def named(options):
    return "".join(type(c).__name__ for c in options.get("callbacks", ())) or next(iter(options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": [_Hears()]},
        {"callbacks": [callbacks.LambdaCallback(on_train_batch_end=print)]},
        {"callbacks": [callbacks.GradientAccumulationScheduler({1: 2})]},
        {"callbacks": [callbacks.StochasticWeightAveraging(swa_lrs=0.1)]},
        {"max_steps": 3},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 1.0},
        {"limit_train_batches": 2},
        {"val_check_interval": 0.5},
        {"precision": "bf16-mixed"},
        {"overfit_batches": 1},
        {"fast_dev_run": True},
        {"profiler": "simple"},
    ],
    ids=named,
)
def test_whoever_speaks_of_batches_gets_them(options):
    loader, module = digits(limit=100, batch_size=16).weight_loader(), training()
    assert by_epochs(trainer_of(**options), module, loader, loader) == (loader, loader)
    plain = DataLoader(loader.dataset, batch_size=None, sampler=loader.sampler)
    # The order may depend on where it begins.
    assert by_epochs(trainer_of(), module, plain) == (plain, None)
    assert module.automatic_optimization


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options",
    [
        {"callbacks": [_Validates()]},
        {"callbacks": [callbacks.EarlyStopping("val_loss")]},
        {"callbacks": [callbacks.LambdaCallback(on_validation_epoch_end=print)]},
        {"limit_val_batches": 2},
        {"check_val_every_n_epoch": 2},
        {"num_sanity_val_steps": 1},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=named,
)
def test_whoever_speaks_of_validation_gets_it(options):
    data, module = digits(limit=100, batch_size=16), training()
    val = data.val_dataloader()
    whole, found = by_epochs(trainer_of(**options), module, data.weight_loader(), val)
    assert isinstance(whole, Whole)
    assert found is val
    assert module.unseen is None
    assert by_epochs(trainer_of(), module, data.weight_loader(), val)[1] is None
    assert module.unseen is val
