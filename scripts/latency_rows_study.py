"""How well models of whole networks' latency do on NAS-Bench-201 cells they have not seen.

    python scripts/latency_rows_study.py --csv nas_bench_201_dev.csv --out latency_rows

Draws n cells, fits every model to them, tests it on all other cells; for each latency column and
seed. One file per draw in OUT/draws, so that an interrupted study goes on where it was; then
OUT/nas_bench_201.csv, the mean and the standard deviation over seeds.

Corrupt rows are not mended: a fit drops those below a tenth of what a robust fit says of them, and
figures are given of the test cells above a tenth of the column's median, and of all of them.
"""

import argparse
import csv
import io
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.artifacts.files import write_atomic, write_json
from nas.errors import UserError
from nas.latency.exchange import read_networks
from nas.latency.models import (
    LEFT_OUT,
    NETWORK_FITS,
    Choices,
    Encoding,
    MeasuredNetworks,
    fit_network_model,
    fit_networks,
)
from nas.latency.predict import accuracy, fit_nonnegative

COLUMNS = ("latency_raspi4", "latency_silver_4114", "latency_1080ti_1")
SIZES = (50, 200, 900)
# Multiply-accumulates of an operation of a cell, in units of those of a 1 x 1 convolution.
MACS = {"nor_conv_1x1": 1.0, "nor_conv_3x3": 9.0}

Predict = Callable[[tuple[Choices, ...]], np.ndarray]


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    begun = time.monotonic()
    tables = {name: read_networks(arguments.csv, name, unit="ms") for name in arguments.columns}
    # Seeds outermost: a study cut short has all columns and sizes, of fewer seeds.
    for seed, size, column in product(range(arguments.seeds), arguments.sizes, tables):
        file = arguments.out / "draws" / f"{column}-{size}-{seed}.json"
        if not file.exists():
            rows = list(draw(tables[column], column, size, seed, arguments.quick))
            write_json(file, {"rows": rows})
            print(f"{time.monotonic() - begun:6.0f} s  {file.name}", flush=True)
            summarise(arguments.out)
    summarise(arguments.out)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, required=True, help="arch_str and latency columns, ms")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--columns", nargs="+", default=COLUMNS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="without slow models")
    return parser.parse_args()


def draw(
    table: MeasuredNetworks, column: str, size: int, seed: int, quick: bool
) -> Iterator[dict[str, Any]]:
    """One row of figures for each model fitted to `size` random cells."""
    order = np.random.default_rng(seed).permutation(len(table.seconds)).tolist()
    train, test = table.subset(order[:size]), table.subset(order[size:])
    report = fit_networks(train, seed=seed)
    kept = train.subset(sorted(set(range(size)) - set(report.dropped)))

    def row(model: str, left_out: str, predict: Predict) -> dict[str, Any]:
        return {
            "column": column,
            "n": size,
            "model": model,
            "left_out": left_out,
            **figures(predict, test, float(np.median(table.seconds))),
            "dropped": len(report.dropped),
        }

    print(f"        chosen: {report.chosen}", flush=True)
    yield row("chosen", "chosen", report.model.predict) | {"chosen": report.chosen}
    for kind in NETWORK_FITS:
        for way in LEFT_OUT:
            yield row(kind, way, fit_network_model(kept, kind, way).predict)
    for way in LEFT_OUT:
        yield row("flops", way, flops(kept, way))
    extras = {"gaussian_process": gaussian_process, "boosting": boosting}
    for name, fit in {} if quick else extras.items():
        yield row(name, "chosen", fit(kept, report.left_out, seed))


def figures(predict: Predict, test: MeasuredNetworks, median: float) -> dict[str, float]:
    """Agreement on the test cells that are plausible, and on all of them."""
    seconds, predicted = np.array(test.seconds), predict(test.choices)
    plausible = seconds >= 0.1 * median
    sound, every = accuracy(predicted[plausible], seconds[plausible]), accuracy(predicted, seconds)
    return {
        "implausible": int((~plausible).sum()),
        "kendall": sound.kendall,
        "spearman": sound.spearman,
        "mape": sound.mape,
        "within_10": sound.within_10,
        "kendall_all": every.kendall,
        "spearman_all": every.spearman,
        "within_10_all": every.within_10,
    }


def flops(table: MeasuredNetworks, left_out: str) -> Predict:
    """A constant and a time per multiply-accumulate, robustly fitted."""
    options = [option for known in table.options.values() for option in known]
    per_option = np.array([MACS.get(option, 0.0) for option in options])
    encoding = Encoding(table.options, "onehot", left_out)

    def columns(choices: tuple[Choices, ...]) -> np.ndarray:
        return (encoding(choices) @ per_option)[:, None]

    model = fit_nonnegative(columns(table.choices), np.array(table.seconds))
    return lambda choices: model(columns(choices))


def gaussian_process(table: MeasuredNetworks, left_out: str, seed: int) -> Predict:
    """Of log(seconds), a linear and a smooth part, over options and their counts."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel

    kernel = ConstantKernel() * RBF(5.0) + ConstantKernel() * DotProduct() + WhiteKernel(0.1)
    x, logs = both(table, left_out), np.log(table.seconds)
    middle, spread = float(np.median(logs)), float(logs.std())
    # The kernel's numbers from the first rows: finding them takes n cubed, many times over.
    columns, y = x(table.choices), (logs - middle) / spread
    kernel = GaussianProcessRegressor(kernel).fit(columns[:300], y[:300]).kernel_
    model = GaussianProcessRegressor(kernel, optimizer=None).fit(columns, y)
    return lambda choices: np.exp(model.predict(x(choices)) * spread + middle)


def boosting(table: MeasuredNetworks, left_out: str, seed: int) -> Predict:
    """Gradient-boosted trees of log(seconds), Huber loss, over options and their counts."""
    from sklearn.ensemble import GradientBoostingRegressor

    x = both(table, left_out)
    model = GradientBoostingRegressor(
        loss="huber", n_estimators=300, learning_rate=0.05, subsample=0.7, random_state=seed
    ).fit(x(table.choices), np.log(table.seconds))
    return lambda choices: np.exp(model.predict(x(choices)))


def both(table: MeasuredNetworks, left_out: str) -> Callable[[tuple[Choices, ...]], np.ndarray]:
    encodings = [Encoding(table.options, basis, left_out) for basis in ("onehot", "counts")]
    return lambda choices: np.concatenate([encode(choices) for encode in encodings], axis=1)


def summarise(out: Path) -> None:
    """OUT/nas_bench_201.csv: a line per column, n and model."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for file in sorted((out / "draws").glob("*.json")):
        for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
            groups[row["column"], row["n"], row["model"], row["left_out"]].append(row)
    if not groups:
        raise UserError(f"no draw in {out / 'draws'}")
    measures = ("kendall", "spearman", "mape", "within_10", "kendall_all", "spearman_all",
                "within_10_all", "dropped", "implausible")  # fmt: skip
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    spread = [f"{name}_sd" for name in measures[:4]]
    writer.writerow(["column", "n", "model", "left_out", "seeds", *measures, *spread])
    for key, rows in sorted(groups.items()):
        values = {name: np.array([row[name] for row in rows], dtype=float) for name in measures}
        means = [f"{values[name].mean():.4f}" for name in measures]
        deviations = [f"{values[name].std():.4f}" for name in measures[:4]]
        writer.writerow([*key, len(rows), *means, *deviations])
    write_atomic(out / "nas_bench_201.csv", text.getvalue())


if __name__ == "__main__":
    main()
