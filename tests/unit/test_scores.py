"""Scores of an epoch: those of all its samples, whatever the batches, and logged once."""

from functools import partial

import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from nas.tasks import metrics
from nas.tasks.classification import Classification
from nas.train import Scores, Training


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


class _Logged(Training):
    """Counts what is logged before the epoch's last batch."""

    early = 0

    def log(self, *args, **options):
        self.early += not self.trainer.is_last_batch
        super().log(*args, **options)


def test_no_step_logs_and_callbacks_know_the_scores_at_the_end_of_an_epoch():
    known = []

    class Reads(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            known.append({n: float(v) for n, v in trainer.callback_metrics.items()})

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
