"""Ending a search before it collapses."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from nas.decision import decisions
from nas.errors import UserError
from nas.search.callbacks import DiscretizationGap, LastCheckpoint
from nas.search.guards import EigenvalueStop, SkipCount, count_taken, dominant_eigenvalue
from nas.supernet.choice import ChoiceBlock

from .test_callbacks import KilledError, KillInEpoch, differences, fit, search

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about tiny runs


def test_the_eigenvalue_is_that_of_the_hessian():
    torch.manual_seed(0)
    a, b = (torch.randn(n, requires_grad=True) for n in (3, 2))
    mix = torch.randn(5, 5)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return (mix @ flat).tanh().square().sum() + flat.pow(4).sum()

    found = dominant_eigenvalue(lambda: loss(torch.cat([a, b])), [a, b], 200, 1e-7)
    values = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(loss, torch.cat([a, b]).detach())
    )
    assert found == pytest.approx(float(values[values.abs().argmax()]), rel=1e-3)


def test_a_flat_loss_has_no_curvature():
    alpha = torch.ones(3, requires_grad=True)
    assert dominant_eigenvalue(lambda: alpha.sum() + 0 * alpha.square().sum(), [alpha]) == 0


def verdict(eigenvalues: list[float], **options: Any) -> tuple[int, str] | None:
    guard = EigenvalueStop(**({"every": 2, "window": 3, "delta": 2, "first": 4} | options))
    guard.eigenvalues = eigenvalues
    return guard._verdict()


def test_the_search_stops_where_the_average_has_risen():
    # Averages around measurements 1..4: 1, 1, 2, 3; the last over that two before is 3.
    rising = [1.0, 1.0, 1.0, 1.0, 4.0, 4.0]
    assert verdict(rising) == (4, "the largest eigenvalue rose from 1 to 3")
    assert verdict(rising[:5]) is None  # 2 over 1, but that one is of epoch 2
    assert verdict(rising[:5], first=2) == (2, "the largest eigenvalue rose from 1 to 2")
    assert verdict(rising, ratio=3.5) is None
    assert verdict([-1.0, -1.0, -1.0, -1.0, -4.0, -4.0]) == verdict(rising)  # as curved
    assert verdict([1.0] * 20) is None
    assert verdict([]) is None


class Steer(pl.Callback):
    """Makes so many of the two decisions take their first option, by epoch."""

    def __init__(self, *counts: int) -> None:
        self.counts = counts

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for i, (_, decision) in enumerate(decisions(pl_module.supernet)):
            first = i < self.counts[trainer.current_epoch]
            slope = 0.01 * trainer.current_epoch
            decision.alpha.data = torch.tensor([1 + slope, 0] if first else [0, 1 + slope])


def test_skips_are_counted_and_the_epoch_before_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = search(alpha_lr=0.0, epochs=6)
    guard = SkipCount(most=1, options=("conv_k1",), first=2)
    trainer = fit(module, Steer(2, 1, 0, 1, 2, 2), guard)

    assert trainer.current_epoch == 5  # epochs 0 to 4; in 0 alphas tell nothing yet
    alphas = [d.alpha.tolist() for _, d in decisions(module.supernet)]
    assert alphas == [pytest.approx([1.03, 0]), pytest.approx([0, 1.03])]
    assert "2 skips, more than 1; the architecture is that of epoch 3" in capsys.readouterr().out


def test_a_skip_inside_what_is_not_taken_does_not_count() -> None:
    def block() -> ChoiceBlock:
        return ChoiceBlock({"skip": nn.Identity(), "conv": nn.Conv1d(2, 2, 1)})

    net = nn.Sequential(ChoiceBlock({"plain": nn.ReLU(), "deep": nn.Sequential(block())}), block())
    assert count_taken(net, ["skip"]) == 1
    net[0].alpha.data = torch.tensor([0.0, 1.0])
    assert count_taken(net, ["skip"]) == 2
    assert count_taken(net, ["skip"], prefix="0.") == 1


GUARDS = {
    "eigenvalue": partial(EigenvalueStop, every=1, window=1, delta=1, ratio=1e9, first=0),
    "skips": partial(SkipCount, most=2),
}


@pytest.mark.parametrize("make", GUARDS.values(), ids=GUARDS)
def test_a_guard_changes_nothing_until_it_stops_and_resumes_with_its_state(
    make: Any, tmp_path: Path
) -> None:
    def run(name: str, *callbacks: pl.Callback, resume: bool = False) -> dict[str, Any]:
        path = tmp_path / name
        module = search()
        try:
            fit(module, *callbacks, LastCheckpoint(path), ckpt=path if resume else None)
        except KilledError:
            return {}
        return torch.load(path, weights_only=True)

    alone = run("alone")
    whole = run("whole", make())
    run("broken", make(), KillInEpoch(1))
    resumed = run("broken", make(), resume=True)
    assert differences(whole["callbacks"], resumed["callbacks"]) == []
    assert differences(whole["state_dict"], resumed["state_dict"]) == []
    assert differences(whole["state_dict"], alone["state_dict"]) == []
    (state,) = whole["callbacks"].values()
    assert len(state["history"]) == 3
    assert len(state.get("eigenvalues", [0.0] * 3)) == 3


def test_a_search_that_a_guard_ended_does_not_go_on(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for _ in range(2):
        module, guard = search(epochs=6), SkipCount(most=0, options=("conv_k1", "conv_k3"), first=0)
        fit(module, guard, LastCheckpoint(path), ckpt=path if path.exists() else None)
        assert torch.load(path, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (partial(EigenvalueStop, window=4), "window=4 must be odd"),
        (partial(EigenvalueStop, every=0), "every=0 must be at least 1"),
        (partial(EigenvalueStop, ratio=0.75), "ratio=0.75 must be above 1"),
        (partial(SkipCount, most=-1), "must be at least 0"),
    ],
)
def test_a_senseless_guard_is_refused(make: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_the_gap_is_measured_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    plain, watched = search(), search()
    fit(plain)
    trainer = fit(watched, DiscretizationGap())
    assert differences(dict(plain.state_dict()), dict(watched.state_dict())) == []
    metrics = trainer.callback_metrics
    assert 0 <= float(metrics["argmax_val_acc"]) <= 1
    assert float(metrics["argmax_val_loss"]) != float(metrics["supernet_val_loss"])


def test_the_gap_of_a_decided_search_is_that_of_the_statistics_alone() -> None:
    module = search(epochs=1, alpha_lr=0.0)
    for _, decision in decisions(module.supernet):
        decision.alpha.data = torch.tensor([-200.0, 200.0])
    metrics = fit(module, DiscretizationGap()).callback_metrics
    assert float(metrics["argmax_val_acc"]) == pytest.approx(
        float(metrics["supernet_val_acc"]), abs=0.25
    )
