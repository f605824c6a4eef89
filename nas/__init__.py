"""Differentiable neural architecture search for networks that must fit a device.

The names below are the public API. Each is imported at its first use, so that `import nas` and
the command line stay quick.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# Threads sleep while they wait for each other. By default they spin, which takes twice the time
# where another process wants the cores. OpenMP reads it once, as torch is loaded; processes that
# are started from here inherit it.
if os.environ.keys().isdisjoint(("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

if TYPE_CHECKING:
    from nas.api import compress as compress
    from nas.api import open_run as open_run
    from nas.api import search as search
    from nas.arch import Arch as Arch
    from nas.cost.analytic import MACs as MACs
    from nas.cost.analytic import Params as Params
    from nas.cost.by_layer import cost_of as cost_of
    from nas.cost.expected import ExpectedCost as ExpectedCost
    from nas.cost.trace import trace as trace
    from nas.decision import apply as apply
    from nas.decision import decisions as decisions
    from nas.decision import free as free
    from nas.decision import resample as resample
    from nas.decision import sample_path as sample_path
    from nas.decision import split_parameters as split_parameters
    from nas.discretization import arch_of as arch_of
    from nas.discretization import discretize as discretize
    from nas.errors import UserError as UserError
    from nas.export import load as load
    from nas.supernet.choice import ChoiceBlock as ChoiceBlock
    from nas.supernet.elastic_ops import build_op as build_op

_HOME = {
    "Arch": "nas.arch",
    "ChoiceBlock": "nas.supernet.choice",
    "ExpectedCost": "nas.cost.expected",
    "MACs": "nas.cost.analytic",
    "Params": "nas.cost.analytic",
    "UserError": "nas.errors",
    "apply": "nas.decision",
    "arch_of": "nas.discretization",
    "compress": "nas",  # the package itself, which can be called
    "build_op": "nas.supernet.elastic_ops",
    "cost_of": "nas.cost.by_layer",
    "decisions": "nas.decision",
    "discretize": "nas.discretization",
    "free": "nas.decision",
    "load": "nas.export",
    "open_run": "nas.api",
    "resample": "nas.decision",
    "sample_path": "nas.decision",
    "search": "nas",  # the package itself, which can be called
    "split_parameters": "nas.decision",
    "trace": "nas.cost.trace",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nas' has no attribute {name!r}; it offers {__all__}")
    if _HOME[name] == "nas":
        return import_module(f"nas.{name}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
