"""What an epoch costs beside a loop written by hand of the same steps on tensors in memory.

    python scripts/bench_epoch.py --epochs 12

Digits, `chain_tiny` at half width: networks of 25 k parameters, whose steps take few milliseconds.
An epoch is all that `nas` does from the start of one to that of the next: batches, steps, scores,
validation, curves, checkpoint. The loop has its data normalised in memory, writes no file, and
gives the same weights to the bit, which is checked. Epochs of both follow one another in one
process, ours after the loop's. "cpu" divides medians of processor time, "wall" of time.

    one-shot                          weights on one drawn path a step
    bilevel                           alphas, then weights; validates supernet and best network
    fine-tuning                       and validation, of one network
    fine-tuning, crop                 both augment
    fine-tuning, crop / loop without  the loop does not augment
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from bench.epochs import ROWS, measured
from bench.timing import machine


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--epochs", type=int, default=12, help="the first one does not count")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    print("| epoch of | ms | loop, ms | cpu | quartiles | wall | results |")
    print("|---|---|---|---|---|---|---|")
    for name in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            row = measured(name, given.epochs, Path(folder) / "run")
        low, high = row.quartiles
        print(
            f"| {name} | {row.ours:.1f} | {row.plain:.1f} | {row.cpu:.3f} | {low:.2f}-{high:.2f} "
            f"| {row.wall:.3f} | {'equal' if row.equal else 'DIFFERENT'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
