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
# These read or write folders of runs, as docs/results.md and docs/python.md do; an error is raised.
WITHOUT = {"UserError", "load", "open_run", "search"}


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module):
    tested = doctest.testmod(import_module(module))
    assert tested.attempted
    assert not tested.failed


def test_public_names_have_examples():
    lacking = [name for name in nas.__all__ if ">>> " not in (getattr(nas, name).__doc__ or "")]
    assert set(lacking) == WITHOUT
