"""What a long search leaves behind in memory, and how a report grows with its runs."""

import argparse
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nas.artifacts import RunDir
from reliability.commands import (
    SEARCH,
    SMALL,
    nas,
    required,
    row,
)


def growth(arguments: argparse.Namespace) -> None:
    print("| run | memory, MB | open files | threads |")
    print("|---|---|---|---|")
    for name in ("trials", "epochs", "jobs"):
        count = getattr(arguments, name)
        row(arguments.out, f"{count} {name}", partial(grown, name, count, arguments.out))


def grown(name: str, count: int, out: Path) -> Sequence[object]:
    """Memory, files and threads after a tenth of the run, halfway, and at its end."""
    from nas.cli import run
    from nas.search.differentiable import DifferentiableSearch
    from nas.train import Training

    folder = out / "growth" / name
    shutil.rmtree(folder, ignore_errors=True)
    seen: list[tuple[int, int, int]] = []
    owner: Any = DifferentiableSearch if name == "epochs" else Training
    begin = owner.on_train_epoch_start

    def noted(self: Any) -> None:
        seen.append((resident(), len(os.listdir("/proc/self/fd")), threading.active_count()))
        begin(self)

    owner.on_train_epoch_start = noted
    words = [*SMALL, "onnx=false", "finetune.epochs=1", f"out={folder}", "name=a"]
    search = ["search=random_search", "search.evaluate.epochs=1", f"search.trials={count}"]
    if name == "epochs":
        search = ["search=bilevel", f"search.epochs={count}", "search.warmup_epochs=1"]
    if name == "jobs":  # of a sweep in one process; every other one fails, of a NaN
        draws = f"seed=range(0,{count // 2})"
        search = ["-m", "search=random", draws, "finetune.optimizer.lr=0.05,1e30"]
    code = run(["search", *words, *search])
    owner.on_train_epoch_start = begin
    if code != (name == "jobs"):
        raise SystemExit(f"the search ended with {code}")
    points = [seen[count // 10], seen[count // 2], seen[count - 1]]
    memory, files, threads = zip(*points, strict=True)
    return (*(" / ".join(map(str, values)) for values in (memory, files, threads)),)


def resident() -> int:
    """MB of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def reports(arguments: argparse.Namespace) -> None:
    print("| runs | CPU of the report, s | page, MB | page opens in, s | of which its CPU, s |")
    print("|---|---|---|---|---|")
    base = arguments.out / "disk"
    if not (base / "out/a/result.json").exists():
        required(nas(base, (*SEARCH, "out=out")))
    for count in arguments.runs:
        row(arguments.out, str(count), partial(reported, base / "out/a", count, arguments.out))


def reported(base: Path, count: int, out: Path) -> Sequence[object]:
    folder = out / "reports" / str(count)
    fabricate(base, folder, count)
    before = os.times()
    required(nas(folder.parent, ("report", folder.name)))
    after = os.times()
    spent = sum(after[2:4]) - sum(before[2:4])
    page = RunDir(folder).report
    size = page.stat().st_size / 1e6
    lasted, own = min(opened(page) for _ in range(3))
    return f"{spent:.1f}", f"{size:.1f}", f"{lasted:.1f}", f"{own:.1f}"


def fabricate(base: Path, folder: Path, count: int) -> None:
    """Copies of a finished run, each with an architecture and figures of its own."""
    record = json.loads((base / "result.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    for index in range(count):
        draw = random.Random(index)
        scale = 10 ** draw.uniform(0, 2)
        made = json.loads(json.dumps(record))
        made["seed"] = index % 3
        made["overrides"] = {"objective.strength": round(scale, 4), "seed": index % 3}
        made["costs"] = {k: int(v * scale) + index for k, v in record["costs"].items()}
        accuracy = 0.5 + 0.2 * (scale**0.3 - 1) / 3 + draw.gauss(0, 0.05)
        made["metrics"] = dict.fromkeys(record["metrics"], min(0.999, max(0.1, accuracy)))
        made["arch"] = {k: draw.choice(["conv_k3", "conv_k5", "sep_k3"]) for k in record["arch"]}
        made["arch_hash"] = f"{index:012x}"
        (folder / str(index)).mkdir(parents=True)
        (folder / str(index) / "result.json").write_text(json.dumps(made))
        shutil.copy(base / "config.yaml", folder / str(index) / "config.yaml")


def opened(page: Path) -> tuple[float, float]:
    """Seconds until the points are drawn, in a headless Chromium; CPU seconds of the page's thread.

    Where other programs run, only the second tells of the page.
    """
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        tab = browser.new_page()
        tools = tab.context.new_cdp_session(tab)
        tools.send("Performance.enable", {"timeDomain": "threadTicks"})
        started = time.monotonic()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("#chart .point")
        lasted = time.monotonic() - started
        metrics = tools.send("Performance.getMetrics")["metrics"]
        own = next(found["value"] for found in metrics if found["name"] == "TaskDuration")
        browser.close()
    return lasted, own
