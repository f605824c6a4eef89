"""Every kind of search on a tiny space without BatchNorm; as a script, two ranks.

``two_ranks.py FOLDER`` runs each kind unbroken in ``FOLDER/two`` and the `RESUMED` ones broken and
resumed in ``FOLDER/resumed``; what it was when it broke is kept in ``FOLDER/broken``.
"""

import gc
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import registry
from omegaconf import DictConfig
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import nas.front
import nas.pipeline
from nas.artifacts import RunDir
from nas.compress.rules import Rules
from nas.compress.space import OwnNetwork
from nas.config.compose import compose_config
from nas.diagnostics import silence_third_party_warnings
from nas.errors import InterruptedRunError
from nas.front import FrontRun
from nas.pipeline import Run, TrainingStage
from nas.problem import SearchProblem
from nas.ranks import all_ranks, broadcast, world
from nas.search.callbacks import LastCheckpoint
from nas.search.trials import TrialLog
from nas.supernet.choice import ChoiceBlock
from nas.verbs import components_of

BATCH = 16  # of all ranks together
DATA, IMAGES = ["data.limit=64", "data.eval_batch_size=50"], ["data.augment=crop_flip"]
EVERY = [
    "finetune.epochs=1", "onnx=false", "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
]  # fmt: skip
DESCENT = ["search.epochs=2", "search.warmup_epochs=1", "relax=gumbel"]
DARTS = ["search.epochs=2", "search.warmup_epochs=1", "relax=softmax"]
SHOTS = ["search.epochs=2", "search.ranking.trials=4", "search.ranking.batch=2"]
TRIALS = ["search.trials=4", "search.batch=2", "search.evaluate.epochs=1", "weights=fresh"]
PHASES = "[{epochs: 1, open: {}}, {epochs: 2, open: {ops: all}, subnets: 2, lr: 0.1}]"

# Name -> words. The first word of each names a file of configs/search.
KINDS: dict[str, list[str]] = {
    "bilevel": ["bilevel", *DESCENT],
    "single_level": ["single_level", *DESCENT],
    "darts": ["darts", *DARTS],
    "darts_second_order": ["darts_second_order", *DARTS],
    "proxyless": ["proxyless", *DESCENT],
    "proxyless_full": ["proxyless_full", *DESCENT],
    "reinforce": ["reinforce", *DESCENT, "search.samples=3"],
    "random": ["random", "finetune.epochs=2"],
    "sensitivity": ["sensitivity", "search.samples=64", "finetune.epochs=2"],
    "fairnas": ["fairnas", *SHOTS],
    "spos": ["spos", *SHOTS],
    "sandwich": ["sandwich", *SHOTS],
    "all_paths": ["all_paths", *SHOTS],
    "once_for_all": ["once_for_all", *SHOTS[1:], f"search.phases={PHASES}"],
    "fair_descent": ["fair_descent", *DESCENT, "search.samples=3"],
    "enumerate": ["enumerate", *TRIALS],
    "random_search": ["random_search", *TRIALS],
    "short_trainings": ["short_trainings", *TRIALS, "front=2"],
    "evolution": ["evolution", *TRIALS],
    "nsga2": ["nsga2", *TRIALS],
    "tpe": ["tpe", *TRIALS],
    "predictor": ["predictor", *TRIALS],
    "additive": ["additive", *TRIALS],
    "zero_cost": [
        "zero_cost", "search.trials=4", "search.batch=2", "search.evaluate.score=zico",
        "weights=fresh",
    ],
    "halving": [
        "random_search", "search.trials=4", "search.halving.epochs=[1,2]", "search.halving.eta=2",
        "search.batch=4", "weights=fresh",
    ],
    "lagrangian": [
        "bilevel", *DESCENT, "objective=augmented_lagrangian", "budget.params=70%",
        "+search.perturbation={_target_: nas.search.regularizers.Perturbing, kind: ascent, "
        "steps: 2}",
    ],
    "constrained": [
        "bilevel", *DESCENT[:2], "relax=gdas", "objective=constrained", "budget.params=70%",
    ],
    "mul_log": ["reinforce", *DESCENT, "objective=mul_log", "budget.params=70%"],
    "reward": [
        "reinforce", *DESCENT, "search.samples=3",
        "+search.reward={_target_: nas.search.reinforce.CostAwareAccuracy}",
    ],
    "eigenvalue": [
        "bilevel", *DESCENT, "search.epochs=5", "guard=[eigenvalue]", "guard.eigenvalue.every=1",
        "guard.eigenvalue.window=1", "guard.eigenvalue.delta=1", "guard.eigenvalue.first=0",
        "guard.eigenvalue.ratio=1.001",
    ],
    "skips": [
        "bilevel", *DESCENT, "search.epochs=3", "guard=[skips]", "guard.skips.options=[k1,k3,k5]",
        "guard.skips.first=1",
    ],
    "stable": ["bilevel", *DESCENT, "search.epochs=5", "stable_epochs=1"],
    "front": ["fairnas", *SHOTS, "front=2", "finetune.teacher=largest"],
    "compress": [
        "compress", "search.trials=4", "search.batch=2", "finetune=compress", "budget.macs=50%",
    ],
    "own": ["bilevel", *DESCENT, f"data.source={{_target_: {__name__}.Own}}"],
}  # fmt: skip

# One of each way to go on: the others differ from one of these in how they train or ask, not in
# what they read again.
RESUMED = (
    "reinforce", "random", "once_for_all", "evolution", "halving", "constrained", "eigenvalue",
    "front", "compress", "own",
)  # fmt: skip


class Own(Dataset):
    """Of the user's own: it draws anew each time that it is read, so that it is not kept."""

    def __len__(self) -> int:
        return 120

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        noise = random.random() + torch.randn(1, 8, 8) + torch.from_numpy(np.random.rand(8, 8))
        return (place % 3) + 0.5 * noise.float(), place % 3


class Toy(nn.Module):
    """Two choices among three convolutions, smooth, and without BatchNorm."""

    name = "toy"

    def __init__(self, input_shape: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        self.first, self.second = _choice(input_shape[0], 4), _choice(4, 6)
        self.head = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 16, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


def _choice(channels: int, out: int) -> ChoiceBlock:
    return ChoiceBlock(
        {
            f"k{k}": nn.Sequential(nn.Conv2d(channels, out, k, padding=k // 2), nn.Tanh())
            for k in (1, 3, 5)
        }
    )


def trained() -> nn.Module:
    """A network of the user's own, better than a constant, so that it teaches."""
    torch.manual_seed(0)
    one, two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    head = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)]
    network = nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), *head)
    images, targets = load_digits(return_X_y=True)
    x = torch.from_numpy(images[:256]).float().reshape(-1, 1, 8, 8)
    x, y = (x - x.mean()) / x.std(), torch.from_numpy(targets[:256])
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


def made(kind: str, folder: Path, ranks: int, batch: int = BATCH) -> Run:
    """The run of a kind in a folder, as each of `ranks` processes makes it."""
    config = deepcopy(composed(kind))
    config.data.batch_size, config.trainer.devices = batch // ranks, ranks
    rules = Rules(operations={"candidates": ["low_rank_2"]})  # fitted on training data
    space = OwnNetwork(trained, rules=rules) if kind == "compress" else Toy
    components = components_of(config) | {"make_supernet": space}
    problem = SearchProblem(**components)
    return (FrontRun if problem.front > 1 else Run)(problem, RunDir(folder).create())


@cache
def composed(kind: str) -> DictConfig:
    """Hydra takes a third of the time of a run as tiny as these."""
    search, *words = KINDS[kind]
    data = [*DATA, "data=own"] if kind == "own" else [*DATA, "data=digits", *IMAGES]
    return compose_config([*data, *EVERY, f"search={search}", *words])


@contextmanager
def broken(times: int) -> Iterator[None]:
    """Inside, a run ends after so many checkpoints and trials."""
    left = [times]

    def ending(method: Any) -> Any:
        def ends(*arguments: Any) -> None:
            method(*arguments)
            left[0] -= 1
            if not left[0]:
                raise InterruptedRunError("broken")

        return ends

    kept = LastCheckpoint.on_train_epoch_end, TrialLog.append
    LastCheckpoint.on_train_epoch_end, TrialLog.append = map(ending, kept)  # type: ignore[method-assign]
    try:
        yield
    except InterruptedRunError:
        return
    finally:
        LastCheckpoint.on_train_epoch_end, TrialLog.append = kept  # type: ignore[method-assign]


def without_pictures(put: Callable[[object, str, object], None] = setattr) -> None:
    """Of what is compared, nothing is drawn; that takes most of a tiny run's time."""
    silence_third_party_warnings()
    torch.set_num_threads(1)
    put(registry, "entry_points", cache(registry.entry_points))  # see tests/conftest.py
    put(os, "fsync", lambda _: None)
    for name in ("log_final", "log_graph", "write_drawing"):
        put(nas.pipeline, name, lambda *_: None)
    for name in ("log_final", "write_pictures"):
        put(nas.front, name, lambda *_: None)


def carried_out(run: Run) -> list[str]:
    """Does it; what this rank ends with: the architecture, and hashes of all weights."""
    kept: list[nn.Module] = []
    finetune = Run._finetune

    def keeping(*arguments: Any) -> Any:
        found = finetune(*arguments)
        kept.append(found[0])
        return found

    Run._finetune = keeping  # type: ignore[method-assign]
    try:
        run()
    finally:
        Run._finetune = finetune  # type: ignore[method-assign]
    assert run.arch is not None
    return [run.arch.hash, digest(run.supernet), *map(digest, kept)]


def digest(module: nn.Module) -> str:
    values = [v.detach().numpy().tobytes() for v in (*module.parameters(), *module.buffers())]
    return hashlib.sha256(b"".join(values)).hexdigest()


def main(folder: Path) -> None:
    without_pictures()
    for kind in KINDS:
        composed(kind)
    gc.set_threshold(10_000, 10, 10)  # see tests/conftest.py
    gc.freeze()
    # After the imports and what is composed, which both need, and before torch has computed.
    child = os.fork()
    rank = int(not child)
    os.environ["LOCAL_RANK"] = str(rank)
    first = made("random", folder / f"trainer{rank}", ranks=2)
    with all_ranks(TrainingStage(first.problem, first.run).trainer(1, [])):
        assert world() == (rank, 2)
        for kind in KINDS:
            ends = [carried_out(made(kind, folder / "two" / kind, ranks=2))]
            if kind in RESUMED:
                resumed = folder / "resumed" / kind
                with broken(times=1):
                    carried_out(made(kind, resumed, ranks=2))
                if rank == 0:
                    shutil.copytree(resumed, folder / "broken" / kind)
                broadcast(lambda: None)  # not before that is copied
                ends.append(carried_out(made(kind, resumed, ranks=2)))
            (folder / f"{kind}.rank{rank}.json").write_text(json.dumps(ends))
    if child and os.waitpid(child, 0)[1]:
        sys.exit("rank 1 failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
