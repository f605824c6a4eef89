"""Attack x verb: what a stranger's folder does to each verb that reads it.

    PYTHONPATH=.:tests/contracts python scripts/attacks.py

prints a Markdown table of (refused / tried): each attack stands at each top-level key of a run's
config.yaml, in one shape after the other (in a list, nested, ...), and each verb reads it. It
counts as refused where the verb ends with exit code 2 and one line, and no file of the attack's
appears.
"""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from test_untrusted_folders import ATTACKS, SHAPES, TOPS, VERBS, filled, write

from nas.cli import run
from nas.config.compose import compose_config


def main() -> None:
    composed = compose_config(["cost=[params,macs]", "guard=skips", "name=x"])
    config: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    verbs = {name: words for name, words in VERBS.items() if "arch.json" not in name}
    print(f"| attack | {' | '.join(verbs)} |\n|---|{'---|' * len(verbs)}")
    totals = dict.fromkeys(verbs, (0, 0))
    for place, (attack, node) in enumerate(ATTACKS.items()):
        cells = []
        for verb, words in verbs.items():
            # These compose a configuration first, which takes long; they read the folder by one
            # function, so one key of each attack, another one each time.
            one = verb.endswith("resume=")
            tops = [TOPS[place % len(TOPS)]] if one else TOPS
            refused = sum(is_refused(words, config, node, top) for top in tops)
            cells.append(f"{refused} / {len(tops)}")
            totals[verb] = (totals[verb][0] + refused, totals[verb][1] + len(tops))
        print(f"| {attack} | {' | '.join(cells)} |", flush=True)
    print(f"| **all** | {' | '.join(f'**{a} / {b}**' for a, b in totals.values())} |")


def is_refused(words: list[str], config: Mapping[str, Any], node: Any, top: str) -> bool:
    """Whether the verb refuses, in one line, the folder with the attack at this key."""
    with tempfile.TemporaryDirectory() as made:
        folder, home = Path(made), Path.cwd()
        os.chdir(folder)
        sys.path.insert(0, made)
        try:
            (folder / "RUN").mkdir()
            (folder / "evil.py").write_text(f"open({made + '/canary'!r}, 'w')\n")
            (folder / "RUN/arch.json").write_text('{"schema": 1, "space": "x", "choices": {}}')
            (folder / "RUN/last.ckpt").touch()
            (folder / "RUN/result.json").write_text('{"schema": 1, "status": "finished"}')
            shape = list(SHAPES.values())[TOPS.index(top) % len(SHAPES)]
            write(folder / "RUN", {**config, top: shape(filled(node, folder))})
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code = run(words)
            lines = said.getvalue().strip().splitlines()
            return code == 2 and len(lines) == 1 and not (folder / "canary").exists()
        finally:
            sys.path.remove(made)
            os.chdir(home)


if __name__ == "__main__":
    main()
