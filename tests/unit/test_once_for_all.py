"""Progressive shrinking: its phases, what it draws, its teacher, and that it resumes to the bit."""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nas.arch import Arch
from nas.cost.analytic import MACs
from nas.cost.expected import ExpectedCost
from nas.cost.trace import Trace, trace
from nas.decision import decisions
from nas.discretization import discretize
from nas.errors import UserError
from nas.search.callbacks import LastCheckpoint
from nas.search.once_for_all import OnceForAll, Shrinking, kind_of, read_phases
from nas.spaces.staged import StagedSpace

SHAPE = (1, 6, 6)
PHASES = [
    {"epochs": 1},
    {"epochs": 1, "open": {"kernel": "all", "ops": "all"}, "warmup_epochs": 0.5},
    {"epochs": 2, "open": {"kernel": 2, "depth": 1, "expand": 2}, "subnets": 2, "lr": 0.3},
]


def space() -> nn.Module:
    torch.manual_seed(0)
    stages = [
        {"ops": ["elastic_k7_e4"], "channels": 4, "depth": [1, 2]},
        {"ops": ["elastic_k3_e6", "conv_k3"], "channels": 6, "stride": 2},
    ]
    return StagedSpace(SHAPE, 3, stages, stem={"channels": 4}, name="tiny")


@cache
def traced() -> Trace:
    return trace(space(), SHAPE)


def macs(supernet: nn.Module) -> dict[str, ExpectedCost]:
    return {"macs": ExpectedCost(supernet, MACs(), traced())}


def search(phases: list[dict[str, object]] = PHASES, **options: object) -> OnceForAll:
    supernet = space()
    costs = macs(supernet)
    sgd = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)  # noqa: E731
    return OnceForAll(supernet, costs, phases, lambda **_: None, sgd, **options)


def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, *SHAPE, generator=generator)
    y = torch.randint(3, (12,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=6)


class Copies(LastCheckpoint):
    """Keeps the checkpoint of every epoch."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.path = self.path.with_name(f"{trainer.current_epoch}.ckpt")
        super().on_train_epoch_end(trainer, pl_module)


def fit(module: OnceForAll, *callbacks: pl.Callback, checkpoint: Path | None = None) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(c, LastCheckpoint) for c in callbacks)
    trainer = pl.Trainer(
        max_epochs=module.epochs, accelerator="cpu", callbacks=list(callbacks), **quiet
    )
    trainer.fit(module, loader(), ckpt_path=checkpoint, weights_only=True)


def test_resumed_after_any_epoch_it_ends_as_if_unbroken(tmp_path):
    whole = search()
    fit(whole, Copies(tmp_path / "x.ckpt"))
    end = torch.load(tmp_path / "3.ckpt", weights_only=True)
    for epoch in (0, 2):  # at the start of a phase, and within one
        resumed = search()
        fit(resumed, Copies(tmp_path / "again" / "x.ckpt"), checkpoint=tmp_path / f"{epoch}.ckpt")
        again = torch.load(tmp_path / "again" / "3.ckpt", weights_only=True)
        for key in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert flat(again[key]) == flat(end[key])


def flat(value: object) -> list[object]:
    """Every number in a nested state, tensors as lists."""
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.ndim else [value.item()]
    if isinstance(value, dict):
        return [item for key in value for item in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [item for entry in value for item in flat(entry)]
    return [value]


class Watch(pl.Callback):
    """What each step has left chosen and the rate it had; the teacher at each epoch's end."""

    def __init__(self) -> None:
        self.seen: dict[int, list[dict[str, object]]] = {}
        self.rates: list[float] = []
        self.teachers: list[dict[str, torch.Tensor]] = []
        self.largest: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        taken = {n: d.best() for n, d in decisions(pl_module.supernet)}
        self.seen.setdefault(trainer.current_epoch, []).append(taken)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.teachers.append(copy.deepcopy(dict(pl_module.teacher.named_parameters())))
        net = discretize(pl_module.supernet, Arch("tiny", pl_module.shrinking.largest))
        self.largest.append(dict(net.named_parameters()))


def test_phases_open_their_decisions_and_the_teacher_is_the_first_phases_network():
    module, watch = search(), Watch()
    fit(module, watch)
    largest = module.shrinking.largest
    kinds = {name: kind_of(name, d) for name, d in decisions(module.supernet)}
    assert set(kinds.values()) == {"kernel", "depth", "expand", "ops"}
    assert all(taken == largest for taken in watch.seen[0])
    for epoch, opened in ((1, {"kernel", "ops"}), (2, {"kernel", "expand"})):
        for taken in watch.seen[epoch]:
            assert {kinds[n] for n in taken if taken[n] != largest[n]} <= opened
    for teacher in watch.teachers[1:]:
        assert all(torch.equal(p, watch.largest[0][name]) for name, p in teacher.items())
    assert watch.rates[0] == pytest.approx(0.1)
    assert watch.rates[2] == pytest.approx(0.05)  # half-way through the warm-up
    assert watch.rates[4] == pytest.approx(0.03)
    assert not any(p.requires_grad for p in module.teacher.parameters())


def draws(phase: dict[str, object], count: int = 40) -> Iterator[dict[str, object]]:
    shrinking, net = Shrinking(read_phases([phase])), space()
    shrinking.start(net, macs(net))
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        for _ in shrinking.paths(lambda logits: logits.sum(), generator):
            yield {n: d.best() for n, d in decisions(net)}


def test_a_phase_draws_from_as_many_of_the_largest_options_as_it_says():
    drawn = list(draws({"epochs": 1, "open": {"kernel": 2, "expand": "all"}, "subnets": 3}))
    assert len(drawn) == 3 * 40
    seen = {name: {taken[name] for taken in drawn} for name in drawn[0]}
    assert seen["blocks.s0.depth"] == {2}
    assert seen["blocks.s0.blocks.b0.kernel"] == {5, 7}
    assert seen["blocks.s0.blocks.b1.expand"] == {3, 4}


def test_a_student_learns_from_labels_and_teacher():
    shrinking, net = Shrinking(read_phases([{"epochs": 1, "open": {"kernel": 2}}]), 0.5), space()
    shrinking.start(net, macs(net))
    shrinking.taught = torch.tensor([[2.0, 0.0, 1.0]])
    logits = torch.tensor([[0.3, 0.1, 0.2]])
    (loss,) = shrinking.paths(lambda _: torch.tensor(7.0), torch.Generator())
    soft = -(shrinking.taught.softmax(-1) * logits.log_softmax(-1)).sum()
    assert loss(logits) == pytest.approx(7.0 + 0.5 * float(soft))


@pytest.mark.parametrize(
    ("phases", "says"),
    [
        ([], "at least one phase"),
        ([{"open": {}}], "lacks the key 'epochs'"),
        ([{"epochs": 1, "subnet": 2}], "did you mean 'subnets'"),
        ([{"epochs": 0}], r"phases\[0\].epochs=0 must be at least 1"),
        ([{"epochs": 1, "open": {"kernels": 1}}], "did you mean 'kernel'"),
        ([{"epochs": 1, "open": {"kernel": 0}}], "open={'kernel': 0} must be at least 1"),
        ([{"epochs": 1, "lr": 0}], "must be above 0"),
        ([{"epochs": 1, "open": {"resolution": 2}}], "no such decision"),
    ],
)
def test_phases_that_cannot_be_are_refused(phases, says):
    with pytest.raises(UserError, match=says):
        search(phases)
