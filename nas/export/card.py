"""The deployment card: what a network is, how to feed it, what it costs, and its files."""

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nas.latency.runtimes import machine_name
from nas.units import amount

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
    parts = [_head(card), _input(card), _costs(card), _files(card), _latency(card), _origin(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(card: Mapping[str, Any]) -> str:
    lines = [f"# A network of space {card['space']} for {card['data']}"]
    if not card["trained"]:
        lines.append("**Not trained**: its weights are random; only its costs mean anything.")
    elif card["metrics"]:
        accuracy = f"Test accuracy {card['metrics']['test_acc']:.2%}"
        if "val_acc" in card["metrics"]:
            accuracy += f", validation {card['metrics']['val_acc']:.2%}"
        lines.append(f"{accuracy}.")
    return "\n\n".join(lines)


def _input(card: Mapping[str, Any]) -> str:
    given = card["input"]
    mean, std = (_numbers(given[key]) for key in ("mean", "std"))
    return (
        f"## Input and output\n\n- input `{['N', *given['shape']]}`".replace("'", "")
        + ", float32: image "
        f"{given['preparation']}\n- mean {mean}, std {std} (per channel)\n"
        f"- output: {card['output']}\n"
        f"- {len(given['classes'])} classes: {', '.join(map(_escaped, given['classes']))}"
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _costs(card: Mapping[str, Any]) -> str:
    if not card["costs"]:
        return ""
    units, budgets = card["units"] or {}, card["budgets"] or {}
    rows = []
    for name, value in card["costs"].items():
        unit = units.get(name, "")
        budget = amount(budgets[name], unit) if name in budgets else "-"
        rows.append((name, amount(value, unit), budget))
    return "## Costs\n\n" + _table(("cost", "exact", "budget"), rows)


def _files(card: Mapping[str, Any]) -> str:
    rows = []
    for name, row in card["formats"].items():
        files = ", ".join(f"`{file}` {amount(size, 'B')}" for file, size in row["files"].items())
        rows.append(
            (
                name,
                row["runtime"],
                files,
                f"{row['max_abs_diff']:.1e}",
                f"{row['argmax_agreement']:.2%}",
                f"{row['accuracy']:.2%}",
            )
        )
    samples = next((row["samples"] for row in card["formats"].values()), 0)
    header = ("format", "runtime", "files", "max abs diff", "same class", "accuracy")
    text = "## Files\n\n" + _table(header, rows)
    text += f"\n\nCompared with PyTorch in eager mode on {samples:,} test samples."
    for name, row in card["formats"].items():
        if found := row.get("qat"):
            text += (
                f" {name} holds weights trained on for int8 ({found['epochs']} epochs), compared "
                "with the network before."
            )
    return text


def _latency(card: Mapping[str, Any]) -> str:
    eager = card["eager_latency"]
    if not eager:
        return ""
    rows = [("eager", "PyTorch", _ms(eager), "1.00", _steady(eager))]
    for name, row in card["formats"].items():
        if found := row.get("latency"):
            ratio = f"{found['ratio_to_eager']:.2f}"
            rows.append((name, row["runtime"], _ms(found), ratio, _steady(found)))
    header = ("format", "runtime", "20th percentile (median) ms", "time / eager", "steady")
    return (
        f"## Latency\n\n{_table(header, rows)}\n\nOne thread, batch 1, on {card['machine']}; "
        f"{eager['calls']} interleaved calls after 20 to warm up."
    )


def _ms(found: Mapping[str, Any]) -> str:
    return f"{1e3 * found['seconds']:.3f} ({1e3 * found['median']:.3f})"


def _steady(found: Mapping[str, Any]) -> str:
    return "yes" if found["stable"] else "no: the machine was busy"


def _origin(card: Mapping[str, Any]) -> str:
    lines = ["## How it was made\n"]
    if card["found_by"]:
        lines.append(f"- found by `{card['found_by']}`, seed {card['seed']}")
    lines.append(f"- exported by `{card['exported_by']}`")
    versions = ", ".join(f"{name} {number}" for name, number in card["exported_with"].items())
    lines.append(f"- with {versions}")
    lines += ["- architecture:\n", "```json", json.dumps(card["arch"], indent=2), "```"]
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: object) -> str:
    return str(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")
