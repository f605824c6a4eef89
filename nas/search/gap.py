"""How much worse the best network is than the supernet it is taken from."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from nas.decision import apply, free
from nas.discretization import arch_of
from nas.recalibrate import kept_statistics
from nas.train import accuracy, shared


class DiscretizationGap(pl.Callback):
    """Evaluates the best architecture with the supernet's weights on the validation batches.

    Logs ``argmax_val_acc`` and ``argmax_val_loss`` beside ``supernet_val_acc``; TensorBoard also
    shows the difference, ``search/gap``. BatchNorm normalises with each batch's own statistics: the
    running ones are of the mixture, and would be most of what is measured. Nothing is measured
    while warming up, when alphas say nothing.
    """

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if pl_module.warming_up:
            return
        (x, labels), supernet = batch, pl_module.supernet
        norms = [m for m in supernet.modules() if isinstance(m, _BatchNorm) and not m.training]
        with kept_statistics(supernet), torch.no_grad():
            apply(supernet, arch_of(supernet))
            for norm in norms:
                norm.train()
            logits = supernet(x)
        for norm in norms:
            norm.eval()
        free(supernet)
        values = {
            "argmax_val_loss": F.cross_entropy(logits, labels),
            "argmax_val_acc": accuracy(logits, labels),
        }
        options = {"on_step": False, "on_epoch": True, "logger": False, "sync_dist": True}
        pl_module.log_dict(values, batch_size=shared(len(labels)), **options)
