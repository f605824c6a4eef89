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

from nas.search.prefix_tree import validated
from nas.tasks import regression
from nas.tasks.anomaly import Anomaly
from nas.tasks.classification import Classification, task_of
from nas.tasks.forecasting import Forecasting
from nas.tasks.multilabel import Multilabel
from nas.teacher import _Matched
from nas.train import Training


class Regression:
    """A task of another kind: one number for each sample."""

    primary = "mae"
    outputs = 1

    def loss(self, outputs, targets, smoothing=0.0, reduction="mean"):
        return F.mse_loss(outputs, targets, reduction=reduction)

    def distillation(self, outputs, teacher, temperature=1.0):
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


@pytest.mark.parametrize("task", [Classification(3), Multilabel(), regression.Regression()])
def test_a_teacher_adds_its_part_to_the_loss_and_is_not_saved(task):
    torch.manual_seed(0)
    network, teacher = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    y = y if isinstance(task, Classification) else F.one_hot(y, 3).float()
    task.outputs = 3
    module = Training(
        network, partial(torch.optim.SGD, lr=0.1), epochs=1, task=task, teacher=teacher,
        temperature=3.0, teacher_weight=0.25,
    )  # fmt: skip
    module.log_dict = lambda *_, **__: None
    module._trainer = SimpleNamespace(current_epoch=0)
    module.on_fit_start()
    with torch.no_grad():
        outputs, taught = network(x), teacher[0](x)
    if isinstance(task, Classification):
        soft = -((taught / 3).softmax(1) * (outputs / 3).log_softmax(1)).sum(1).mean()
    elif isinstance(task, Multilabel):
        p, q = (taught / 3).sigmoid(), (outputs / 3).sigmoid()
        soft = -(p * q.log() + (1 - p) * (1 - q).log()).mean()
    else:
        soft = (outputs - taught).square().mean() / 9
    loss = module.training_step((x, y), 0)
    assert_close(loss, 0.75 * task.loss(outputs, y) + 0.25 * 9 * soft)
    loss.backward()
    assert network.weight.grad.abs().sum() > 0
    assert teacher[0].weight.grad is None
    assert set(module.state_dict()) == {"network.weight", "network.bias"}


def test_a_teacher_of_another_run_gets_and_gives_the_units_of_this_one():
    task = regression.Regression()
    task.mean, task.std = torch.tensor([3.0]), torch.tensor([2.0])
    data = SimpleNamespace(task=task, mean=[1.0, 0.0], std=[2.0, 1.0], input_shape=(2, 4))
    known, measured = {"mean": [0.0, 5.0], "std": [1.0, 3.0]}, {"mean": [1.0], "std": [4.0]}
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 1))
    samples = torch.randn(5, 2, 4)

    def normalised(mean, std):
        return (samples - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]

    found = _Matched(network, known, measured, data)(normalised(data.mean, data.std))
    wanted = 4 * network(normalised(**known)) + 1
    assert_close(2 * found + 3, wanted)


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
    assert_close(task.for_metrics(scaled, targets), (targets, targets))


def test_a_forecast_is_held_against_the_last_value_seen():
    windows, steps = torch.randn(30, 3, 8), torch.randn(30, 4, 2) * torch.tensor([3.0, 0.1]) + 5
    task = Forecasting(channels=[2, 0])
    targets, names = task.read(steps, (), windows)
    assert (task.outputs, names[:3]) == (8, ("channel 2 step 1", "channel 0 step 1", names[2]))
    task.fit(targets)
    std = torch.cat([steps, windows[:, [2, 0], -1][:, None]], 1).flatten(0, 1).std(0, correction=0)
    assert_close(task.std, std.repeat(4))
    wrong = torch.randn(30, 4, 2)
    outputs = (steps + wrong).flatten(1).sub(task.mean) / task.std
    assert_close(task.loss(outputs, targets), (wrong / std).abs().mean())
    metrics = task.metrics()
    for part in range(0, 30, 7):
        metrics.update(outputs[part : part + 7], targets[part : part + 7])
    found = metrics.compute()
    naive = (steps - windows[:, [2, 0], -1][:, None]).abs().mean()
    assert_close(found["mae"], wrong.abs().mean())
    assert_close(found["rmse"], wrong.square().mean().sqrt())
    assert_close(found["skill"], 1 - wrong.abs().mean() / naive)


def test_anomalous_samples_are_scored_and_never_learned():
    x, odd = torch.randn(40, 2, 5), torch.arange(40) % 4 == 0
    task = Anomaly()
    targets, names = task.read(odd.long(), (), x)
    assert (task.outputs, names) == (10, ("normal", "anomalous"))
    outputs = torch.randn(40, 10, requires_grad=True)
    batch = task.batch(x, targets)
    loss = task.loss(outputs, batch)
    errors = (outputs - x.flatten(1)).square().mean(1)
    assert_close(loss, errors[~odd].sum() / 40)
    assert_close(task.loss(outputs, batch, reduction="sum"), errors[~odd].sum())
    loss.backward()
    assert torch.equal(outputs.grad.abs().sum(1) == 0, odd)
    metrics = task.metrics()
    for part in range(0, 40, 7):
        metrics.update(outputs.detach()[part : part + 7], batch[part : part + 7])
    above = (errors[odd][:, None] > errors[~odd]).double().mean()
    assert float(metrics.compute()["auroc"]) == pytest.approx(float(above), abs=1e-6)


def test_a_group_is_scored_by_the_mean_of_its_samples():
    sizes = torch.tensor([1, 2, 3, 4, 5, 6, 9, 10])
    x, groups = torch.randn(40, 2, 5), 7 + torch.arange(8).repeat_interleave(sizes)
    odd = groups % 3 == 0
    task = Anomaly()
    targets, _ = task.read(odd.long(), (), x)
    batch = task.batch(x, task.with_groups(targets, groups))
    outputs = torch.randn(40, 10)
    metrics, order = task.metrics(), torch.randperm(40)
    for some in order.split(7):  # a group is in several batches
        metrics.update(outputs[some], batch[some])
    found = metrics.compute()
    errors = (outputs - x.flatten(1)).square().mean(1)
    above = (errors[odd][:, None] > errors[~odd]).double().mean()
    assert float(found["auroc"]) == pytest.approx(float(above), abs=1e-6)
    kinds = torch.arange(7, 15) % 3 == 0
    means = torch.stack([errors[groups == group].mean() for group in range(7, 15)])
    above = (means[kinds][:, None] > means[~kinds]).double().mean()
    assert float(found["group_auroc"]) == pytest.approx(float(above), abs=1e-6)
    assert_close(task.loss(outputs, batch), errors[~odd].sum() / 40)


def test_groups_of_both_kinds_are_not_scored():
    task = Anomaly()
    targets, _ = task.read(torch.arange(40) % 2, (), torch.zeros(40, 1, 4))
    kept = task.with_groups(targets, torch.arange(40) // 4)
    assert torch.equal(kept, targets)
    assert "group_auroc" not in task.metrics()


def test_half_of_the_groups_of_the_test_part_validate():
    task, where = Anomaly(), torch.arange(60)
    targets, _ = task.read((where >= 44).long(), (), torch.zeros(60, 1, 4))
    groups = where // 4
    targets = task.with_groups(targets, groups)
    parts = {"train": where[:20], "val": where[20:24], "test": where[24:]}
    found = task.divide(targets, parts, True)
    assert torch.equal(torch.cat(list(found.values())).sort().values, where)
    val, test = (set(groups[found[part]].tolist()) for part in ("val", "test"))
    assert not val & test
    assert [len({g for g in own if g >= 11}) for own in (val, test)] == [2, 2]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_parts_of_an_anomaly_task(grouped):
    task, where = Anomaly(normal="fine"), torch.arange(60)
    kinds = where % 3  # 1 is fine
    targets, _ = task.read(kinds, ("broken", "fine", "loud"), torch.zeros(60, 1, 4))
    parts = {"train": where[:30], "val": where[30:40], "test": where[40:]}
    found = task.divide(targets, parts, grouped)
    fine = kinds == 1
    assert torch.equal(found["train"], where[:30][fine[:30]])
    assert torch.equal(found["test"], parts["test"])
    kept = parts["val"] if grouped else torch.cat([where[:30][~fine[:30]], parts["val"]])
    assert torch.equal(found["val"], kept)


def test_half_of_the_test_part_validates_where_only_it_has_anomalous_samples():
    task, where = Anomaly(), torch.arange(60)
    targets, _ = task.read((where >= 50).long(), (), torch.zeros(60, 1, 4))
    found = task.divide(
        targets, {"train": where[:30], "val": where[30:40], "test": where[40:]}, False
    )
    assert torch.equal(torch.cat(list(found.values())).sort().values, where)
    assert torch.equal(found["train"], where[:30])
    assert set(range(30, 40)) < set(found["val"].tolist())
    assert [(int((found[p] >= 50).sum()), len(found[p])) for p in ("val", "test")] == [
        (5, 20), (5, 10),
    ]  # fmt: skip
