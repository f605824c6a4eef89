"""What searching costs: training steps of a supernet against plain networks without decisions.

    python scripts/bench_step.py
    python scripts/bench_step.py --rows soft speed --spaces chain --batch 32 128 --json bench.json

A step is draw, forward, cross-entropy, backward, SGD on the weights, and Adam on the alphas unless
they are frozen, on random images: the five-block `chain` space at 3 x 32 x 32, `mobilenet` at
3 x 64 x 64. "Plain" is PyTorch as it is, in its default memory format.

    soft      all paths, softmax         / a plain module that runs and adds the same branches
    speed     the same at `speed=kernels` and `channels_last` / that module
    compile   the same at `speed=compile` / that module; takes minutes to set up
    mask      MobileNetV2 of torchvision with searched channels / as it was given; bytes kept, too
    cost      costs under theta, and their gradient / a whole soft step
    hard      one path, Gumbel, STE, of 3, 6 and 12 candidates / the plain network of the very path
    bytes     kept by autograd for the backward of `hard` / of that plain network
    two_path  ProxylessNAS: alphas on two paths, weights on one / the mean plain single path
    bf16      all paths and a plain network, channels last, under bf16 autocast / in float32
    threads   a plain network on two threads / on one; also the processor time of the main thread
    rank      networks ranked along the tree of their first stages / each scored alone; minutes
    bilevel   alphas, then weights, NAS-Bench-201 with 8 channels / two plain steps of all ops

The steps that are compared follow one another at once, in turning order, so that what else the
machine does meets all of them; several times, each with another path (`hard`) or fresh copies, as
copies differ by some per cent in where they lie in memory. "ratio" divides means over these of
medians over rounds, "p20" of 20th percentiles, "cpu" of medians of processor time, which leaves
out what other processes took; "pairs" is the median, and "quartiles" the spread, of the ratios
within each round.
"""

import argparse
import gc
import json
from dataclasses import asdict
from pathlib import Path

import torch
from bench.networks import NUM_CLASSES, SHAPES
from bench.rows import BENCHES
from bench.timing import Row, machine, show

BATCH = {
    **{"chain_tiny": (64,), "chain": (32, 128), "mobilenet_tiny": (64,), "mobilenet": (16,)},
    **{"nas_bench_201": (64,), "truth": (128,), "mobilenet_v2": (16, 96)},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = [name for name in BENCHES if name not in ("bf16", "compile", "rank", "threads")]
    parser.add_argument("--rows", nargs="+", choices=BENCHES, default=default, metavar="ROW")
    parser.add_argument("--spaces", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch", type=int, nargs="+", help=f"instead of {BATCH}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="of each repeat, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error(f"--rounds must be at least 2 to have a spread, got {args.rounds}")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    facts = machine()
    print(", ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    rows: list[Row] = []
    gc.disable()
    for name in args.rows:
        bench, spaces = BENCHES[name]
        for space in [space for space in spaces if space in args.spaces]:
            for size in args.batch or BATCH[space]:
                torch.manual_seed(0)
                batch = torch.randn(size, *SHAPES[space]), torch.randint(NUM_CLASSES, (size,))
                rows += bench(space, batch, args.rounds)
                gc.collect()
    show(rows)
    if args.json:
        figures = {"machine": facts, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
