"""What deployment costs: parity, int8 accuracy, sizes and latencies of networks of every space.

    python scripts/deploy_study.py --data-root FOLDER        # train, export, tabulate
    python scripts/deploy_study.py --latency                 # measure what was exported; alone!

Trains one small network per space, exports each in every format, trains for int8 the ones that
lose more than a point of accuracy by it, and writes parity.csv, latency.csv and latency.md (the
table) into --out. What is there is not repeated, so that an interrupted study goes on where it was;
latencies are measured anew.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import nas
from nas.artifacts import RunDir
from nas.artifacts.files import write_atomic, write_json
from nas.cli import run
from nas.export.check import SECONDS, latencies
from nas.export.formats import FORMATS, chosen

SHORT = ["search=fairnas", "search.epochs=4", "search.warmup_epochs=1", "finetune.epochs=10"]
FASHION = ["data=fashion_mnist", "data.download=false", "data.limit=12000"]
# The run's name -> its words. `mobilenet` is meant for larger images than any here: not searched.
RUNS = {
    "digits_chain": ["space=chain", "space.width=0.5", *SHORT],
    "digits_chain_tiny": ["space=chain_tiny", *SHORT],
    "digits_mobilenet_tiny": ["space=mobilenet_tiny", "space.width=0.5", *SHORT],
    "digits_mobilenet": [
        "space=mobilenet",
        "space.width=0.25",
        "space.stem.stride=1",
        "search=random",
        "finetune.epochs=20",
    ],
    "fashion_chain": [*FASHION, "space=chain", "space.width=0.5", *SHORT],
    "fashion_mobilenet_tiny": [
        *FASHION,
        "space=mobilenet_tiny",
        "space.width=0.5",
        "search=random",
        "finetune.epochs=8",
    ],
}
POINT = 0.01  # of accuracy, that int8 may lose
TRAINED_FOR_INT8 = ("fashion_chain",)  # whatever it loses
PARITY = (
    "run",
    "format",
    "samples",
    "max_abs_diff",
    "argmax_agreement",
    "eager_score",
    "score",
    "drop_points",
    "bytes",
    "share_of_float32",
)
LATENCY = ("run", "format", "ratio_to_eager", "ms", "median_ms", "calls", "stable")


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    for name in arguments.runs or RUNS:
        if arguments.latency:
            measure(arguments.out, name, arguments.seconds)
        else:
            train(arguments.out, name, arguments.data_root)
            export(arguments.out, name)
    rows = list(latency_rows(arguments.out) if arguments.latency else parity_rows(arguments.out))
    table = arguments.out / ("latency.csv" if arguments.latency else "parity.csv")
    write_csv(table, LATENCY if arguments.latency else PARITY, rows)
    if arguments.latency:
        table = arguments.out / "latency.md"
        write_atomic(table, latency_table(rows))
    print(table.read_text(encoding="utf-8"))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/deploy"))
    parser.add_argument("--data-root", help="where FashionMNIST/ lies (default: data)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, help="only these")
    parser.add_argument("--latency", action="store_true", help="measure what was exported")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of measuring, each network")
    return parser.parse_args()


def train(out: Path, name: str, data_root: str | None) -> None:
    words = list(RUNS[name])
    if data_root and FASHION[0] in words:
        words.append(f"data.root={data_root}")
    if RunDir(out / "runs" / name).finished:
        return
    quiet = ["threads=1", "onnx=false", "trainer.enable_progress_bar=false", "resume=true"]
    if run(["search", *words, *quiet, f"out={out / 'runs'}", f"name={name}"]):
        raise SystemExit(f"{name} was not trained")


def export(out: Path, name: str) -> None:
    """In every format; then, where int8 loses more than a point, trained for it."""
    exported = exports(out, name) or written(out, name, FORMATS)
    rows = exported["formats"]
    lossy = [
        n
        for n, row in rows.items()
        if n.startswith("int8") and (drop(row) > POINT or name in TRAINED_FOR_INT8)
    ]
    if lossy and not exports(out, f"{name}_qat"):
        written(out, name, tuple(lossy), "_qat", ["qat=true"])


def written(
    out: Path, name: str, formats: tuple[str, ...], suffix: str = "", words: list[str] | None = None
) -> Any:
    folder = out / "exports" / f"{name}{suffix}"
    given = [f"format={','.join(formats)}", f"out={folder}", "overwrite=true", "latency=false"]
    given.append("max_drop=1")  # here a loss is a result
    code = run(["export", str(out / "runs" / name), *given, *(words or [])])
    print(f"{folder}: exit code {code}")
    return exports(out, f"{name}{suffix}")


def exports(out: Path, name: str) -> Any:
    path = out / "exports" / name / "export.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def drop(row: dict[str, Any]) -> float:
    return float(row["eager_score"] - row["score"])


def parity_rows(out: Path) -> Iterator[dict[str, Any]]:
    for folder in sorted((out / "exports").iterdir()):
        found = exports(out, folder.name)["formats"]
        plain = (exports(out, folder.name.removesuffix("_qat")) or {"formats": {}})["formats"]
        for name, row in found.items():
            floats = plain.get(name.removeprefix("int8_"))
            size, whole = (sum(r["files"].values()) if r else None for r in (row, floats))
            yield {
                "run": folder.name,
                "format": name,
                **{key: row[key] for key in PARITY if key in row},
                "max_abs_diff": f"{row['max_abs_diff']:.2e}",
                "drop_points": f"{100 * drop(row):.2f}",
                "bytes": size,
                "share_of_float32": f"{size / whole:.3f}" if size and whole else "",
            }


def measure(out: Path, name: str, seconds: float) -> None:
    """Open what was exported and time it against eager."""
    there = exports(out, name)
    if there is None:
        raise SystemExit(f"{name} is not exported in {out}: first run this without --latency")
    network = nas.load(out / "runs" / name)
    result = RunDir(out / "runs" / name).read_result() or {}
    folder = out / "exports" / name
    formats = chosen([n for n in there["formats"] if n != "state_dict"], network)
    models = {n: form.open(folder / form.files[0]) for n, form in formats.items()}
    x = torch.randn(1, *result["input"]["shape"], generator=torch.Generator().manual_seed(0))
    write_json(folder / "latency.json", latencies(network, models, x, seconds))
    print(f"{name}: measured")


def latency_rows(out: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((out / "exports").glob("*/latency.json")):
        for name, row in json.loads(path.read_text(encoding="utf-8")).items():
            yield {
                "run": path.parent.name,
                "format": name,
                "ratio_to_eager": f"{row['ratio_to_eager']:.3f}",
                "ms": f"{1e3 * row['seconds']:.4f}",  # 20th percentile
                "median_ms": f"{1e3 * row['median']:.4f}",
                "calls": row["calls"],
                "stable": row["stable"],
            }


def latency_table(rows: list[dict[str, Any]]) -> str:
    """A row for each network, a column for each runtime: the ratio, in brackets where unstable."""
    formats = [name for name in FORMATS if any(row["format"] == name for row in rows)]
    found = {(row["run"], row["format"]): row for row in rows}
    lines = [["network", "eager, ms", *formats], ["---"] * (2 + len(formats))]
    for network in dict.fromkeys(row["run"] for row in rows):
        cells = [_cell(found.get((network, name)), "ratio_to_eager") for name in formats]
        lines.append([network, _cell(found[network, "eager"], "ms"), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(row: dict[str, Any] | None, key: str) -> str:
    if row is None:
        return "-"
    return f"{float(row[key]):.2f}" if row["stable"] else f"({float(row[key]):.2f})"


def write_csv(path: Path, header: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


if __name__ == "__main__":
    main()
