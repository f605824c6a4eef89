"""Do trainings tell which networks to train next? Simulated on a table of a space trained whole.

    python scripts/further_study.py experiments/ground_truth/truth.csv RUN [RUN ...]

Each RUN is a finished one-shot search of that space that ranked all of its networks. The first
eight networks of a front are chosen by the ranking, further ones by the accuracies of those
trained before, as `nas search front=K` does. Trainings are read from one seed of the table, fronts
are judged by the test accuracies of the other seeds. Beside it: all K by the ranking alone, and
the front of counted MACs.
"""

import sys
from pathlib import Path
from statistics import mean

import numpy as np
from ground_truth import Truth

from nas.search.evaluate import WeightSharing
from nas.search.model import OptionModel, adds_most, worth_training
from nas.search.prediction import DRAWS
from nas.search.trial_search import RANKED_FIRST, TRAINING
from nas.search.trials import TrialLog

SIZES = (8, 10, 12, 16, 20)


def main(path: Path, runs: list[Path]) -> None:
    """Print a row for each way to choose, least value in brackets."""
    truth = Truth(path)
    picks, costs = truth.picks, truth.column("params")
    found: dict[str, list[list[float]]] = {"MACs": [], "ranking": [], "ranking, then trainings": []}
    for run in runs:
        trials = TrialLog(run / "trials.jsonl").known
        errors = np.array([trials[name].value("val_acc") for name in truth.names])
        draws = OptionModel(picks, errors, WeightSharing.noise).draws(
            picks, DRAWS, np.random.default_rng(0)
        )
        ranked = {size: worth_training(draws, costs, size) for size in SIZES}
        counted = {size: truth.front(-np.log(truth.column("macs")), size) for size in SIZES}
        for seed in truth.seeds:
            trained, taken = 1 - truth.column("val_acc", seed), list(ranked[RANKED_FIRST])
            while len(taken) < max(SIZES):
                model = OptionModel(picks[taken], trained[taken], TRAINING)
                drawn = model.draws(picks, DRAWS, np.random.default_rng(0))
                more = adds_most(drawn, costs, taken)
                assert more is not None
                taken.append(more)
            for other in truth.seeds:
                if other != seed:
                    judged = [truth.share(counted[size], other) for size in SIZES]
                    found["MACs"].append(judged)
                    judged = [truth.share(ranked[size], other) for size in SIZES]
                    found["ranking"].append(judged)
                    judged = [truth.share(taken[:size], other) for size in SIZES]
                    found["ranking, then trainings"].append(judged)
    for name, rows in found.items():
        cells = [f"{mean(one):.1%} ({min(one):.1%})" for one in zip(*rows, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
