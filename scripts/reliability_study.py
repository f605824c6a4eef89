"""Figures of experiments/reliability: kills, full disks, growth, and reports of many runs.

    python scripts/reliability_study.py kills   --out reliability [--kills 5]
    python scripts/reliability_study.py disk    --out reliability    # mounts a tmpfs: as root
    python scripts/reliability_study.py growth  --out reliability [--trials 200 --jobs 20]
    python scripts/reliability_study.py reports --out reliability [--runs 1000 2500 5000]

Each prints rows of a Markdown table. What is finished lies in OUT/rows.jsonl and is not repeated.
"""

import argparse
import importlib
from pathlib import Path

from reliability.disk import disk
from reliability.growth import growth, reports
from reliability.kills import CASES, kills


def main() -> None:
    arguments = parsed()
    arguments.out = arguments.out.resolve()
    for name in ("nas.verbs", "nas.pipeline", "nas.export.command", "nas.extract", "nas.report"):
        importlib.import_module(name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    {"kills": kills, "disk": disk, "growth": growth, "reports": reports}[arguments.what](arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "disk", "growth", "reports"])
    parser.add_argument("--out", type=Path, default=Path("reliability"))
    parser.add_argument("--kills", type=int, default=5, help="of each command")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=20, help="of a sweep, every other one failing")
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 2500, 5000])
    return parser.parse_args()


if __name__ == "__main__":
    main()
