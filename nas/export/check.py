"""An exported file on real samples: does it compute what the network does, how fast; its card."""

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nas.artifacts.files import versions_of
from nas.export.formats import Model
from nas.inputs import Inputs, some
from nas.latency.measure import timings
from nas.latency.runtimes import machine_name
from nas.quantities import error_of, judged_by, lower_is_better, metric_name, metric_words
from nas.report.templates import render
from nas.tasks import Task
from nas.tasks.classification import Classification

Batch = tuple[Inputs, Tensor]
_PACKAGES = ("dnas", "torch", "onnx", "onnxruntime", "executorch", "torchao")
SECONDS = 20.0  # of measuring at most, for all runtimes of one network


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the network in eager PyTorch.

    Args:
        samples: on how many.
        max_abs_diff: largest difference of two logits.
        argmax_agreement: share of samples whose largest output is the same.
        metric: name of the task's primary metric.
        score, eager_score: of the file and of the network.
    """

    samples: int
    max_abs_diff: float
    argmax_agreement: float
    metric: str
    score: float
    eager_score: float

    @property
    def drop(self) -> float:
        """What is lost of the metric; of an error, by which part it grows."""
        lost = error_of(self.metric, self.score) - error_of(self.metric, self.eager_score)
        return lost / self.eager_score if lower_is_better(self.metric) and lost else lost

    def __str__(self) -> str:
        score, eager = (metric_words(self.metric, v) for v in (self.score, self.eager_score))
        same = f"same class {self.argmax_agreement:.2%}, " if self.metric == "acc" else ""
        return (
            f"max |difference| {self.max_abs_diff:.1e}, {same}"
            f"{metric_name(self.metric)} {score} (eager {eager})"
        )


def compare(eager: Model, exported: Model, batches: Iterable[Batch], task: Task) -> Parity:
    """Run both on every batch; in the second place one sample alone, as a batch size of its own."""
    outputs, references, labels = [], [], []
    with torch.no_grad():
        for x, y in batches:
            for part in (slice(0, 1), slice(1, None)):
                if len(y[part]):
                    outputs.append(exported(some(x, part)))
                    references.append(eager(some(x, part)))
                    labels.append(y[part])
    return parity(torch.cat(outputs), torch.cat(references), torch.cat(labels), task)


def parity(found: Tensor, reference: Tensor, targets: Tensor, task: Task) -> Parity:
    """Of outputs ``(N, K)`` and targets ``(N, ...)``; a NaN is an infinite difference."""
    difference = (found - reference).abs().nan_to_num(nan=float("inf"))
    same = (found.argmax(-1) == reference.argmax(-1)).double().mean()
    scores = [_score(outputs, targets, task) for outputs in (found, reference)]
    return Parity(len(targets), float(difference.max()), float(same), task.primary, *scores)


def _score(outputs: Tensor, targets: Tensor, task: Task) -> float:
    metrics = task.metrics()
    metrics.update(outputs, targets)
    return float(metrics.compute()[task.primary])


def complaint(name: str, found: Parity, tolerance: float | None, max_drop: float | None) -> str:
    """Why a file is not to be kept; empty where it is."""
    if tolerance is not None:
        if found.max_abs_diff <= tolerance:
            return ""
        return (
            f"the {name} file computes something else than the network (max difference "
            f"{found.max_abs_diff:.2g} > {tolerance:g}), so it was not kept"
        )
    if max_drop is None or found.drop <= max_drop:
        return ""
    return (
        f"the {name} file loses {100 * found.drop:.1f} points of {metric_name(found.metric)}, "
        f"more than max_drop={max_drop:g}, so it was not kept: train it for int8 with qat=true, "
        "calibrate with more images, or allow a larger max_drop"
    )


def latencies(
    network: Model, models: Mapping[str, Model], x: Inputs, seconds: float = SECONDS
) -> dict[str, dict[str, Any]]:
    """Latency on one thread: name, or "eager" for `network` -> its `Timing`, for a JSON file.

    Args:
        x: one sample, as a batch.
    """
    calls = {name: partial(model, x) for name, model in {"eager": network, **models}.items()}
    found = timings(calls, seconds)
    eager = found["eager"].seconds
    return {n: {**asdict(t), "ratio_to_eager": t.seconds / eager} for n, t in found.items()}


def card(result: Mapping[str, Any], trained: bool, exported: Mapping[str, Any]) -> dict[str, Any]:
    """The deployment card: what a network is, how to feed it, what it costs, and its files.

    Args:
        result: of the run, as in result.json; what a bare architecture lacks is null.
        exported: what export.json holds; {}: nothing is exported.
    """
    task = result.get("task") or Classification().described()  # an earlier version wrote none
    return {
        "schema": 1,
        "task": task,
        "space": result["space"],
        "data": result["data"],
        "trained": trained,
        "arch": result["arch"],
        "input": {
            **result["input"],
            "layout": "NCHW float32",
            "preparation": _preparation(result["input"]),
        },
        "output": task["output"],
        "metrics": result.get("metrics"),
        "costs": result.get("costs"),
        "budgets": result.get("budgets"),
        "units": result.get("units"),
        "found_by": result.get("command"),
        "seed": result.get("seed"),
        "found_with": result.get("versions"),
        "exported_by": exported.get("command"),
        "exported_with": {"python": platform.python_version(), **versions_of(_PACKAGES)},
        "machine": machine_name(),
        "eager_latency": exported.get("eager_latency"),
        "formats": exported.get("formats", {}),
    }


def _preparation(given: Mapping[str, Any]) -> str:
    if not given["mean"]:
        return "samples as the data set gives them"
    if (largest := given.get("largest", 255)) != 255:
        what = "samples as they are" if largest == 1 else f"samples over {largest:g}"
        return f"{what}, minus mean, over std"
    said = "image scaled and centre-cropped to H x W, as 0..1, minus mean, over std"
    if given.get("value_range") is None:
        return said
    black, white = given["value_range"]
    return f"{said}; images of more than 8 bits a channel: {black:g} is 0 and {white:g} is 1"


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    samples = max((row["samples"] for row in card["formats"].values()), default=0)
    arch = json.dumps(card["arch"], indent=2)
    judged = judged_by(card) if card["metrics"] else ""
    return render("card.md", card=card, samples=samples, arch=arch, judged=judged)
