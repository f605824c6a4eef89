"""Runs through the command line, in this process, small enough for a test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import dumps, loads
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource

import nas.pipeline
import nas.verbs
from nas.cli import run
from nas.config.help import config_dir

SMALL = [
    "space.width=0.25",
    "data.limit=400",
    "finetune.epochs=2",
    "threads=1",
    "front=1",
    "trainer.enable_progress_bar=false",
]

SEARCHED = ["search=bilevel", "search.epochs=2", "search.warmup_epochs=1"]

Nas = Callable[..., int]

_files = dict[tuple[str, str], bytes]()


def _kept(load: Callable[[ConfigSource, str], ConfigResult]) -> Any:
    """What a file of the package or of Hydra says, which is read once; those of a test may change.

    Args:
        load: the method of a class of sources.
    """

    def found(source: ConfigSource, config_path: str) -> ConfigResult:
        if source.scheme() == "file" and Path(source.path) != config_dir():
            return load(source, config_path)
        key = (source.path, config_path)
        if key not in _files:
            _files[key] = dumps(load(source, config_path))
        return loads(_files[key])  # noqa: S301 - in a third of the time of deepcopy

    return found


@pytest.fixture(autouse=True, scope="module")
def _quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave out what takes a third of the time of a run as small as these, and changes no result.

    Hydra composes once only to see whether ``hydra.mode`` is set, which no test does, and reads the
    same twenty files each time; and TensorBoard's graph, which `test_run` has drawn, is traced
    twice. One network is trained where a test does not ask for more.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hydra, "get_mode", lambda *_, **__: None)
        # Hydra loads the modules of its sources itself: these are no classes that can be imported.
        Plugins.instance()
        for scheme in ("file", "pkg"):
            kind = SourcesRegistry.instance().resolve(scheme)
            patched.setattr(kind, "load_config", _kept(kind.load_config))
        patched.setattr(nas.verbs, "FRONT", 1)
        if request.path.stem != "test_run":
            patched.setattr(nas.pipeline, "log_graph", lambda *_: None)
        yield


@pytest.fixture
def small() -> list[str]:
    return [*SMALL, *SEARCHED]


@pytest.fixture
def nas_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nas:
    """`nas VERB ...` in an empty folder, with small networks, few images and few epochs."""
    monkeypatch.chdir(tmp_path)

    def command(verb: str, *arguments: str) -> int:
        chosen = any(word.startswith(("search=", "+experiment=")) for word in arguments)
        searched = [] if "search=random" in arguments else SEARCHED[chosen:]
        return run([verb, *SMALL, *searched, *arguments])

    return command
