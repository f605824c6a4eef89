"""One small data set of each kind: a search, the front by MACs, and random networks.

    python scripts/tasks_study.py OUT [--only sound]

Writes each set below OUT, then runs three commands of four trained networks and an export. What is
there already is not done again. Prints a row of experiments/tasks/README.md for each set.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from nas.cli import run
from nas.pareto import hypervolume
from nas.quantities import error_of, metric_words

COMMON = (
    "threads=1 trainer.enable_progress_bar=false onnx=false data.batch_size=32 finetune.epochs=10"
)
CHAIN = "space.width=0.5 budget.params=50%"
# Name -> (what makes its data below a folder, words of the command; {} is that folder).
Set = tuple[Callable[[Path], None], str]
Networks = Mapping[str, Sequence[Mapping[str, float]]]


def main() -> None:
    """Run what is missing, and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=SETS, default=None)
    given = parser.parse_args()
    for name in [given.only] if given.only else SETS:
        print(row(name, given.out / name), flush=True)


def row(name: str, out: Path) -> str:
    """Run a set, and describe it."""
    make, words = SETS[name]
    if not (out / "made").exists():
        out.mkdir(parents=True, exist_ok=True)
        make(out)
        (out / "made").touch()
    every = [*words.replace("{}", str(out)).split(), *COMMON.split(), f"out={out}", "resume=true"]
    once(out / "search", ["search", *every, "front=4", "name=search"])
    once(out / "macs", ["search", *every, "search=zero_cost", "front=4", "name=macs"])
    random = "search=random_search search.trials=4 search.evaluate.test=true name=random"
    once(out / "random", ["search", *every, *random.split()])
    if not (out / "search/export/export.json").exists():
        assert run(["export", str(out / "search"), "format=onnx", "latency=false"]) == 0
    result = json.loads((out / "search/result.json").read_text())
    metric, costs, bounds = result["task"]["primary"], result["costs"], result["budgets"]
    parity = json.loads((out / "search/export/export.json").read_text())["formats"]["onnx"]
    networks = {
        way: [
            _numbers(path.read_text())
            for path in sorted((out / way / "front").glob("*/result.json"))
        ]
        for way in ("search", "macs")
    }
    lines = (out / "random/trials.jsonl").read_text().splitlines()
    networks["random"] = [_numbers(line) for line in lines]
    volumes = _hypervolumes(metric, networks)
    best = [
        min(own, key=lambda one: error_of(metric, one[f"val_{metric}"]))[f"test_{metric}"]
        for own in networks.values()
    ]
    budget = ", ".join(f"{costs[n]:,.0f} of {math.floor(b):,} {n}" for n, b in bounds.items())
    met = "met" if all(costs[n] <= b for n, b in bounds.items()) else "NOT MET"
    cells = [name, metric, *(metric_words(metric, one) for one in best)]
    cells += [*(f"{volumes[way]:.3f}" for way in networks), f"{budget}: {met}"]
    return f"| {' | '.join(cells)} | {parity['max_abs_diff']:.0e} |"


def _numbers(text: str) -> dict[str, float]:
    """Metrics and costs of a network, of its result or its trial."""
    record = json.loads(text)
    return {**record["metrics"], **record["costs"]}


def _hypervolumes(metric: str, networks: Networks) -> dict[str, float]:
    """Of (test error, log parameters) of each way's networks, both scaled to their range."""
    points = {
        way: np.array([(error_of(metric, m[f"test_{metric}"]), math.log(m["params"])) for m in own])
        for way, own in networks.items()
    }
    every = np.concatenate(list(points.values()))
    least, span = every.min(0), np.ptp(every, axis=0)
    return {way: hypervolume((own - least) / span, (1.05, 1.05)) for way, own in points.items()}


def once(folder: Path, words: list[str]) -> None:
    """Carry a command out, or go on with it."""
    if not (folder / "result.json").exists():
        assert run(words) == 0, words


def digits(out: Path) -> None:
    """Nothing: they come with scikit-learn."""


def diabetes(out: Path) -> None:
    """scikit-learn's 442 patients: ten measurements, and the progress of the disease."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    np.savez(out / "data.npz", x=x[:, None] * 20, y=y)


def sensor(out: Path) -> None:
    """A drawn accelerometer of 12 people: rest, walk or run, in rows of a table."""
    import pandas as pd

    draw, rows = np.random.default_rng(0), []
    for person in range(12):
        pace, strength = draw.uniform(0.8, 1.2), draw.uniform(0.7, 1.3)
        for bout in range(9):
            kind = bout % 3
            time = np.arange(512) / 50 + draw.uniform(0, 9)
            wave = strength * kind * np.sin(2 * np.pi * pace * (1 + 0.5 * kind) * time)
            axes = wave[:, None] * draw.normal(size=3) + draw.normal(size=(512, 3))
            table = pd.DataFrame(axes, columns=["x", "y", "z"])
            rows.append(table.assign(what=("rest", "walk", "run")[kind], who=person))
    pd.concat(rows).to_csv(out / "data.csv", index=False)


def sound(out: Path) -> None:
    """Drawn sounds of half a second in noise: tones that rise, fall, or stay."""
    import soundfile

    draw, time = np.random.default_rng(0), np.arange(4000) / 8000
    for kind, slope in {"falls": -1, "steady": 0, "rises": 1}.items():
        (out / "sounds" / kind).mkdir(parents=True, exist_ok=True)
        for number in range(120):
            start, width = draw.uniform(600, 1400), draw.uniform(200, 600)
            phase = 2 * np.pi * (start * time + slope * width * time**2)
            wave = 0.1 * np.sin(phase) + 0.2 * draw.normal(size=len(time))
            soundfile.write(out / "sounds" / kind / f"{number}.wav", wave.clip(-1, 1), 8000)


def forecast(out: Path) -> None:
    """A drawn series: two periods that drift, and noise."""
    import pandas as pd

    draw, time = np.random.default_rng(0), np.arange(6000)
    phase = time / 9 + np.cumsum(draw.normal(size=6000)) / 30
    load = np.sin(phase) * (1 + 0.5 * np.sin(time / 80)) + 0.1 * draw.normal(size=6000)
    other = np.cos(phase) + 0.2 * draw.normal(size=6000)
    pd.DataFrame({"load": load, "other": other}).to_csv(out / "data.csv", index=False)


def anomaly(out: Path) -> None:
    """scikit-learn's digits: 0, 1 and 2 are normal, all others anomalous."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    np.savez(out / "data.npz", x=x[:, None], y=y > 2)


SETS: dict[str, Set] = {
    "digits": (digits, f"data=digits {CHAIN}"),
    "diabetes": (diabetes, f"data=arrays data.path={{}}/data.npz task=regression {CHAIN}"),
    "sensor": (
        sensor,
        "data=windows data.path={}/data.csv data.length=64 data.target=what data.group=who "
        + CHAIN,
    ),
    "sound": (
        sound,
        "data=sound_folder data.root={}/sounds data.rate=8000 data.seconds=0.5 space=ds_cnn "
        "+space.front={rate:8000,window:32,hop:16,mels:32,high:4000} "
        "space.width=0.5 budget.params=88%",  # most of its parameters are those of the front end
    ),
    "forecast": (
        forecast,
        "data=windows data.path={}/data.csv data.length=32 data.hop=8 data.horizon=8 "
        f"data.target=load task=forecasting {CHAIN}",
    ),
    "anomaly": (
        anomaly,
        "data=arrays data.path={}/data.npz task=anomaly space=autoencoder budget.params=50%",
    ),
}


if __name__ == "__main__":
    main()
