"""The command `nas`: verbs, one-line errors, exit codes. Heavy imports wait for their verb.

Exit codes: 0 done; 1 a run failed, or the disk is full; 2 the user can mend it; 130 interrupted, by
Ctrl-C, SIGTERM or SIGUSR1.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nas.diagnostics import interrupting, stop_collecting
from nas.errors import (
    FailedRunError,
    InterruptedRunError,
    UserError,
    about_path,
    is_full,
    page_of,
    refusal,
    write_traceback,
)

if TYPE_CHECKING:
    from nas.config.compose import Arguments


def main() -> None:
    """Entry point of the command line."""
    if sys.argv[1:2] in (["search"], ["finetune"], ["describe"]):
        stop_collecting()  # they collect again when their work begins
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from nas.config.help import usage

        print(usage())
        return 0
    if arguments[0] == "--version":
        from nas import __version__

        print(f"nas {__version__}")
        return 0
    try:
        with interrupting():
            return _verb(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return _ended_by(error, arguments[0])


def _verb(arguments: Sequence[str]) -> int:
    _check_text(arguments)
    from nas.config.help import VERBS, help_of

    verb, *rest = arguments
    if verb not in VERBS:
        from nas.config.compose import meant

        raise UserError(f"unknown verb {verb!r}.{meant(verb, VERBS)} nas has {', '.join(VERBS)}")
    if "-h" in rest or "--help" in rest:
        print(help_of(verb, rest))
        return 0
    from nas.config.compose import parse

    given = parse(verb, rest)
    if verb == "completion":
        from nas.config.completion import script

        print(script(given.places[0]))
        return 0
    if given.places:
        from nas.config.saved import check_places

        check_places(verb, given)
    if verb == "extract":
        from nas.extract import extract

        extract(given)
        return 0
    if verb == "export":
        from nas.export.command import export

        export(given)
        return 0
    if verb == "report":
        return _report(given)
    if verb == "draw":
        from nas.report.terminal import draw

        draw([Path(run) for run in given.places])
        return 0
    from nas.launch import launch

    return launch(verb, given)


def _report(given: "Arguments") -> int:
    from nas.report import report

    folders = [Path(place) for place in given.places]
    options = given.options
    out = Path(options.out) if options.out else None
    files = report(folders, options.cost, options.metric, out, options.spread)
    if options.serve:
        from nas.report.tensorboard import serve

        serve([*folders, files.tensorboard], files.html)
    return 0


def _ended_by(error: BaseException, verb: str) -> int:
    """Tell the user in one line what has ended the command; the exit code."""
    if isinstance(error, BrokenPipeError):  # of `nas ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # lest Python complains when it ends
        return 141
    if isinstance(error, UserError):
        return _complain(str(error), verb)
    if isinstance(error, KeyboardInterrupt):
        code, said = 130, "interrupted"
    elif isinstance(error, InterruptedRunError):
        code, said = 130, str(error)
    elif isinstance(error, FailedRunError):
        code, said = 1, str(error)
    elif isinstance(error, OSError) and is_full(error):
        code, said = 1, f"{refusal(error)}, and run the same command again"
    elif about := about_path(error):
        return _complain(about, verb)
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


def _complain(message: str, verb: str) -> int:
    page = page_of(message, verb)
    more = f" (see docs/{page}.md)" if page else ""
    print(f"nas: error: {' '.join(message.split())}{more}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "")
    main()
