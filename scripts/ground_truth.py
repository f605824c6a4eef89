"""The table of a space in which every network is trained: written from runs, and read.

    nas search +experiment=truth search=enumerate search.evaluate.test=true seed=0 name=seed0
    python scripts/ground_truth.py runs/seed0 runs/seed1 out=experiments/ground_truth/truth.csv

The words are the folders of runs, one for each seed; they may still be running. The file has the
name of its space. Seconds are those of the processor, which do not grow when others use the machine
as well.
"""

import csv
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import mean

import numpy as np
import yaml

from nas.arch import Arch
from nas.artifacts import RunDir
from nas.artifacts.files import csv_table, write_atomic
from nas.pareto import hypervolume, thinned
from nas.search.trials import Trial, TrialLog

SCORES = ("val_acc", "val_loss", "test_acc", "test_loss")
COLUMNS = ("params", "macs", *SCORES, "seconds")
DRAWS = 400  # random searches that a mean is taken of


class Truth:
    """The table: every member of the space, trained alone under each seed.

    True accuracy is the mean over the seeds of the table. Hypervolumes are of (test error, log
    params), up to the worst of the table.

    Args:
        path: of the table, named after its space.
    """

    def __init__(self, path: Path) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.space = path.stem
        blocks = [name for name in rows[0] if name not in ("seed", *COLUMNS)]
        self.archs: dict[str, Arch] = {}
        self.of: dict[str, dict[str, dict[str, float]]] = {row["seed"]: {} for row in rows}
        for row in rows:
            # A depth is a number: as text it would give another hash.
            choices = {f"blocks.{name}": yaml.safe_load(row[name]) for name in blocks}
            arch = Arch(self.space, choices)
            self.archs[arch.hash] = arch
            self.of[row["seed"]][arch.hash] = {name: float(row[name]) for name in COLUMNS}
        self.seeds = [seed for seed, own in self.of.items() if len(own) == len(self.archs)]
        if not self.seeds:
            raise SystemExit(f"{path} has no seed with every member")
        self.names = list(self.archs)

    def column(self, name: str, seed: str | None = None) -> np.ndarray:
        """One value for each member, in the order of `names`; the mean over seeds without one."""
        seeds = self.seeds if seed is None else [seed]
        return np.mean([[self.of[s][n][name] for n in self.names] for s in seeds], axis=0)

    @cached_property
    def accuracy(self) -> np.ndarray:
        return self.column("test_acc")

    @cached_property
    def points(self) -> np.ndarray:
        return np.stack([1 - self.accuracy, np.log(self.column("params"))], axis=1)

    @cached_property
    def picks(self) -> np.ndarray:
        """Numbers of the options of each member ``(n, decisions)``."""
        archs = list(self.archs.values())
        columns = [[arch.choices[name] for arch in archs] for name in archs[0].choices]
        numbers = [np.unique(list(map(str, own)), return_inverse=True)[1] for own in columns]
        return np.stack(numbers, axis=1)

    @cached_property
    def seconds(self) -> float:
        """Of training every member once."""
        return float(self.column("seconds").sum())

    def places(self, archs: Sequence[Arch]) -> list[int]:
        return [self.names.index(arch.hash) for arch in archs]

    def share(self, places: Sequence[int], seed: str | None = None) -> float:
        """Hypervolume of these members over that of all; with `seed` by its accuracies alone."""
        points = self.points
        if seed is not None:
            points = np.stack([1 - self.column("test_acc", seed), points[:, 1]], axis=1)
        corner = points.max(0)
        return hypervolume(points[list(places)], corner) / hypervolume(points, corner)

    def front(self, errors: np.ndarray, networks: int) -> list[int]:
        """The front of these errors over log params, at most so many; see `nas.pareto.thinned`."""
        return thinned(np.stack([errors, self.points[:, 1]], axis=1), networks)

    def of_macs(self, networks: int) -> float:
        """Share of so many that have more MACs than every smaller one: what counting gives."""
        return self.share(self.front(-np.log(self.column("macs")), networks))

    def random_alphas(self, networks: int) -> float | None:
        """Mean share of so many read off alphas drawn from N(0, 1).

        The front of log probability over params, as the exact programme finds it at every budget;
        of the draws that give so many; None where hardly one does.
        """
        rng, shares = np.random.default_rng(0), []
        for _ in range(DRAWS):
            logits = sum(rng.standard_normal(int(own.max()) + 1)[own] for own in self.picks.T)
            front = self.front(-np.asarray(logits), networks)
            shares += [self.share(front)] if len(front) == networks else []
        return mean(shares) if len(shares) >= DRAWS / 40 else None

    def best(self, networks: int) -> float:
        """Share of so many of the true front."""
        return self.share(self.front(1 - self.accuracy, networks))

    def random(self, networks: int) -> float:
        """Mean share of so many members drawn without replacement."""
        rng, count = np.random.default_rng(0), min(networks, len(self.names))
        drawn = [rng.permutation(len(self.names))[:count].tolist() for _ in range(DRAWS)]
        return mean(map(self.share, drawn)) if count else 0.0


def rows(run: RunDir) -> list[dict[str, object]]:
    """One row for each trial of a run."""
    seed = yaml.safe_load(run.config.read_text(encoding="utf-8"))["seed"]
    return [_row(seed, trial) for trial in TrialLog(run.trials).known.values()]


def _row(seed: int, trial: Trial) -> dict[str, object]:
    options = {name.removeprefix("blocks."): o for name, o in trial.arch.choices.items()}
    scores = {name: f"{trial.metrics[name]:.4f}" for name in SCORES if name in trial.metrics}
    return {"seed": seed, **options, **trial.costs, **scores, "seconds": f"{trial.cpu_seconds:.2f}"}


def main(arguments: list[str]) -> None:
    """Write the table of the runs in `arguments`."""
    out = Path(next((a.partition("=")[2] for a in arguments if a.startswith("out=")), "truth.csv"))
    found = [row for a in arguments if "=" not in a for row in rows(RunDir(Path(a)))]
    write_atomic(out, csv_table(list(found[0]), (row.values() for row in found)))
    print(f"{len(found)} rows in {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
