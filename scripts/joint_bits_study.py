"""Architecture and bits searched together, and one after the other, at equal bytes.

    python scripts/joint_bits_study.py OUT --root FOLDER [--seeds 3] [--bytes 6000]

`FOLDER` is the one that torchvision keeps Fashion-MNIST in. Each way trains 32 networks briefly,
one to its end, and ends at no more than the same bytes. All that are trained to their end have as
many epochs. What is in OUT is not done again. Prints a table of experiments/bits/README.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from bits_study import Parts, accuracy, fashion, table
from torch.utils.data import TensorDataset

import nas
from nas.artifacts.files import write_json
from nas.integer import integer_graph
from nas.integer.operators import Conv

SHORT, EPOCHS, AGAIN = 2, 14, 8  # of a short training, of a network, of it with other bits
OPS = ["conv_k3", "sep_k3", "sep_k5"]
STAGES: list[dict[str, Any]] = [
    {"ops": OPS, "channels": 16},
    {"ops": OPS, "channels": 32, "stride": 2},
    {"ops": [*OPS, "identity"], "channels": 32},
    {"ops": OPS, "channels": 64, "stride": 2},
    {"ops": [*OPS, "identity"], "channels": 64},
]
BITS = [2, 4, 8]
QUANTIZE: dict[str, dict[str, Any]] = {
    "together, bits of each layer": {"weights": BITS},
    "together, bits of each block": {"weights": BITS, "share": "block"},
    "architecture at 8 bits": {"weights": 8},
    "architecture at 4 bits": {"weights": 4},
}
THEN = "architecture at 8 bits and twice the bytes, then bits"
# The bytes that the integer graph stores.
SIZE = {"dtype": "int8", "fold_norm": True, "bias_bits": 16, "scale_bits": 16}


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bytes", type=int, default=6000)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        parts = fashion(given.root, seed)
        for number, way in enumerate([*QUANTIZE, THEN]):
            path = given.out / f"{given.bytes}-{seed}" / f"{number}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, trained(way, given.bytes, parts, seed, path.with_suffix("")))
            rows.append({"way": way, **json.loads(path.read_text())})
        print(table(rows), flush=True)


def trained(way: str, most: int, parts: Parts, seed: int, out: Path) -> dict[str, Any]:
    """Bytes and test accuracy of the network that a way ends at, and what it took to find it."""
    keys: dict[str, Any] = {
        "data": tuple(TensorDataset(*parts[name]) for name in ("train", "val", "test")),
        "cost": ["size"],
        "cost__size": SIZE,
        "seed": seed,
        "threads": 1,
        "onnx": False,
        "logger": [],
        "out": out,
    }
    began = time.process_time()
    epochs = EPOCHS if way == THEN else EPOCHS + AGAIN
    run = nas.search(
        {"stages": STAGES, "quantize": QUANTIZE.get(way)},
        budget={"size": most * (2 if way == THEN else 1)},
        search="short_trainings",
        search__evaluate__epochs=SHORT,
        finetune__epochs=epochs,
        name="search",
        **keys,
    )
    if way == THEN:
        first = run.best.network
        run = nas.compress(
            first,
            budget={"size": most},
            space__quantize={"weights": BITS},
            search="sensitivity",
            finetune__epochs=AGAIN,
            name="bits",
            **keys,
        )
    network = run.best.network.eval()
    graph = integer_graph(network, parts["train"][0][:512])
    return {
        "size": run.best.costs["size"],
        "stored": sum(one.stored for one in graph.operators if isinstance(one, Conv)),
        "test": accuracy(network, *parts["test"]),
        "integer": accuracy(graph, *parts["test"]),
        "seconds": time.process_time() - began,
    }


if __name__ == "__main__":
    main()
