"""The deployment card: what a network is, how to feed it, what it costs, and its files."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nas.latency.runtimes import machine_name
from nas.report.templates import render

_PACKAGES = ("dnas", "torch", "onnx", "onnxruntime", "executorch", "torchao")


def card(result: Mapping[str, Any], trained: bool, exported: Mapping[str, Any]) -> dict[str, Any]:
    """What card.json holds.

    Args:
        result: of the run, as in result.json; what a bare architecture lacks is null.
        exported: what export.json holds.
    """
    return {
        "schema": 1,
        "task": "image classification",
        "space": result["space"],
        "data": result["data"],
        "trained": trained,
        "arch": result["arch"],
        "input": {
            **result["input"],
            "layout": "NCHW float32",
            "preparation": "scaled and centre-cropped to H x W, as 0..1, minus mean, over std"
            + _depth(result["input"].get("value_range")),
        },
        "output": "logits (N, classes); softmax gives probabilities",
        "metrics": result.get("metrics"),
        "costs": result.get("costs"),
        "budgets": result.get("budgets"),
        "units": result.get("units"),
        "found_by": result.get("command"),
        "seed": result.get("seed"),
        "found_with": result.get("versions"),
        "exported_by": exported["command"],
        "exported_with": _versions(),
        "machine": machine_name(),
        "eager_latency": exported["eager_latency"],
        "formats": exported["formats"],
    }


def _depth(value_range: Sequence[float] | None) -> str:
    if value_range is None:
        return ""
    black, white = value_range
    return f"; images of more than 8 bits a channel: {black:g} is 0 and {white:g} is 1"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    samples = next((row["samples"] for row in card["formats"].values()), 0)
    arch = json.dumps(card["arch"], indent=2)
    return render("card.md", card=card, samples=samples, arch=arch)
