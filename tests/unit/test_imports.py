"""Imports go one way, and the light entry points stay light."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import reload
from pathlib import Path

import pytest

import nas

PACKAGE = Path(__file__).parents[2] / "nas"

# The floors of the house, from the ground up. A module may import from its own part, from parts to
# the left of it, and from lower floors (above it in this list). Lowerings come before what profiles
# with them, and the command of a package after what it drives: such a file is a part of its own.
FLOORS = (
    "errors inputs ranks artifacts arch copying pareto quantities tables diagnostics progress",
    "config",
    "tasks.metrics tasks data decision",
    "ops supernet quantization",
    "discretization spaces",
    "cost",
    "lowering integer objective distinct selection recalibrate compress epochs train problem",
    "search report latency export",
    "teacher result pipeline front estimate verbs launch",
    "extract export.command process finished api cli",
)
RANK = {name: rank for rank, name in enumerate(" ".join(FLOORS).split())}

# They work on any arch.json and weights, whoever found them.
SEARCH_FREE = {"export", "report"}
# Third-party package -> the only parts of nas that may know of it.
CONFINED = {
    "hydra": {"api", "config", "export.command", "launch", "verbs"},
    "omegaconf": {"api", "config", "export.command", "extract", "launch", "verbs"},
    "pytorch_lightning": {
        "data",
        "epochs",
        "train",
        "search",
        "problem",
        "result",
        "pipeline",
        "front",
        "estimate",
        "process",
    },
    "lightning": set(),
}
# In extras: a module-level import would break an installation without the extra.
OPTIONAL = {
    "distributed",
    "executorch",
    "joblib",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "optuna",
    "pandas",
    "pyarrow",
    "pymoo",
    "ray",
    "soundfile",
    "torchao",
}
# Loaded where a Trainer is made: whoever trains nothing does not wait for them.
TRAINING = {"pytorch_lightning", "torchmetrics", "torchvision"}
TRAINERS = {"epochs", "train", "search", "result", "pipeline", "front", "estimate", "process"}
HEAVY = {"torch", "torchvision", "pytorch_lightning", "sklearn", "matplotlib", "onnx"}


def absolute_names(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Dotted names that one import statement in `module` may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = module.split(".")[: None if is_package else -1]
    anchor = parents[: len(parents) - node.level + 1] if node.level else []
    base = ".".join([*anchor, *filter(None, [node.module])])
    return [f"{base}.{alias.name}" for alias in node.names]


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: no function bodies, no TYPE_CHECKING."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in node.orelse if typing_only else ast.iter_child_nodes(node):
        yield from at_import_time(child)


def part_of(dotted: str) -> str:
    """The part of nas that "arch.Arch" or "export.int8.slim" is in, as in FLOORS."""
    parts = dotted.split(".")
    return next((p for p in (".".join(parts[:2]), parts[0]) if p in RANK), parts[0])


def fault(part: str, name: str) -> str | None:
    """Why `part` of nas may not import the dotted `name`, or None if it may."""
    top, _, rest = name.partition(".")
    if top != "nas":
        allowed = CONFINED.get(top, {part})
        return None if part in allowed else f"only {sorted(allowed) or 'no part of nas'} may"
    target = part_of(rest)
    if target == "__version__":
        return None
    if target not in RANK:
        return "import it from the module that defines it, or give a new part its floor here"
    if RANK[target] > RANK[part]:
        return f"{target} is on a higher floor than, or right of, {part}"
    if target == "search" and part.partition(".")[0] in SEARCH_FREE:
        return f"{part} must work without the search"
    return None


def faults(module: str, source: str, is_package: bool = False) -> list[str]:
    """Wrong arrows of one module, e.g. ``faults("nas.arch", "import nas.cli")``."""
    part = part_of(module.partition(".")[2])
    if part not in RANK:
        return [f"{module}: on no floor; add it to FLOORS"]
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        for name in absolute_names(node, module, is_package):
            if reason := fault(part, name):
                found.append(f"{module}:{node.lineno} imports {name}: {reason}")
    for node in at_import_time(tree):
        for name in absolute_names(node, module, is_package):
            if name.partition(".")[0] in OPTIONAL:
                found.append(f"{module}:{node.lineno} imports {name}: do it where it is used")
            late = name.partition(".")[0] in TRAINING and not fault(part, name)
            if late and part not in TRAINERS | {"tasks.metrics"}:
                found.append(f"{module}:{node.lineno} imports {name}: do it where a Trainer is")
    return found


def sources() -> dict[str, Path]:
    """Module name -> file, but for those that look up lazily what stands above them.

    They are the package's own `__init__`, and those of the packages that can be called.
    """
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    lazy = ("nas", "nas.search", "nas.compress")
    return {name: path for name, path in names.items() if name not in lazy}


@pytest.mark.parametrize("module", sources())
def test_imports_go_one_way(module):
    path = sources()[module]
    assert not faults(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nas.arch", "import nas.search.evolution"),
        ("nas.cost.layer", "from nas.search import searcher"),
        ("nas.cost.layer", "from nas import search"),
        ("nas.cost.layer", "from ..search import searcher"),
        ("nas.arch", "def f():\n    from .cli import main"),
        ("nas.ops.blocks", "from ..spaces.staged import StagedSpace"),
        ("nas.ops.catalogue", "from nas.supernet.elastic import Elastic"),
        ("nas.report", "from nas.search.searchers import Searcher"),
        ("nas.cli", "from nas import load"),
        ("nas.ops.blocks", "import pytorch_lightning as pl"),
        ("nas.search.searchers", "from omegaconf import DictConfig"),
        ("nas.cli", "import lightning.pytorch as pl"),
        ("nas.report", "try:\n    import matplotlib.figure\nexcept ImportError:\n    pass"),
        ("nas.data.own", "import pytorch_lightning as pl"),
        ("nas.tasks.regression", "from torchmetrics import Metric"),
        ("nas.utils", "import math"),
        ("nas.latency.profile", "from nas.export.job import Export"),
        ("nas.lowering", "from nas.artifacts import RunDir\nfrom nas.export import job"),
    ],
)
def test_a_wrong_arrow_is_found(module, source):
    assert len(faults(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nas.cost.trace", "from nas.supernet.choice import ChoiceBlock"),
        ("nas.cost.trace", "from .base import LayerSpec\nfrom . import base"),
        (
            "nas.search.searchers",
            "import pytorch_lightning as pl\nfrom nas.cost import base",
        ),
        ("nas.cli", "from nas import __version__, report"),
        ("nas.report", "def draw():\n    import matplotlib.figure"),
        ("nas.latency.profile", "from nas.lowering import onnx_bytes"),
        ("nas.export.job", "from nas.export import int8"),
        (
            "nas.report",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import optuna",
        ),
    ],
)
def test_a_right_arrow_is_let_through(module, source):
    assert not faults(module, source)


def test_a_package_resolves_its_relative_imports_from_itself():
    assert not faults("nas.search", "from .searcher import Searcher", is_package=True)
    assert faults("nas.ops", "from ..search import searcher", is_package=True)


def loaded_after(code: str, cwd: Path) -> set[str]:
    """The modules that a fresh interpreter has loaded after running `code` in `cwd`."""
    # At exit, because the command line ends by SystemExit.
    report = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{report}\n{code}"], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


LIGHT = (
    "import nas",
    "import nas.cli",
    "sys.argv[1:] = ['--help']; import runpy; runpy.run_module('nas.cli', run_name='__main__')",
    *(
        f"sys.argv[1:] = ['{verb}', '--help']; nas.cli.main()"
        for verb in ("search", "profile", "extract", "export", "report", "draw")
    ),
)


def test_light_entry_points_load_nothing_heavy(tmp_path):
    """One after the other in one interpreter, each of which ends by SystemExit or not."""
    lines = [f"with contextlib.suppress(SystemExit):\n    {line}\nseen()" for line in LIGHT]
    seen = f"seen = lambda: print('HEAVY', *{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(["import contextlib, sys", seen, *lines])],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("HEAVY")]
    assert found == ["HEAVY"] * len(LIGHT)


def test_describing_a_space_loads_nothing_that_trains(tmp_path):
    describe = "sys.argv[1:] = ['describe', 'trial=false', 'threads=1']"
    loaded = loaded_after(f"{describe}; import nas.cli; nas.cli.main()", tmp_path)
    assert "torch" in loaded
    # PyTorch's compiler and SciPy's solvers take a second each, its formulas a quarter.
    assert not loaded & {*TRAINING, "matplotlib", "torch._dynamo", "sympy", "scipy.optimize"}


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        ({}, "PASSIVE"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ({"GOMP_SPINCOUNT": "1000"}, None),
        ({"KMP_BLOCKTIME": "200"}, None),
    ],
)
def test_threads_wait_passively_unless_the_user_says_how(given, policy, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    reload(nas)
    assert os.environ.get("OMP_WAIT_POLICY") == policy


def test_a_heavy_import_is_noticed(tmp_path):
    (tmp_path / "torch.py").write_text("")
    assert HEAVY & loaded_after("import torch", tmp_path) == {"torch"}
