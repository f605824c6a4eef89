"""What alphas know: differentiable searches judged, epoch by epoch, by the ground truth.

    python scripts/alphas_study.py truth=truth.csv out=FOLDER [only=A,B] [seeds=0,1,2] [KEY=V]

Each recipe searches space `truth` under each seed, as ``nas search +experiment=truth WORDS seed=S
KEY=V`` does, without training what it finds. Alphas are kept after every epoch, in
``FOLDER/RECIPE-SEED/alphas.jsonl``; what is there is not searched again. Written: FOLDER/study.csv,
a row for each recipe, seed and epoch; to stdout, means over the seeds at the first epoch in which
alphas move and at the last.

A network's score is the sum of its options' log-probabilities. tau: Kendall's with the true
accuracy. R2: of the scores with the additive part of the truth (least squares over options). The
front is that of score and log params, which the exact programme reads off; K: thinned to so many.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from time import process_time
from typing import Any

import numpy as np
import pytorch_lightning as pl
from ground_truth import Truth
from ground_truth_study import write_csv
from numpy.typing import NDArray
from scipy.stats import kendalltau

from nas.artifacts import RunDir
from nas.config.compose import compose_config
from nas.decision import decisions
from nas.pipeline import TrainingStage
from nas.problem import SearchProblem
from nas.search.base import build_search
from nas.verbs import components_of

FAIR = "search.path_sampling._target_=nas.search.path_sampling.StrictFairness"
FAIR_BILEVEL = f"search=bilevel search.epochs=13 search.warmup_epochs=11 {FAIR}"
RECIPES = {
    "joint": "search=bilevel",
    "joint_late": "search=bilevel search.epochs=13 search.warmup_epochs=11",
    "untrained": "search=fair_descent search.epochs=3 search.warmup_epochs=1 "
    "search.weight_optimizer.lr=1e-9",
    "fair_descent": "search=fair_descent",
    "fair_moving": "search=fair_descent search.freeze_weights=false",
    "fair_gumbel": f"{FAIR_BILEVEL} search.weight_optimizer.lr=0.05 search.freeze_weights=true",
}
SIZES = (4, 8, 12)
DRAWS = 200  # of random alphas
Alphas = Mapping[str, Sequence[float]]  # decision -> one for each option
Scores = NDArray[np.float64]


class Recorder(pl.Callback):
    """Writes the alphas of every epoch in which they move, and the processor's seconds so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = process_time()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch < pl_module.warmup_epochs:
            return
        own = dict(decisions(pl_module.supernet))
        row = {
            "epoch": trainer.current_epoch,
            "seconds": process_time() - self.started,
            "options": {name: decision.options for name, decision in own.items()},
            "alphas": {name: decision.alpha.tolist() for name, decision in own.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


class Judge:
    """Scores of all members of the space -> what they are worth."""

    def __init__(self, truth: Truth, options: Mapping[str, Sequence[Any]]) -> None:
        self.truth, self.options = truth, options
        columns = [(name, option) for name, found in options.items() for option in found]
        archs = truth.archs.values()
        self.design = np.array([[float(a.choices[n] == o) for n, o in columns] for a in archs])
        fitted = np.linalg.lstsq(self.design, truth.accuracy, rcond=None)[0]
        self.additive: Scores = self.design @ fitted

    def scores(self, alphas: Alphas) -> Scores:
        """The log-probability of each member, but for a constant."""
        effects: Scores = self.design @ np.concatenate([alphas[name] for name in self.options])
        return effects

    def __call__(self, scores: Scores) -> dict[str, float]:
        """tau, R2, the number of networks on the front, and shares of the true hypervolume."""
        truth = self.truth
        front = truth.front(-scores, len(truth.names))
        return {
            "tau": float(kendalltau(scores, truth.accuracy).statistic),
            "R2": float(np.corrcoef(scores, self.additive)[0, 1] ** 2),
            "networks": float(len(front)),
            "hypervolume": truth.share(front),
            **{f"K={size}": truth.share(truth.front(-scores, size)) for size in SIZES},
        }


def searched(words: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """What `Recorder` wrote of a search, which is made unless it is there."""
    path = folder / "alphas.jsonl"
    if not (folder / "done").exists():
        config = compose_config([*words, f"out={folder.parent}", f"name={folder.name}"])
        problem = SearchProblem(**components_of(config), about={"seed": config.seed})
        folder.mkdir(parents=True, exist_ok=True)
        problem.guards = {**problem.guards, "recorder": Recorder(path)}
        search = build_search(problem)
        search.prepare(problem)
        search.run(problem, TrainingStage(problem, RunDir(folder)))
        (folder / "done").touch()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({row["epoch"]: row for row in rows}.values())  # of a resumed one the later


def baselines(judge: Judge) -> dict[str, dict[str, float]]:
    """The truth itself, its additive part, counting, and random alphas in the mean."""
    truth, rng = judge.truth, np.random.default_rng(0)
    drawn = [
        judge(judge.scores({n: rng.normal(size=len(o)) for n, o in judge.options.items()}))
        for _ in range(DRAWS)
    ]
    return {
        "the truth": judge(truth.accuracy),
        "the truth, additive": judge(judge.additive),
        "MACs": judge(np.log(truth.column("macs"))),
        "random alphas": {key: mean(row[key] for row in drawn) for key in drawn[0]},
    }


def line(name: str, found: Mapping[str, float]) -> str:
    """A row of the table, in Markdown."""
    cells = [f"{found['tau']:.3f}", f"{found['R2']:.2f}", f"{found['networks']:.1f}"]
    cells += [f"{found[key]:.1%}" for key in ("hypervolume", *(f"K={k}" for k in SIZES))]
    return f"| {' | '.join([name, *cells])} |"


def main(arguments: list[str]) -> None:
    """Search what is missing, judge everything."""
    words = dict(word.split("=", 1) for word in arguments)
    truth, out = Truth(Path(words.pop("truth"))), Path(words.pop("out"))
    only = words.pop("only", ",".join(RECIPES)).split(",")
    seeds = [int(seed) for seed in words.pop("seeds", "0,1,2").split(",")]
    common = ["+experiment=truth", "onnx=false", "trainer.enable_progress_bar=false"]
    common += [f"{key}={value}" for key, value in words.items()]
    rows: list[dict[str, Any]] = []
    for recipe, seed in product(only, seeds):
        command = [*common, *RECIPES[recipe].split(), f"seed={seed}"]
        for kept in searched(command, out / f"{recipe}-{seed}"):
            judge = Judge(truth, kept["options"])
            found = {"recipe": recipe, "seed": seed, "epoch": kept["epoch"]}
            rows.append(
                {**found, "seconds": kept["seconds"], **judge(judge.scores(kept["alphas"]))}
            )
        write_csv(out / "study.csv", rows)
    head = ["recipe, epoch", "tau", "R2", "networks", "hypervolume", *(f"K = {k}" for k in SIZES)]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for name, found in baselines(judge).items():
        print(line(name, found))
    for recipe in only:
        epochs = sorted({row["epoch"] for row in rows if row["recipe"] == recipe})
        for epoch in dict.fromkeys((epochs[0], epochs[-1])):
            own = [row for row in rows if (row["recipe"], row["epoch"]) == (recipe, epoch)]
            means = {key: mean(row[key] for row in own) for key in own[0] if key != "recipe"}
            print(line(f"{recipe}, {epoch + 1}", means))


if __name__ == "__main__":
    main(sys.argv[1:])
