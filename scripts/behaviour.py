"""What a fixed set of short runs gives, to prove that a change of the code changes no result.

    python scripts/behaviour.py record before.json     # in the old checkout
    python scripts/behaviour.py record after.json      # in the new one, same machine and versions
    python scripts/behaviour.py compare before.json after.json

Each run is a `nas` command on the embedded digits, of two short epochs, seeded. Recorded are the
architectures, scores, costs and every tensor of every network as a hash; not times and versions.
The runs take a few minutes on one core; ``record FILE NAME...`` runs only those that are named.
"""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = "data=digits data.limit=160 data.batch_size=16 threads=1 trainer.enable_progress_bar=false"
TINY = f"{DATA} finetune.epochs=2"
CHAIN = f"search {TINY} space=chain_tiny space.width=0.25 onnx=false"
SHORT = "search.epochs=2 search.warmup_epochs=1"
FAIR = f"search=fairnas {SHORT}"
CELLS = f"search +experiment={{}} {TINY} space.channels=4 space.cells=1 {SHORT} onnx=false"
MOBILE = f"search +experiment={{}} {TINY} data.val_fraction=0.5 space=mobilenet_tiny onnx=false"

DARTS = ("darts", "darts_minus", "darts_second_order", "drnas", "fair_darts", "sdarts")

# Name -> commands, run one after the other in the same folder.
RUNS: dict[str, list[str]] = {
    **{recipe: [CELLS.format(recipe)] for recipe in DARTS},
    "pc_darts": [CELLS.format("pc_darts") + " space.channels=8"],
    "snas": [CELLS.format("snas").replace("search.warmup_epochs=1", "search.warmup_epochs=0")],
    "gdas": [MOBILE.format("gdas") + " search.epochs=2"],
    "proxyless_g": [MOBILE.format("proxyless_g") + f" ~data.size {SHORT} search.alpha_every=2"],
    "proxyless_r": [MOBILE.format("proxyless_r") + f" ~data.size {SHORT} search.alpha_every=2"],
    "fashion_front": [
        f"search +experiment=fashion_front {TINY} space=chain_tiny search=fairnas search.epochs=1"
        " front=2 search.ranking.trials=6 onnx=false"
    ],
    "cifar_chain": [f"search +experiment=cifar_chain {TINY} {SHORT} onnx=false"],
    "truth": [f"search +experiment=truth {TINY} space=chain_tiny {FAIR} onnx=false"],
    "budget": [
        f"{CHAIN} {FAIR} budget.params=60% budget.macs=70%",
        "extract runs/budget --front 3 fine_tune=true",
    ],
    "fairnas": [
        f"{CHAIN} search=fairnas search.epochs=2 search.ranking.trials=12",
        "extract runs/fairnas budget.params=40%",
    ],
    "once_for_all": [
        f"search {TINY} space=ofa_mobilenet_small search=once_for_all search.ranking.trials=12"
        " onnx=false"
    ],
    **{
        name: [f"{CHAIN} search={name} search.trials=6 finetune.epochs=1"]
        for name in ("random_search", "evolution", "nsga2", "tpe", "predictor")
    },
    "export": [
        f"{CHAIN} search=random".replace("onnx=false", "onnx=true"),
        "export runs/export format=python,onnx,int8_onnx,pt2",
    ],
    "describe": ["describe space=nas_bench_201 data=digits"],
}
LEFT_OUT = {
    *("seconds", "versions", "overrides", "command", "cpu_seconds", "machine", "date", "created"),
    *("onnx_max_abs_diff", "latency", "report"),
}


def digest(path: Path) -> str:
    """A hash of the tensors in a file of weights, whatever the archive around them."""
    import torch

    found = torch.load(path, map_location="cpu", weights_only=True)
    state = found.get("state_dict", found)
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        if isinstance(tensor, torch.Tensor):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def kept(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: kept(v) for k, v in value.items() if k not in LEFT_OUT}
    return [kept(v) for v in value] if isinstance(value, list) else value


def contents(folder: Path) -> dict[str, Any]:
    """What lies below `folder`: file -> its content or its hash."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("arch.json", "result.json"):
            found[name] = kept(json.loads(path.read_text(encoding="utf-8")))
        elif path.name == "trials.jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            found[name] = [kept(json.loads(line)) for line in lines]
        elif path.suffix == ".pt" and "export" not in path.parts:
            found[name] = digest(path)
        elif path.suffix == ".py" or path.name == "network.csv":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        elif path.is_file() and "tensorboard" not in path.parts:
            found[name] = "there"
    return found


def record(out: Path, names: list[str]) -> None:
    """Run the commands of `names`, or of all, and write what they give."""
    from nas.cli import run

    out = out.resolve()
    results: dict[str, Any] = {}
    for name in names or RUNS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            codes = []
            for command in RUNS[name]:
                words = command.split()
                named = [f"name={name}"] if words[0] == "search" else []
                codes.append(run([*words, *named]))
            results[name] = {"codes": codes, "files": contents(Path(folder))}
            os.chdir("/")
        out.write_text(json.dumps(results, indent=1, sort_keys=True), encoding="utf-8")
        print(f"{name}: {codes}, {len(results[name]['files'])} files", file=sys.stderr, flush=True)


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Every place in which two JSON values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        absent = "(absent)"
        pairs = [(before.get(k, absent), after.get(k, absent), f"{where}/{k}") for k in keys]
        return [line for pair in pairs for line in differences(*pair)]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        places = enumerate(zip(before, after, strict=True))
        return [line for i, pair in places for line in differences(*pair, f"{where}[{i}]")]
    return [] if before == after else [f"{where}: {before!r:.120} -> {after!r:.120}"]


def main(arguments: list[str]) -> int:
    """``record FILE [NAME ...]`` or ``compare FILE FILE``; 1 where there is a difference."""
    verb, *files = arguments
    if verb == "record":
        record(Path(files[0]), files[1:])
        return 0
    before, after = (json.loads(Path(file).read_text(encoding="utf-8")) for file in files)
    common = {name: before[name] for name in before if name in after}
    found = differences(common, {name: after[name] for name in common})
    print("\n".join(found) or f"{len(common)} runs give the same")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
