"""Measure this machine as a device for the cost `roofline`, and write its file.

    python scripts/measure_device.py
    python scripts/measure_device.py --name "x86 server core" --threads 1 --out my_device.yaml

Peak: the best rate of a large matrix product. Bandwidth: the best rate of a copy much larger than
any cache, bytes read plus bytes written. The best of many, because other processes only slow both
down. Energies cannot be measured this way and are left out.
"""

import argparse
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import yaml

from nas.artifacts.files import write_atomic
from nas.cost.device import Device

OUT = Path(__file__).parents[1] / "configs" / "device" / "this_machine.yaml"
SIDE = 1536  # of the matrices: 9 MB each in float32
COPY_BYTES = 2**28


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    on_chip = arguments.on_chip_bytes or cache_bytes()
    figures = {
        "name": arguments.name,
        "native_dtype": arguments.dtypes[0],
        "peak_ops_per_s": {
            dtype: rounded(2 * SIDE**3 / best(product(dtype), arguments.seconds))
            for dtype in arguments.dtypes
        },
        "bandwidth_bytes_per_s": rounded(2 * COPY_BYTES / best(copy(), arguments.seconds)),
        "on_chip_bytes": on_chip,
    }
    Device(**figures)  # refuses what it could not load again
    write_atomic(arguments.out, file_text(figures, arguments))
    print(f"{arguments.out}:\n{yaml.safe_dump(figures, sort_keys=False)}")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="this machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each figure")
    parser.add_argument("--on-chip-bytes", type=int, help="by default the size of the L2 cache")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


def product(dtype: str) -> Callable[[], object]:
    a, b = (torch.randn(SIDE, SIDE).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def copy() -> Callable[[], object]:
    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def best(run: Callable[[], object], seconds: float) -> float:
    """Seconds of the quickest of the runs that fit into `seconds`."""
    run()
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def rounded(value: float) -> float:
    """To three digits: more are not repeatable."""
    return float(f"{value:.2e}")


def cache_bytes() -> int:
    """Size of the first core's L2 cache, as Linux tells it: "1024K"."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "level").read_text().strip() == "2":
            return int((index / "size").read_text().strip().removesuffix("K")) * 1024
    raise SystemExit("the size of the L2 cache is not known here: give --on-chip-bytes N")


def file_text(figures: dict[str, object], arguments: argparse.Namespace) -> str:
    command = f"python scripts/measure_device.py --name {arguments.name!r}"
    command += f" --threads {arguments.threads} --dtypes {' '.join(arguments.dtypes)}"
    notes = (
        f"Measured on {date.today()} with torch {torch.__version__}, "
        f"{arguments.threads} thread(s): best matrix product of side {SIDE}, best "
        f"copy of {COPY_BYTES >> 20} MiB (read plus written); on-chip memory is the L2 "
        "cache. Energies are not measured."
    )
    table = {"_target_": "nas.cost.device.Device", **figures, "notes": notes}
    return f"# Measured; regenerate with\n#   {command}\n" + yaml.safe_dump(table, sort_keys=False)


if __name__ == "__main__":
    main()
