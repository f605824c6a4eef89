"""The command `nas`: verbs, one-line errors, exit codes. Heavy imports wait for their verb.

Exit codes: 0 done; 1 a run failed, or the disk is full; 2 the user can mend it; 130 interrupted, by
Ctrl-C, SIGTERM or SIGUSR1.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nas.diagnostics import interrupting
from nas.errors import (
    FailedRunError,
    InterruptedRunError,
    UserError,
    about_path,
    is_full,
    refusal,
    write_traceback,
)

USAGE = """\
nas: search for the network that fits your device

  nas search    [options]            search, fine-tune, test and export one network
  nas finetune  arch=FILE [options]  train a known architecture (checkpoint=FILE inherits weights)
  nas describe  [options]            decisions of a space, number of architectures, cost ranges
  nas profile   [options]            measure a space on a device: the cost latency reads the result
  nas extract   RUN [options]        other networks of a finished search: budget.params=20k, front=8
  nas report    DIR [DIR ...]        all runs below a folder: front, table, CSV, pictures, HTML;
                                     --serve shows them in TensorBoard
  nas draw      RUN [RUN ...]        the network block by block: here, as SVG and as CSV
  nas export    RUN [options]        files that deploy, each checked, and a card: format=onnx,pte

Options are Hydra's: group=option, key=value, -m for a sweep. `nas search --help` lists them.
  nas search                                        digits, a few minutes
  nas search data=image_folder data.root=photos     your own images
  nas search -m objective.strength=0.03,0.1,0.3,1   one run for each strength, then a report
"""

OPTIONS = """\
nas {verb}: options are group=option or key=value

groups (--config-dir FOLDER adds your own):
{groups}
keys:
{keys}
Inside a group: group.key=value, e.g. search.epochs=20, data.batch_size=128, space.width=0.5.
  --cfg job   print the whole configuration, run nothing
  -m          sweep: key=a,b,c; hydra/launcher=joblib runs jobs side by side
"""

PROFILE = """\
nas profile [options]: measure every candidate of a space on a device, fit, validate

  space=... data=...       what to measure: the space, at the size of the data's inputs
  input=[3,224,224] classes=10  the size without any data
  runtime=torch            torch | torch_compile | onnxruntime | executorch
  threads=1 batch=1 dtype=float32 accelerator=cpu
  device=NAME              what the profile calls the device (the processor's own name)
  networks=50 calibrate=20 random whole networks to measure; so many calibrate, the others validate
  seconds=600 calls=1000   budget of the timing; calls of each thing where it allows
  out=FILE                 the profile (profiles/SPACE_RUNTIME.json); the same command resumes
  export_to=FOLDER         write ONNX files and a manifest to measure elsewhere; pte=true adds .pte
  import_csv=FILE          fit what was measured elsewhere

  nas profile space=mobilenet_tiny data=cifar10 runtime=onnxruntime out=here.json
  nas search  space=mobilenet_tiny data=cifar10 cost=[latency] profile=here.json budget.latency=3ms
"""

EXTRACT = """\
nas extract RUN [options]: networks out of a finished search, without searching again

  budget.NAME=AMOUNT   at most so much, e.g. budget.params=20k budget.macs=30%
  front=N              at most N networks, from the smallest to the most probable
  cost=NAME            the cost that they are spread over (params)
  layers=2             of a ranking: also networks that only the front dominates, for scores err
  fine_tune=true       train each; else the supernet's weights are taken as they are
  profile=[A,B,...]    for each of several devices, in a folder of its name; then a table of all.
                       budget.latency=3ms is for each, budget.latency=[3ms,8ms] one after another
  out=FOLDER           where their folders go (RUN/extracts)
  trust=true           run code from outside this package that the run's config.yaml names
  KEY=VALUE            any key of the run's own config.yaml, e.g. finetune.epochs=10
"""

EXPORT = """\
nas export RUN|arch.json [options]: files that deploy, each run and compared with the network

  format=NAME,NAME     state_dict, python, onnx, pt2, pte, int8_onnx, int8_pte (onnx)
  out=FOLDER           where they go, with card.md, card.json and export.json (RUN/export)
  overwrite=true       replace what is there
  calibration=N        training images from which int8 learns its ranges (512)
  qat=true             train for int8 first: qat_epochs=N (3), qat_lr=RATE (1e-3)
  max_drop=SHARE       accuracy that an int8 file may lose and be kept (0.05: 5 points)
  latency=false        do not measure the runtimes
  data.KEY=VALUE       of the run's data, e.g. data.root=FOLDER
  trust=true           run code from outside this package that the run's config.yaml names
of an arch.json without a run: weights=FILE, space=NAME, data=NAME, --config-dir=FOLDER
"""


REPORT = (
    "nas report DIR [DIR ...] [cost=params] [metric=test_acc] [out=FOLDER] [--serve]: "
    "reads figures; nothing that a folder names is run"
)
DRAW = (
    "nas draw RUN [RUN ...]: prints each network, writes RUN/network.svg and network.csv; "
    "nothing that a folder names is run"
)


def main() -> None:
    """Entry point of the command line."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        from nas import __version__

        print(f"nas {__version__}")
        return 0
    try:
        with interrupting():
            return _verb(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return _ended_by(error)


def _verb(arguments: Sequence[str]) -> int:
    _check_text(arguments)
    verb, *rest = arguments
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}; nas has {', '.join(VERBS)}")
    return VERBS[verb](verb, rest)


def _ended_by(error: BaseException) -> int:
    """Tell the user in one line what has ended the command; the exit code."""
    if isinstance(error, UserError):
        return _complain(str(error))
    if isinstance(error, KeyboardInterrupt):
        code, said = 130, "interrupted"
    elif isinstance(error, InterruptedRunError):
        code, said = 130, str(error)
    elif isinstance(error, FailedRunError):
        code, said = 1, str(error)
    elif isinstance(error, OSError) and is_full(error):
        code, said = 1, f"{refusal(error)}, and run the same command again"
    elif about := about_path(error):
        return _complain(about)
    else:  # no traceback for the user: it goes to a file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        code, said = 1, f"failed: {reason[:500]} (see {write_traceback(error)})"
    print(f"nas: {said}", file=sys.stderr)
    return code


def _check_text(arguments: Sequence[str]) -> None:
    for number, argument in enumerate(arguments, 1):
        if not argument:
            raise UserError(f"argument {number} is empty: write key=value, or leave it out")
        if "\0" in argument or any("\ud800" <= letter <= "\udfff" for letter in argument):
            raise UserError(f"argument {number}, {argument!r}, is no text (UTF-8)")


def _complain(message: str) -> int:
    print(f"nas: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _configured(verb: str, arguments: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        print(PROFILE if verb == "profile" else _options(verb))
        return 0
    from nas.verbs import launch

    return launch(verb, arguments)


def _options(verb: str) -> str:
    from nas.config.compose import groups, top_level_help

    listed = "\n".join(f"  {name:10} {', '.join(found)}" for name, found in groups().items())
    return OPTIONS.format(verb=verb, groups=listed, keys=top_level_help())


def _report(verb: str, arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(REPORT)
        return 0
    serving = "--serve" in arguments
    arguments = [word for word in arguments if word != "--serve"]
    settings = dict(word.split("=", 1) for word in arguments if "=" in word)
    unknown = settings.keys() - {"cost", "metric", "out"}
    if unknown:
        raise UserError(f"unknown key {sorted(unknown)}; nas report takes cost, metric and out")
    for key in (key for key, value in settings.items() if not value):
        raise UserError(f"{key}= is empty: give a value, or leave it out")
    folders = [Path(word) for word in _places("report", arguments, REPORT)]
    from nas.report import report

    out = settings.pop("out", None)
    cost, metric = settings.get("cost", "params"), settings.get("metric", "test_acc")
    files = report(folders, cost, metric, Path(out) if out else None)
    if serving:
        from nas.report.tensorboard import serve

        serve([*folders, files.tensorboard], files.html)
    return 0


def _draw(verb: str, arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        print(DRAW)
        return 0
    runs = _places("draw", arguments, DRAW)
    for word in arguments:
        if word not in runs:
            raise UserError(f"nas draw takes runs alone, not {word!r}: {DRAW}")
    from nas.report.terminal import draw

    draw([Path(run) for run in runs])
    return 0


def _extract(verb: str, arguments: list[str]) -> int:
    words = [word.removeprefix("--") for word in arguments]
    if "--front" in arguments[:-1]:  # the only flag with a value: --front 8
        at = arguments.index("--front")
        words[at : at + 2] = [f"front={arguments[at + 1]}"]
    if "help" in words or "-h" in words:
        print(EXTRACT)
        return 0
    _first("extract", arguments, "RUN")
    from nas.extract import extract

    return extract(words)


def _export(verb: str, arguments: list[str]) -> int:
    if "--help" in arguments or "-h" in arguments:
        print(EXPORT)
        return 0
    _first("export", arguments, "RUN or arch.json")
    from nas.export.command import export

    return export(arguments)


def _places(verb: str, arguments: Sequence[str], usage: str) -> list[str]:
    """The arguments that are folders."""
    for word in arguments:
        if word.startswith("-"):
            raise UserError(f"unknown flag {word!r}: {usage}")
    found = [word for word in arguments if "=" not in word or Path(word).is_dir()]
    if not found:
        raise UserError(f"nas {verb} needs a folder: {usage}")
    return found


def _first(verb: str, arguments: Sequence[str], what: str) -> None:
    first = arguments[0] if arguments else ""
    if not first or first.startswith("-") or ("=" in first and not Path(first).exists()):
        got = f", not {first!r}" if first else ""
        raise UserError(f"nas {verb} needs {what} first{got}; see `nas {verb} --help`")


VERBS: dict[str, Callable[[str, list[str]], int]] = {
    "search": _configured,
    "finetune": _configured,
    "describe": _configured,
    "profile": _configured,
    "extract": _extract,
    "report": _report,
    "draw": _draw,
    "export": _export,
}

if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "")
    main()
