"""Examples in docstrings: each runs, and each public name that a user calls has one."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import nas

PACKAGE = Path(nas.__file__).parent
EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]
# `load` reads the folder of a finished run, as docs/results.md does; an error is raised by others.
WITHOUT = {"UserError", "load"}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module):
    tested = doctest.testmod(import_module(module))
    assert tested.attempted
    assert not tested.failed


def test_public_names_have_examples():
    lacking = [name for name in nas.__all__ if ">>> " not in (getattr(nas, name).__doc__ or "")]
    assert set(lacking) == WITHOUT
