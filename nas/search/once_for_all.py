"""Once-for-All: one supernet trained from large to small, then its networks ranked."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nas.arch import Arch
from nas.cost.base import Expected
from nas.decision import split_parameters
from nas.discretization import discretize
from nas.schedule import warmup_cosine
from nas.search.by_trials import TrialSearch
from nas.search.oneshot import OneShot
from nas.search.shrinking import Phase, Shrinking, read_phases
from nas.supernet.elastic_ops import sort_channels
from nas.train import Batch, OptimizerFactory
from nas.values import NonNegative, Seed, Share, checked


@checked("search")
class OnceForAll(OneShot):
    """Progressive shrinking with distillation (Cai et al. 2020).

    Phases as in `nas.search.shrinking`. At the start of each the learning rate starts anew, without
    momentum. Where the first phase that opens anything starts, the largest network becomes the
    teacher: a copy, frozen, whose BatchNorms go on using batch statistics as theirs do. Before
    phases of elastic widths, channels are put in order of importance.

    Args:
        supernet, costs, ranking, optimizer, clip, label_smoothing, seed: see `OneShot`.
        phases: mappings with the keys of `nas.search.shrinking.Phase`.
        distill: weight of the teacher's part of the loss; 0: no teacher.
        cost: that tells the largest of the options that have no order.

    Raises:
        UserError: a phase that cannot be, or that opens what the space does not decide.
    """

    def __init__(
        self,
        supernet: nn.Module,
        costs: Mapping[str, Expected],
        phases: Sequence[Mapping[str, Any]],
        ranking: Callable[..., TrialSearch],
        optimizer: OptimizerFactory,
        distill: NonNegative = 1.0,
        cost: str = "macs",
        clip: NonNegative = 5.0,
        label_smoothing: Share = 0.0,
        seed: Seed = 0,
    ) -> None:
        self.shrinking = Shrinking(read_phases(phases), distill, cost)
        super().__init__(
            supernet,
            costs,
            self.shrinking,
            ranking,
            optimizer,
            epochs=sum(phase.epochs for phase in self.shrinking.phases),
            clip=clip,
            label_smoothing=label_smoothing,
            seed=seed,
        )
        # From the start, so that every checkpoint has a place for its weights.
        self.teacher = self._largest_network() if distill else None

    @property
    def starts(self) -> list[int]:
        """The first epoch of each phase, and the number of all epochs."""
        return list(accumulate((phase.epochs for phase in self.shrinking.phases), initial=0))

    def configure_optimizers(self) -> Any:
        own = [p for p in split_parameters(self.supernet).weights if p.requires_grad]
        # No weight decay on biases and norms, which are vectors (their Appendix).
        groups: list[dict[str, Any]] = [
            {"params": [p for p in own if p.ndim > 1]},
            {"params": [p for p in own if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer_factory(groups)  # type: ignore[arg-type]
        steps = max(1, int(self.trainer.estimated_stepping_batches) // self.epochs)
        return [optimizer], [LambdaLR(optimizer, self._rate(steps))]

    def _rate(self, steps: int) -> Callable[[int], float]:
        """Step -> factor on the rate, for `steps` steps in an epoch: one cosine for each phase."""
        starts, phases = self.starts, self.shrinking.phases
        cosines = [warmup_cosine(p.warmup_epochs * steps, p.epochs * steps) for p in phases]

        def factor(step: int) -> float:
            index = self._index(step // steps)
            return phases[index].lr * cosines[index](step - starts[index] * steps)

        return factor

    def _index(self, epoch: int) -> int:
        passed = [index for index, start in enumerate(self.starts[:-1]) if start <= epoch]
        return passed[-1]

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        index = self._index(self.current_epoch)
        self.shrinking.phase = self.shrinking.phases[index]
        if index and self.current_epoch == self.starts[index]:
            self._begin(self.shrinking.phases[index], self.shrinking.phases[index - 1])

    def _begin(self, phase: Phase, before: Phase) -> None:
        if phase.open and not before.open and self.teacher is not None:
            self.teacher.load_state_dict(self._largest_network().state_dict())
        if {"expand", "channels"} & phase.open.keys():
            sort_channels(self.supernet)
        # Momentum of channels that have moved is of no use, nor that of a rate long past.
        self.trainer.optimizers[0].state.clear()

    def _largest_network(self) -> nn.Module:
        name = str(getattr(self.supernet, "name", type(self.supernet).__name__))
        network = discretize(self.supernet, Arch(name, self.shrinking.largest))
        return network.requires_grad_(False).train()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.shrinking.taught = None
        if self.shrinking.phase.open and self.teacher is not None:
            with torch.no_grad():
                self.shrinking.taught = self.teacher(batch[0])
        super().training_step(batch, batch_idx)
