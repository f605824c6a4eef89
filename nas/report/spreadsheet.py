"""report.csv: every run, finished or not, one row; every number exactly as the run wrote it."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from nas import tables
from nas.report.front import Front, Sweep
from nas.report.runs import Run

NESTED = ("overrides", "metrics", "costs", "seconds")


def csv_text(sweeps: Sequence[Sweep], fronts: Sequence[Front]) -> str:
    """Tables of a run become columns `metrics.test_acc`, ...; `arch` is one column of JSON."""
    rows = list(_rows(sweeps, fronts))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    # Grouped by kind: a run that failed early would otherwise scatter the columns.
    groups = ["", *NESTED, "arch"]
    columns.sort(key=lambda name: groups.index(name.split(".")[0]) if _nested(name) else 0)
    return tables.csv_text(columns, ([row.get(name, "") for name in columns] for row in rows))


def _nested(name: str) -> bool:
    return name == "arch" or name.split(".")[0] in NESTED


def _rows(sweeps: Sequence[Sweep], fronts: Sequence[Front]) -> Iterator[dict[str, str]]:
    for sweep, front in zip(sweeps, fronts, strict=True):
        for run in sweep.runs:
            yield _row(run, front)


def _row(run: Run, front: Front) -> dict[str, str]:
    row: dict[str, Any] = {
        "sweep": front.label,
        "run": run.name,
        "status": run.status,
        "place": front.place(run),
        "seed": "" if run.seed is None else run.seed,
        "space": run.space,
        "data": run.data,
        "message": run.message,
        "arch_hash": run.arch_hash,
    }
    for table in NESTED:
        row |= {f"{table}.{name}": value for name, value in getattr(run, table).items()}
    row["arch"] = dict(run.arch) if run.arch else ""
    return {name: v if isinstance(v, str) else json.dumps(v) for name, v in row.items()}
