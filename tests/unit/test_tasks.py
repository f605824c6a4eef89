"""Tasks: training and ranking take the loss and the metrics from them alone."""

from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanAbsoluteError, MetricCollection

from nas.search.evaluate import validated
from nas.tasks import regression
from nas.tasks.classification import Classification, task_of
from nas.tasks.multilabel import Multilabel
from nas.train import Training


class Regression:
    """A task of another kind: one number for each sample."""

    primary = "mae"
    outputs = 1

    def loss(self, outputs, targets, smoothing=0.0, reduction="mean"):
        return F.mse_loss(outputs, targets, reduction=reduction)

    def distillation(self, outputs, teacher):
        return F.mse_loss(outputs, teacher)

    def metrics(self):
        return MetricCollection({"mae": MeanAbsoluteError()})


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 99))
def test_accuracy_is_the_share_of_right_samples_whatever_the_batches(sizes, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(sum(sizes), classes, generator=generator)
    labels = torch.randint(classes, (sum(sizes),), generator=generator)
    for outputs in (classes, None):
        metrics = Classification(outputs).metrics()
        for part, wanted in zip(logits.split(sizes), labels.split(sizes), strict=True):
            metrics.update(part, wanted)
        right = (logits.argmax(-1) == labels).double().mean()
        assert float(metrics.compute()["acc"]) == pytest.approx(float(right), abs=1e-7)


def test_a_data_module_says_what_its_task_is():
    assert task_of(SimpleNamespace(num_outputs=7)).outputs == 7
    task = Regression()
    assert task_of(SimpleNamespace(num_outputs=7, task=task)) is task


def test_a_task_of_another_kind_is_trained_and_ranked():
    torch.manual_seed(0)
    x = torch.randn(20, 3)
    loader = DataLoader(TensorDataset(x, 2 * x[:, :1]), batch_size=8)
    network = nn.Linear(3, 1)
    optimizer = partial(torch.optim.SGD, lr=0.3)
    module = Training(network, optimizer, epochs=12, label_smoothing=0.1, task=Regression())
    trainer = pl.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    before = validated(network, Regression(), loader, torch.device("cpu"))
    trainer.fit(module, loader)
    trainer.validate(module, loader, verbose=False)
    logged = trainer.callback_metrics
    with torch.no_grad():
        errors = network(x) - 2 * x[:, :1]
    assert float(logged["val_mae"]) == pytest.approx(float(errors.abs().mean()), rel=1e-4)
    assert float(logged["val_loss"]) == pytest.approx(float((errors**2).mean()), rel=1e-4)
    ranked = validated(network, Regression(), loader, torch.device("cpu"))
    assert ranked == pytest.approx({name: float(logged[name]) for name in ranked}, rel=1e-4)
    assert ranked["val_mae"] < 0.1 * before["val_mae"]


def test_smoothing_moves_labels_towards_a_half():
    outputs, targets = torch.randn(6, 3), torch.randint(2, (6, 3)).float()
    task, near = Multilabel(), 0.8 * targets + 0.1
    mean = -(near * outputs.sigmoid().log() + (1 - near) * (-outputs).sigmoid().log()).mean()
    assert_close(task.loss(outputs, targets, smoothing=0.2), mean)
    assert_close(task.loss(outputs, targets, smoothing=0.2, reduction="sum"), 6 * mean)


def test_numbers_are_learned_in_standard_deviations():
    task, targets = regression.Regression(), torch.randn(50, 2) * torch.tensor([3.0, 0.1]) + 5
    task.fit(targets)
    outputs = torch.randn(50, 2)
    scaled = (targets - targets.mean(0)) / targets.std(0, correction=0)
    assert_close(task.loss(outputs, targets), (outputs - scaled).square().mean())
    assert_close(task.for_metrics(scaled), targets)
