"""CPU seconds of a trace and of peak memory, and the process's largest memory.

python scripts/bench_trace.py darts mnasnet 200x12     # spaces, or blocks x candidates in a row
"""

import resource
import subprocess
import sys
import time
from itertools import islice, product

import torch
from torch import nn

from nas.config.compose import compose_config, made
from nas.cost.memory import PeakMemory
from nas.cost.trace import trace
from nas.supernet.choice import ChoiceBlock
from nas.supernet.elastic_ops import build_op

SIDES = {"mnasnet": 224, "mnasnet_small": 64}


def row(blocks: int, candidates: int) -> nn.Module:
    """Blocks of MBConv candidates of 16 channels."""
    names = [f"mb_k{k}_e{e}{se}" for e, se, k in product((1, 2, 3), ("", "_se"), (3, 5, 7))]
    ops = list(islice(names, candidates))
    return nn.Sequential(
        *(ChoiceBlock({name: build_op(name, 16, 16) for name in ops}) for _ in range(blocks))
    )


def measure(name: str) -> None:
    """Print a row of the table."""
    shape = (16, 32, 32)
    with torch.device("meta"):
        if name[0].isdigit():
            model = row(*map(int, name.split("x")))
        else:
            shape = (3, SIDES.get(name, 32), SIDES.get(name, 32))
            model = made(compose_config([f"space={name}"]).space)(shape, 10)
    start = time.process_time()
    traced = trace(model, shape)
    middle = time.process_time()
    PeakMemory().expected(model, traced)
    end = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = f"{middle - start:.2f} | {end - middle:.2f} | {peak:.0f} | {len(traced.operators)}"
    print(f"| {name} | {found} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        measure(sys.argv[1])
    else:
        print("| space | trace, CPU s | peak memory, CPU s | MB | operators |")
        print("|---|---|---|---|---|", flush=True)
        for given in sys.argv[1:]:
            subprocess.run([sys.executable, __file__, given], check=True)
