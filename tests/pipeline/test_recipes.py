"""Every recipe of the DARTS family runs: two steps of its search, in its own space, made tiny."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from nas.config.check import check
from nas.config.compose import compose_config
from nas.config.help import config_dir
from nas.data import digits
from nas.decision import split_parameters
from nas.discretization import arch_of, discretize
from nas.search.callbacks import DiscretizationGap
from nas.verbs import components_of

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about tiny runs

FAMILY = [
    path.stem
    for path in sorted((config_dir() / "experiment").glob("*.yaml"))
    if path.stem == "darts" or "- darts\n" in path.read_text(encoding="utf-8")
]
SMALL = ["data=digits", "space.channels=4", "space.cells=1", "trainer.enable_progress_bar=false"]


def made(*words: str) -> tuple[pl.LightningModule, nn.Module]:
    """The search that the configuration describes, without costs, and its supernet."""
    config = compose_config([*SMALL, *words])
    check(config)
    made = components_of(config)
    torch.manual_seed(0)
    supernet = made["make_supernet"](input_shape=(1, 8, 8), num_outputs=10)
    made["relax"](supernet)
    search = made["search"](
        supernet=supernet,
        costs={},
        objective=made["objective"],
        temperature=made["relax"].temperature,
        seed=0,
    )
    search.warmup_epochs = 0
    return search, supernet


def two_steps(search: pl.LightningModule, **options: object) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        limit_train_batches=2,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = digits(limit=100, batch_size=16, val_fraction=0.5)
    trainer.fit(search, search.loaders(data), data.val_dataloader())
    return trainer


def test_the_family_is_found() -> None:
    assert set(FAMILY) >= {
        *("darts", "darts_second_order", "darts_minus", "drnas"),
        *("fair_darts", "pc_darts", "sdarts", "snas"),
    }


@pytest.mark.parametrize("recipe", [*FAMILY, "sdarts search.perturbation.kind=ascent"])
def test_a_recipe_trains_weights_and_alphas_and_gives_a_network(recipe: str) -> None:
    name, *more = recipe.split()
    search, supernet = made(f"+experiment={name}", *more)
    weights, alphas = split_parameters(supernet)
    before = [p.detach().clone() for p in (*weights, *alphas)]

    trainer = two_steps(search, callbacks=[DiscretizationGap()])

    moved = [not torch.equal(p, old) for p, old in zip((*weights, *alphas), before, strict=True)]
    assert all(moved[len(weights) :])
    assert sum(moved[: len(weights)]) > len(weights) / 2
    assert all(p.isfinite().all() for p in (*weights, *alphas))
    assert all(p.requires_grad for p in (*weights, *alphas))
    assert 0 <= float(trainer.callback_metrics["argmax_val_acc"]) <= 1
    assert discretize(supernet, arch_of(supernet)).eval()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("recipe", ["darts", "darts_second_order", "sdarts"])
def test_in_a_step_the_half_that_is_not_updated_gets_no_gradient(recipe: str) -> None:
    search, supernet = made(f"+experiment={recipe}")
    weights, alphas = split_parameters(supernet)
    seen = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(
            self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: torch.optim.Optimizer
        ) -> None:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            other = alphas if id(weights[0]) in own else weights
            seen.append([p.grad is None or bool((p.grad == 0).all()) for p in other])

    for optimizer_step in ("step_alphas", "step_weights"):
        original = getattr(search, optimizer_step)

        def cleared(batch: object, original: object = original) -> None:
            for p in (*weights, *alphas):
                p.grad = None
            original(batch)  # type: ignore[operator]

        setattr(search, optimizer_step, cleared)
    two_steps(search, callbacks=[Watch()])
    assert len(seen) == 4
    assert all(all(step) for step in seen)


def test_a_run_of_the_command_line_with_guards_leaves_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nas
    from nas.cli import run

    monkeypatch.chdir(tmp_path)
    words = ["data.limit=100", "data.batch_size=16", "search.epochs=2", "finetune.epochs=1"]
    words += ["space=nas_bench_201", "onnx=false", "threads=1", "name=a"]
    words += ["guard=[eigenvalue,skips]", "guard.skips.most=0", "guard.skips.first=0"]
    assert run(["search", "+experiment=darts_minus", *SMALL, *words]) == 0
    network = nas.load("runs/a")
    assert not any(nas.decisions(network))
    assert run(["extract", "runs/a"]) == 0
