"""Timing steps that follow one another, and the table of what was compared."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

Step = Callable[[], object]
Statistic = Callable[[list[float]], float]


@dataclass(frozen=True)
class Row:
    """One comparison; times in ms."""

    name: str
    space: str
    batch: int
    ratio: float
    pairs: tuple[float, float, float]  # quartiles of the ratios of neighbours
    limit: float | None = None
    p20: float | None = None
    cpu: float | None = None
    ours: float | None = None
    plain: float | None = None

    @property
    def missed(self) -> bool:
        return self.limit is not None and self.ratio > self.limit


class Times(NamedTuple):
    """Step -> ms of each round, by the clock and of the processor."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]


def interleave(steps: dict[str, Step], rounds: int, warm_up: bool = True) -> Times:
    """Time the steps one after the other, `rounds` times, each round beginning with another."""
    names = list(steps)
    times = Times({name: [] for name in names}, {name: [] for name in names})
    for step in steps.values() if warm_up else ():
        step()
    for i in range(rounds):
        for j in range(len(names)):
            name = names[(i + j) % len(names)]
            start, start_cpu = time.perf_counter_ns(), time.process_time_ns()
            steps[name]()
            times.wall[name].append((time.perf_counter_ns() - start) / 1e6)
            times.cpu[name].append((time.process_time_ns() - start_cpu) / 1e6)
    return times


def compare(
    label: str, steps: tuple[str, str], at: tuple[str, int], repeats: Sequence[Times], limit: float
) -> Row:
    """The first of `steps` against the second; `at` is space and batch."""
    name, plain = steps

    def mean(of: Statistic, step: str, clock: str) -> float:
        return statistics.fmean(of(getattr(times, clock)[step]) for times in repeats)

    def ratio(of: Statistic, clock: str = "wall") -> float:
        return mean(of, name, clock) / mean(of, plain, clock)

    pairs = [
        ours / theirs
        for times in repeats
        for ours, theirs in zip(times.wall[name], times.wall[plain], strict=True)
    ]
    return Row(
        label,
        *at,
        ratio(statistics.median),
        quartiles(pairs),
        limit,
        ratio(percentile_20),
        ratio(statistics.median, "cpu"),
        mean(statistics.median, name, "wall"),
        mean(statistics.median, plain, "wall"),
    )


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def percentile_20(values: list[float]) -> float:
    return statistics.quantiles(values, n=5, method="inclusive")[0]


def machine() -> dict[str, str | float]:
    """What the figures depend on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def show(rows: Sequence[Row]) -> None:
    columns = ("step", "space", "batch", "ratio", "limit", "p20", "cpu", "pairs", "quartiles")
    table = Table(box=None)
    for column in (*columns, "ms", "of ms"):
        left = column in ("step", "space")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        low, middle, high = row.pairs
        table.add_row(
            row.name,
            row.space,
            str(row.batch),
            f"[red]{row.ratio:.3f}[/]" if row.missed else f"{row.ratio:.3f}",
            number(row.limit, 2),
            number(row.p20, 3),
            number(row.cpu, 3),
            f"{middle:.3f}",
            f"{low:.3f}-{high:.3f}",
            number(row.ours, 1),
            number(row.plain, 1),
        )
    Console(width=120).print(table)
    missed = [f"{row.name} ({row.space}, batch {row.batch})" for row in rows if row.missed]
    print(f"above the limit: {', '.join(missed)}" if missed else "all within the limits")


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
