"""Figures of `experiments/latency`: how right profiles are, and searches for latency or for MACs.

python scripts/latency_study.py table PROFILE ...        # Markdown: validation of each profile
python scripts/latency_study.py agree FIRST SECOND       # two profiles of one space
python scripts/latency_study.py fronts PROFILE OUT LABEL=FOLDER ...
                                                         # measures every network found
"""

import csv
import io
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure

import nas
from nas.arch import Arch
from nas.artifacts import RunDir, find_runs
from nas.artifacts.files import write_atomic
from nas.latency.log import MeasurementLog
from nas.latency.measure import Schedule, measure, timing
from nas.latency.predict import Accuracy, accuracy
from nas.latency.profile import Profile
from nas.latency.runtimes import copy_to_measure, inputs_like, runtime
from nas.pareto import non_dominated

SECONDS = 120.0  # for all networks of `fronts`


def main() -> None:
    verb, *words = sys.argv[1:] or [""]
    verbs = {"table": table, "agree": agree, "fronts": fronts}
    if verb not in verbs or not words:
        sys.exit(__doc__)
    verbs[verb](*words)


def table(*paths: str) -> None:
    """One row for the corrected sum and one for the plain sum of each profile."""
    print("| profile | predicted by | n | MAPE | within 5 % | within 10 % | tau | Spearman |")
    print("|---|---|---|---|---|---|---|---|")
    for path in paths:
        profile = Profile.load(Path(path))
        print(row(path, "corrected sum", profile.validation.networks))
        print(row(path, "plain sum", profile.validation.sum_of_units))
        unseen = profile.of_role("validation")
        alone = accuracy([n.macs for n in unseen], [n.seconds for n in unseen])
        ranks = f"{alone.kendall:.3f} | {alone.spearman:.3f}"
        print(f"| {Path(path).stem} | MACs alone | {len(unseen)} | - | - | - | {ranks} |")
        for kind, score in profile.validation.units.items():
            print(row(path, f"units, {kind}", score))
        quality, c = profile.measurement_quality, profile.correction
        print(
            f"\n{path}: trusted {quality.get('trusted')} {quality.get('reasons')}, "
            f"{quality.get('unstable')} unstable; scale {c.scale:.3f}, per unit "
            f"{c.per_unit * 1e6:.1f} us, offset {c.offset * 1e6:.1f} us"
        )
        print(f"{path}: {dict(profile.validation.corrections)}\n")


def row(path: str, by: str, score: Accuracy | None) -> str:
    if score is None:
        return f"| {Path(path).stem} | {by} | 0 | - | - | - | - | - |"
    return (
        f"| {Path(path).stem} | {by} | {score.count} | {score.mape:.1%} | {score.within_5:.0%} | "
        f"{score.within_10:.0%} | {score.kendall:.3f} | {score.spearman:.3f} |"
    )


def agree(first: str, second: str) -> None:
    """The second profile taken as a prediction of the first."""
    a, b = Profile.load(Path(first)), Profile.load(Path(second))
    keys = sorted(a.units.keys() & b.units.keys())
    print("| what | n | MAPE | tau | Spearman |\n|---|---|---|---|---|")
    units = accuracy([b.units[k].seconds for k in keys], [a.units[k].seconds for k in keys])
    own, other = measured(a), measured(b)
    archs = [arch for arch in own if arch in other]
    networks = accuracy([other[x] for x in archs], [own[x] for x in archs])
    for what, score in (("units", units), ("networks", networks)):
        print(
            f"| {what} | {score.count} | {score.mape:.1%} | {score.kendall:.3f} | "
            f"{score.spearman:.3f} |"
        )


def measured(profile: Profile) -> dict[Arch, float]:
    return {Arch(profile.about.space, n.choices): n.seconds for n in profile.networks}


def fronts(profile: str, out: str, *labelled: str) -> None:
    """Measure every network found, all of them interleaved; a CSV and a picture into `out`."""
    about, folder = Profile.load(Path(profile)).about, Path(out)
    ready = runtime(about.runtime, about.accelerator, about.conditions)
    found = {}
    for word in labelled:
        label, _, runs = word.partition("=")
        for run in find_runs(Path(runs)):
            if run.finished:
                found[str(run.path)] = (label, run)
    jobs = {name: partial(prepared, ready, run, about) for name, (_, run) in found.items()}
    with TemporaryDirectory() as scratch:
        log = MeasurementLog(Path(scratch) / "log", {})
        measure(jobs, log, SECONDS, Schedule(), lambda done, total: None, 16)
        seconds = {name: timing(log.normalized_times(name)).seconds for name in found}
    rows = []
    for name, (label, run) in found.items():
        result = run.read_result()
        costs = result["costs"]
        error = 1 - result["metrics"]["test_acc"]
        rows.append((label, name, seconds[name], costs["macs"], costs["params"], error))
    text = io.StringIO()
    head = ("search", "run", "seconds", "macs", "params", "test_error")
    csv.writer(text).writerows([head, *rows])
    write_atomic(folder / "fronts.csv", text.getvalue())
    write_atomic(folder / "fronts.png", picture(rows, about))
    print(f"written: {folder / 'fronts.csv'}, {folder / 'fronts.png'}")


def prepared(ready, run: RunDir, about):
    network = nas.load(run.path)
    shapes = [tuple(shape) for shape in about.inputs]
    inputs = inputs_like(shapes, [torch.float32] * len(shapes), about.conditions)
    return ready.prepare(copy_to_measure(network, about.conditions), inputs)


def picture(rows, about) -> bytes:
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for label in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == label]
        x, y = [1e3 * row[2] for row in own], [100 * (1 - row[5]) for row in own]
        points = axes.scatter(x, y, s=24, label=f"searched for {label}")
        front = non_dominated([(row[2], row[5]) for row in own])
        line = sorted((a, b) for a, b, kept in zip(x, y, front, strict=True) if kept)
        colour = points.get_facecolor()[0]
        axes.plot(*zip(*line, strict=True), drawstyle="steps-post", color=colour, linewidth=1.4)
    axes.set_xlabel(f"measured latency (ms), {about.runtime}, {about.conditions}")
    axes.set_ylabel("test accuracy (%)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=180)
    return out.getvalue()


if __name__ == "__main__":
    main()
