"""Runs of `nas search search=enumerate` -> one table of the truth, `truth.csv`.

    python scripts/ground_truth.py RUN [RUN ...] out=experiments/ground_truth/truth.csv

Each RUN is a run's folder, one for each seed; it may still be running. Seconds are those of the
processor, which do not grow when others use the machine as well.
"""

import csv
import io
import sys
from pathlib import Path

import yaml

from nas.artifacts import RunDir
from nas.artifacts.files import write_atomic
from nas.search.trials import Trial, TrialLog

SCORES = ("val_acc", "val_loss", "test_acc", "test_loss")


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
    text = io.StringIO()
    writer = csv.DictWriter(text, list(found[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_atomic(out, text.getvalue())
    print(f"{len(found)} rows in {out}")


if __name__ == "__main__":
    main(sys.argv[1:])
