"""Commands on a disk that is nearly full."""

import argparse
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from reliability.commands import (
    PROFILE,
    SEARCH,
    TRIALS,
    figures,
    nas,
    required,
    row,
)


def disk(arguments: argparse.Namespace) -> None:
    print("| command, space left | exit | says | afterwards |")
    print("|---|---|---|---|")
    base = arguments.out / "disk"
    if not (base / "out/a/result.json").exists():
        required(nas(base, (*SEARCH, "out=out")))
    cases: dict[str, Sequence[str]] = {
        "search": (*SEARCH, "out=full/out"),
        "search by trials": (*TRIALS, "out=full/out"),
        "extract": ("extract", "full/out/a", "fine_tune=true"),
        "report": ("report", "full/out"),
        "draw": ("draw", "full/out/a"),
        "export": ("export", "full/out/a", "format=state_dict,pt2,onnx,python", "latency=false"),
        "profile": (*PROFILE[:-1], "out=full/profile.json"),
    }
    for name, words in cases.items():
        for room in (0, 16, 120, 480):
            key = f"{name}, {room} kB"
            row(arguments.out, key, partial(filled, base, words, room, name))


def filled(base: Path, words: Sequence[str], room: int, name: str) -> Sequence[object]:
    """Run on a disk with `room` kB left, then with enough: its exit code, words, and the end."""
    with small_disk(base / "full") as folder:
        if "search" not in name and name != "profile":
            shutil.copytree(base / "out", folder / "out")
        else:
            (folder / "out").mkdir()
        stuffing = folder / "stuffing"
        with stuffing.open("wb") as file:
            free = shutil.disk_usage(folder).free - 1024 * room
            file.write(bytes(max(0, free)))
        done = nas(base, words)
        code, text = done.code, done.text
        line = next((x for x in text.splitlines() if x.startswith("nas: ")), "-")
        half = list((folder / "out/a/export").glob("*")) if code else []
        stuffing.unlink()
        again = nas(base, (*words, "overwrite=true") if name == "export" else words)
        after = "goes on" if again.code == 0 else f"ended with {again.code}"
        if name == "search" and again.code == 0:
            same = figures(folder, ["out/a/result.json"]) == figures(base, ["out/a/result.json"])
            after = "equal to unbroken" if same else "NOT equal"
        if half and name == "export":
            after += f", half an export: {[path.name for path in half]}"
        what = line if code else "nothing: it fits"
        if "disk is full" in line:
            what = "the disk"
            if "Saved last" in line or "goes on" in line:
                what += ", how to go on"
        return code, "TRACEBACK" if "Traceback" in text else what, after


@contextmanager
def small_disk(folder: Path, size: str = "24m") -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
