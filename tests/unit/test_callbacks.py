"""Resuming a run exactly, stopping it early, and what is written to TensorBoard."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from math import log
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from nas.cost.analytic import Params
from nas.cost.expected import ExpectedCost
from nas.data import digits
from nas.decision import decisions
from nas.errors import UserError
from nas.objective import AugmentedLagrangian, Constrained, Objective, Plain
from nas.search.callbacks import LastCheckpoint
from nas.search.darts import BilevelSearch, SingleLevelSearch
from nas.search.differentiable import DifferentiableSearch
from nas.search.guards import StopWhenStable
from nas.search.path_sampling import StrictFairness
from nas.search.proxyless import ProxylessSearch
from nas.search.reinforce import CostAwareAccuracy, ReinforceSearch
from nas.search.telemetry import (
    Block,
    SearchTelemetry,
    TrainingTelemetry,
    colour,
    draw_block,
    draw_overview,
)
from nas.supernet.choice import ChoiceBlock
from nas.supernet.relax import exponential, softmax, straight_through
from nas.train import Training

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about tiny runs
EPOCHS = 3
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
Module = DifferentiableSearch | Training


class KilledError(RuntimeError):
    pass


class KillInEpoch(pl.Callback):
    """Ends the run in the middle of an epoch, leaving what is on disk as it is."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.current_epoch == self.epoch:
            raise KilledError


def supernet(relax: Callable[..., Any] = softmax, gumbel: bool = False) -> nn.Module:
    torch.manual_seed(0)
    blocks = [
        ChoiceBlock(
            {f"conv_k{k}": nn.Conv2d(c, 4, k, padding=k // 2) for k in (1, 3)}, relax, gumbel
        )
        for c in (1, 4)
    ]
    layers = [blocks[0], nn.BatchNorm2d(4), nn.Dropout2d(0.2), blocks[1]]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def search(
    kind: Callable[..., DifferentiableSearch] = BilevelSearch,
    relax: Callable[..., Any] = softmax,
    gumbel: bool = False,
    warmup: int = 0,
    alpha_lr: float = 0.1,
    epochs: int = EPOCHS,
    objective: Callable[[], Objective] = Plain,
    budget: float | None = None,  # in parts of the mean network
) -> DifferentiableSearch:
    model = supernet(relax, gumbel)
    cost = ExpectedCost(model, Params(), (1, 8, 8))
    return kind(
        supernet=model,
        costs={"params": cost},
        objective=objective(),
        weight_optimizer=SGD,
        alpha_optimizer=partial(torch.optim.Adam, lr=alpha_lr),
        epochs=epochs,
        warmup_epochs=warmup,
        temperature=exponential(5, 0.5),
        targets={"params": budget * float(cost.mean())} if budget else None,
    )


def training() -> Training:
    return Training(supernet(), SGD, EPOCHS, warmup_epochs=1, label_smoothing=0.1, clip=1.0)


def fit(module: Module, *callbacks: pl.Callback, ckpt: Path | None = None, **options: Any) -> Any:
    data = digits(limit=100, batch_size=16, augment="crop")
    loaders = module.loaders(data) if isinstance(module, DifferentiableSearch) else None
    saving = any(isinstance(callback, Checkpoint) for callback in callbacks)
    trainer = pl.Trainer(
        max_epochs=module.epochs,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **({"logger": False, "enable_checkpointing": saving} | options),
    )
    trainer.fit(
        module,
        loaders or data.train_dataloader(),
        data.val_dataloader(),
        ckpt_path=ckpt,
        weights_only=True,
    )
    return trainer


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two nested structures differ, in any bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{at}/{key}")]
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{at}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [at]
    return [] if type(a) is type(b) and a == b else [f"{at}: {a!r} != {b!r}"]


RUNS: dict[str, Callable[[], Module]] = {
    "training": training,
    "bilevel, warm-up": partial(search, BilevelSearch, warmup=1),
} | {
    f"{kind.__name__}, {relax.__name__}, gumbel={gumbel}": partial(search, kind, relax, gumbel)
    for kind in (BilevelSearch, SingleLevelSearch)
    for relax, gumbel in ((softmax, False), (softmax, True), (straight_through, True))
}
RUNS |= {
    f"{kind.__name__}, {objective.__name__}": partial(
        search, kind, gumbel=True, warmup=1, objective=objective, budget=0.8
    )
    for kind, objective in (
        (BilevelSearch, AugmentedLagrangian),
        (SingleLevelSearch, Constrained),
    )
}
RUNS |= {
    "two paths": partial(search, partial(ProxylessSearch, alpha_every=3), warmup=1),
    "exact, with a budget": partial(
        search, partial(ProxylessSearch, exact=True), objective=AugmentedLagrangian, budget=0.8
    ),
    "reinforce": partial(search, partial(ReinforceSearch, alpha_every=2, samples=3)),
    "fair warm-up, frozen": lambda: search(
        partial(BilevelSearch, path_sampling=StrictFairness(), freeze_weights=True), warmup=2
    ),
    "reinforce, reward, frozen": partial(
        search,
        partial(ReinforceSearch, CostAwareAccuracy(), alpha_every=2, freeze_weights=True),
        warmup=1,
    ),
}


@pytest.mark.parametrize("make", RUNS.values(), ids=list(RUNS))
def test_killed_in_each_epoch_and_resumed_a_run_ends_bit_for_bit_as_an_unbroken_one(
    make: Callable[[], Module], tmp_path: Path
) -> None:
    def run(path: Path, *more: pl.Callback, ckpt: Path | None = None) -> None:
        module = make()
        telemetry = [SearchTelemetry()] if isinstance(module, DifferentiableSearch) else []
        fit(module, *telemetry, LastCheckpoint(path), *more, ckpt=ckpt)

    whole, broken = tmp_path / "whole.ckpt", tmp_path / "broken.ckpt"
    run(whole)
    for epoch in range(1, EPOCHS):
        with pytest.raises(KilledError):
            run(broken, KillInEpoch(epoch), ckpt=broken if broken.exists() else None)
        assert torch.load(broken, weights_only=True)["epoch"] == epoch - 1
    run(broken, ckpt=broken)

    states = [torch.load(path, weights_only=True) for path in (whole, broken)]
    assert states[0]["epoch"] == EPOCHS - 1
    assert differences(*states) == []


def test_checkpoints_wait_for_their_seconds_and_a_run_broken_meanwhile_ends_as_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LastCheckpoint, "seconds", 1000.0)
    whole, broken = tmp_path / "whole.ckpt", tmp_path / "broken.ckpt"
    fit(search(), LastCheckpoint(whole))
    with pytest.raises(KilledError):
        fit(search(), LastCheckpoint(broken), KillInEpoch(EPOCHS - 1))
    assert torch.load(broken, weights_only=True)["epoch"] == 0  # the first of a session
    fit(search(), LastCheckpoint(broken), ckpt=broken)
    states = [torch.load(path, weights_only=True) for path in (whole, broken)]
    assert states[0]["epoch"] == EPOCHS - 1
    assert differences(*states) == []

    stable = tmp_path / "stable.ckpt"
    trainer = fit(search(alpha_lr=0.0, epochs=9), StopWhenStable(2), LastCheckpoint(stable))
    assert trainer.current_epoch < 9
    assert torch.load(stable, weights_only=True)["epoch"] == trainer.current_epoch - 1


def test_a_crash_while_saving_leaves_the_last_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, path = os.fsync, tmp_path / "last.ckpt"

    def crash(descriptor: int) -> None:
        if path.exists():
            os.truncate(descriptor, 100)
            raise KilledError
        sync(descriptor)

    monkeypatch.setattr("nas.artifacts.files.os.fsync", crash)
    with pytest.raises(KilledError):
        fit(search(), LastCheckpoint(path))

    assert torch.load(path, weights_only=True)["epoch"] == 0


def test_a_search_stops_once_its_architecture_was_stable_for_long_enough_after_warm_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = search(warmup=2, alpha_lr=0.0, epochs=9)
    trainer = fit(module, StopWhenStable(patience=3))

    # Warm-up 0, 1; first architecture in 2; unchanged in 3, 4, 5.
    assert trainer.current_epoch == 6
    assert "not changed for 3 epochs" in capsys.readouterr().out


def test_a_stable_search_goes_on_when_that_is_not_asked_for() -> None:
    assert fit(search(alpha_lr=0.0), StopWhenStable(None)).current_epoch == EPOCHS


def test_a_search_whose_architecture_changes_goes_on() -> None:
    class Flip(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            _, decision = next(decisions(pl_module.supernet))
            decision.alpha.data = torch.eye(2)[trainer.current_epoch % 2]

    assert fit(search(alpha_lr=0.0), Flip(), StopWhenStable(1)).current_epoch == EPOCHS


def test_a_search_that_had_stopped_does_not_go_on_when_resumed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    make = partial(search, alpha_lr=0.0, epochs=9)
    fit(make(), StopWhenStable(2), LastCheckpoint(path))
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 2

    module = make()
    fit(module, StopWhenStable(2), LastCheckpoint(path), ckpt=path)

    assert torch.load(path, weights_only=True)["epoch"] == 2
    assert differences(dict(module.state_dict()), dict(state["state_dict"])) == []


def test_a_patience_of_no_epochs_is_refused() -> None:
    with pytest.raises(UserError, match="stable_epochs=0 must be at least 1"):
        StopWhenStable(0)


def written(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0}).Reload()


def series(events: EventAccumulator, tag: str) -> list[float]:
    found = events.Scalars(tag)
    assert [event.step for event in found] == list(range(len(found)))
    return [event.value for event in found]


def test_search_telemetry_writes_each_epoch_once(tmp_path: Path) -> None:
    module = search(warmup=1)
    trainer = fit(module, SearchTelemetry(), logger=TensorBoardLogger(tmp_path, "", ""))

    events = written(tmp_path)
    assert set(events.Tags()["scalars"]) >= {
        *("loss/train", "loss/alpha", "loss/supernet_val"),
        *("accuracy/train", "accuracy/alpha", "accuracy/supernet_val"),
        *("cost/params", "cost/params_relative", "lr/weights", "lr/alphas"),
        *("search/tau", "search/entropy", "search/max_probability"),
    }
    cost = series(events, "cost/params")
    assert len(cost) == EPOCHS
    assert cost[-1] == pytest.approx(float(module.costs["params"]()))
    assert series(events, "cost/params_relative") == pytest.approx([c / cost[0] for c in cost])
    assert series(events, "lr/weights")[0] == pytest.approx(0.1)
    assert series(events, "lr/alphas") == pytest.approx([0.1] * EPOCHS)
    last = 1 - 1 / trainer.num_training_batches  # of the last step, in parts of an epoch
    annealed = [module.temperature((epoch + last) / (EPOCHS - 1)) for epoch in range(EPOCHS - 1)]
    assert series(events, "search/tau") == pytest.approx([5.0, *annealed])


def test_the_objectives_state_is_written_and_follows_the_budget(tmp_path: Path) -> None:
    module = search(warmup=1, objective=AugmentedLagrangian, budget=0.8)
    fit(module, SearchTelemetry(), logger=TensorBoardLogger(tmp_path, "", ""))

    events = written(tmp_path)
    state = cast(Objective, module.objective).state()
    assert set(state) == {f"{name}/params" for name in ("multiplier", "strength", "budget")}
    for name, value in state.items():
        assert series(events, f"objective/{name}")[-1] == pytest.approx(value)
    assert series(events, "objective/budget/params")[-1] == pytest.approx(
        0.8 * float(module.costs["params"].mean())
    )


class Recording(Plain):
    """Keeps what the search tells it."""

    def __init__(self) -> None:
        super().__init__(0.3)
        self.told: list[tuple[float, float, float]] = []

    def update(self, costs: Mapping[str, torch.Tensor], progress: float) -> None:
        self.told.append((progress, float(costs["params"]), costs["params"].requires_grad))


@pytest.mark.parametrize(
    ("epochs", "warmup", "updates"), [(2, 1, 5), (7, 2, 20), (22, 0, 22)], ids=str
)
def test_updates_are_spread_evenly_and_at_least_once_an_epoch(
    epochs: int, warmup: int, updates: int
) -> None:
    module = search(epochs=epochs, warmup=warmup, objective=Recording)
    assert fit(module).num_training_batches == 5
    progress = [told for told, _, _ in cast(Recording, module.objective).told]
    # No more often than there are steps.
    assert len(progress) == updates
    assert progress[-1] == pytest.approx(1)
    assert np.diff([0, *progress]).max() <= 0.2 + 1e-9
    assert np.diff([0, *progress]).min() > 0


@pytest.mark.parametrize("kind", [BilevelSearch, SingleLevelSearch])
@pytest.mark.parametrize("relax", [softmax, straight_through])
def test_costs_are_told_and_logged_without_the_noise_of_the_last_draw(
    kind: type[DifferentiableSearch], relax: Callable[..., Any]
) -> None:
    module = search(kind, relax, gumbel=True, objective=Recording)
    costs: list[float] = []

    class EachStep(pl.Callback):
        def on_train_batch_end(self, *_: object) -> None:
            theta = {n: relax(d.alpha / d.tau).double() for n, d in decisions(module.supernet)}
            costs.append(float(module.costs["params"].at(theta)))

    trainer = fit(module, EachStep(), limit_val_batches=0)
    told = cast(Recording, module.objective).told
    assert [cost for _, cost, _ in told] == pytest.approx(costs)
    assert not any(grad for _, _, grad in told)
    assert float(trainer.callback_metrics["cost_params"]) == pytest.approx(costs[-1])


@pytest.mark.parametrize("relax", [softmax, straight_through])
def test_a_budget_is_held_by_the_distribution_not_by_its_draws(relax: Callable[..., Any]) -> None:
    seen: dict[str, list[float]] = {"Plain": [], "AugmentedLagrangian": []}
    for kind in (Plain, AugmentedLagrangian):

        class Seeing(kind):  # type: ignore[misc, valid-type]
            def forward(self, task: Any, costs: Any) -> Any:
                seen[type(self).__mro__[1].__name__].append(float(costs["params"].detach()))
                return super().forward(task, costs)

        fit(search(relax=relax, gumbel=True, alpha_lr=0, objective=Seeing, budget=2.0, epochs=1))
    assert len(set(seen["Plain"])) > 1
    assert len(set(seen["AugmentedLagrangian"])) == 1


def test_a_missing_budget_is_found_before_training() -> None:
    with pytest.raises(UserError, match=r"budget\.params="):
        search(objective=AugmentedLagrangian)


def test_entropy_and_probability_are_those_of_the_alphas(tmp_path: Path) -> None:
    module = search(warmup=1)
    fit(module, SearchTelemetry(), logger=TensorBoardLogger(tmp_path, "", ""))

    events = written(tmp_path)
    p = torch.stack([d.alpha.softmax(-1) for _, d in decisions(module.supernet)]).detach()
    entropy = -(p * p.log()).sum(1).mean() / log(2)
    assert series(events, "search/entropy")[0] == pytest.approx(1.0)
    assert series(events, "search/entropy")[-1] == pytest.approx(float(entropy))
    assert series(events, "search/max_probability")[-1] == pytest.approx(float(p.amax(1).mean()))


def test_heat_maps_are_drawn_about_eight_times_and_at_the_end(tmp_path: Path) -> None:
    module = search(epochs=19)
    fit(module, SearchTelemetry(), logger=TensorBoardLogger(tmp_path, "", ""))

    events = written(tmp_path)
    assert set(events.Tags()["images"]) == {"theta/overview", "theta/0", "theta/3"}
    for tag in events.Tags()["images"]:
        assert [image.step for image in events.Images(tag)] == [2, 5, 8, 11, 14, 17, 18]


def test_a_resumed_search_draws_its_whole_history(tmp_path: Path) -> None:
    path, telemetry = tmp_path / "last.ckpt", SearchTelemetry()
    with pytest.raises(KilledError):
        fit(search(), SearchTelemetry(), LastCheckpoint(path), KillInEpoch(2))
    module = search()
    fit(module, telemetry, ckpt=path)

    block = telemetry.blocks(module.supernet)[1]
    assert (block.name, list(block.options)) == ("3", ["conv_k1", "conv_k3"])
    assert block.probabilities.shape == (EPOCHS, 2)
    last = module.supernet[3].alpha.softmax(-1).tolist()
    assert block.probabilities[-1] == pytest.approx(last)


def test_training_telemetry_writes_under_finetune(tmp_path: Path) -> None:
    fit(training(), TrainingTelemetry(), logger=TensorBoardLogger(tmp_path, "", ""))

    events = written(tmp_path)
    for name in ("loss_train", "loss_val", "accuracy_train", "accuracy_val", "lr"):
        assert len(series(events, f"finetune/{name}")) == EPOCHS


@pytest.mark.parametrize("logger", [lambda path: False, CSVLogger], ids=["none", "CSV"])
def test_telemetry_without_tensorboard_is_silent(
    logger: Callable[[Path], Any], tmp_path: Path
) -> None:
    fit(search(), SearchTelemetry(), logger=logger(tmp_path))
    fit(training(), TrainingTelemetry(), logger=logger(tmp_path))
    assert not list(tmp_path.rglob("events*"))


def test_a_heat_map_has_the_colours_of_the_probabilities() -> None:
    probabilities = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])
    image = np.asarray(draw_block(Block("block", ["a", "b"], probabilities)))

    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        assert (image == colour(np.array(value))).all(-1).sum() > 500
    brightness = colour(np.linspace(0, 1, 50)).astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) > 0).all()


@pytest.mark.parametrize("epochs", [1, 2, 1000])
def test_heat_maps_take_any_length_and_long_names(epochs: int) -> None:
    blocks = [
        Block("a.very.long.path." * 5 + str(k), ["option" * 9] * k, np.full((epochs, k), 1 / k))
        for k in (1, 2, 9)
    ]
    widths = {draw_block(block).width for block in blocks} | {draw_overview(blocks).width}
    assert len(widths) == 1
    assert draw_overview(blocks).height > draw_overview(blocks[:2]).height
