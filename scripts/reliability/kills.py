"""Commands that are killed at random moments, or given twice at once."""

import argparse
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from reliability.commands import (
    EXPORT,
    EXTRACT,
    PROFILE,
    SEARCH,
    SMALL,
    SWEEP,
    TRIALS,
    Command,
    figures,
    nas,
    required,
    row,
)


@dataclass(frozen=True)
class Case:
    """A command that is killed and given again.

    Args:
        words: of `nas`, in a folder of its own.
        results: files that are compared with those of an unbroken command.
        before: commands that make what this one needs.
        again: instead of `words` from the second time on.
    """

    words: Sequence[str]
    results: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    again: Sequence[str] | None = None


CASES = {
    "search": Case((*SEARCH, "out=out"), ["out/a/result.json"]),
    "search by trials": Case((*TRIALS, "out=out"), ["out/a/result.json", "out/a/trials.jsonl"]),
    "search, 2 workers": Case(
        (*TRIALS, "out=out", "search.workers=2"), ["out/a/result.json", "out/a/trials.jsonl"]
    ),
    "joblib sweep": Case((*SWEEP, "out=out"), [f"out/a/{i}/result.json" for i in range(3)]),
    "finetune": Case(
        ("finetune", *SMALL, "arch=out/a/arch.json", "finetune.epochs=6", "out=tuned", "name=a"),
        ["tuned/a/result.json"],
        before=[(*SEARCH, "out=out")],
    ),
    "extract front": Case(EXTRACT, ["out/a/front/*/result.json"], before=[(*SEARCH, "out=out")]),
    "export": Case(
        EXPORT,
        ["out/a/export/export.json"],
        before=[(*SEARCH, "out=out")],
        again=(*EXPORT, "overwrite=true"),
    ),
    "profile": Case(PROFILE, ["profile.json"]),
}


def kills(arguments: argparse.Namespace) -> None:
    print("| command | killed | signals | equal to unbroken | seconds, unbroken |")
    print("|---|---|---|---|---|")
    for name in arguments.cases:
        row(arguments.out, name, partial(killed_and_equal, name, arguments))
    row(arguments.out, "two sweeps into one folder", partial(two_at_once, "sweep", arguments))
    row(arguments.out, "two extractions of one run", partial(two_at_once, "extract", arguments))


def killed_and_equal(name: str, arguments: argparse.Namespace) -> Sequence[object]:
    """Kill at random moments, each time a little later, until the command ends; then compare."""
    case, folder = CASES[name], arguments.out / "kills" / name.replace(" ", "_").replace(",", "")
    shutil.rmtree(folder, ignore_errors=True)
    for words in case.before:
        required(nas(folder / "base", words))
    shutil.copytree(folder / "base", folder / "whole") if case.before else None
    started = time.monotonic()
    required(nas(folder / "whole", case.words))
    lasted = time.monotonic() - started
    expected = figures(folder / "whole", case.results)
    draw, equal, hit, last = random.Random(name), 0, 0, list[str]()
    for number in range(arguments.kills):
        broken = folder / f"killed{number}"
        if case.before:
            shutil.copytree(folder / "base", broken)
        sent = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)[number % 4]
        hit += killed(broken, case.words, sent, lasted * draw.uniform(0.3, 0.95))
        required(nas(broken, case.again or case.words))
        found = figures(broken, case.results)
        equal += found == expected
        if found != expected:
            last.append(str(broken))
        leftovers = [str(path) for path in broken.rglob(".*.nas-*")]
        if leftovers:
            last.append(f"left {leftovers}")
    return (
        f"{hit} of {arguments.kills}",
        "KILL, TERM, USR1",
        f"{equal} of {arguments.kills} {' '.join(last)}",
        round(lasted),
    )


def killed(folder: Path, words: Sequence[str], sent: int, after: float) -> bool:
    """Whether the command, with all its processes, still ran when the signal came."""
    command = Command(folder, words)
    if command.ended(after):
        return False
    os.killpg(command.pid, sent)
    command.ended()
    if sent != signal.SIGKILL and (command.code not in (0, 130) or "Traceback" in command.text):
        raise SystemExit(f"a signal ended it with {command.code}, see {command.log}")
    return command.code != 0


def two_at_once(what: str, arguments: argparse.Namespace) -> Sequence[object]:
    """The same command twice at once: no result is lost or torn, and each is that of one alone."""
    folder = arguments.out / "kills" / f"two_{what}"
    shutil.rmtree(folder, ignore_errors=True)
    words, results = EXTRACT, CASES["extract front"].results
    if what == "sweep":
        words, results = (*SEARCH, "out=out", "-m", "seed=0,1,2"), CASES["joblib sweep"].results
    for place in ("whole", "both") if what == "extract" else ():
        required(nas(folder / place, (*SEARCH, "out=out")))
    required(nas(folder / "whole", words))
    pair = [Command(folder / "both", words), Command(folder / "both", words)]
    for command in pair:
        command.ended()
    same = figures(folder / "both", results) == figures(folder / "whole", results)
    codes = ", ".join(str(command.code) for command in pair)
    return "-", "none", "equal" if same else "NOT equal", f"exit codes {codes}"
