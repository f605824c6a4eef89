"""A stranger's folder: what its config.yaml names is looked up, never imported, never run."""

import importlib
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.config.calls import target_of
from nas.config.compose import compose_config
from nas.config.saved import saved_config
from nas.config.trusted import _is_allowed, _shipped, foreign
from nas.errors import UserError

TOPS = ["data", "space", "relax", "search", "cost", "device", "measure", "objective", "guard"]
TOPS += ["finetune", "trainer", "budget", "weights", "about_me"]

# Each writes the file {canary} where it runs; {folder} is the stranger's, with x.pt, evil.py.
ATTACKS: dict[str, dict[str, Any]] = {
    "load, through an optimizer's module": {
        "_target_": "torch.optim.adam.torch.load",
        "f": "{folder}/x.pt",
        "weights_only": False,
    },
    "torch.hub, through an optimizer's module": {
        "_target_": "torch.optim.adam.torch.hub.load",
        "repo_or_dir": "{folder}",
        "model": "m",
        "source": "local",
    },
    "a function of this package that writes": {
        "_target_": "nas.artifacts.files.write_atomic",
        "path": {"_target_": "nas.artifacts.files.Path", "_args_": ["{canary}"]},
        "content": "x",
    },
    "a module of this package's imports": {
        "_target_": "nas.artifacts.files.os.system",
        "command": "touch {canary}",
    },
    "the shell": {"_target_": "os.system", "command": "touch {canary}"},
    "the shell by position": {"_target_": "subprocess.getoutput", "_args_": ["touch {canary}"]},
    "the interpreter": {"_target_": "builtins.exec", "_args_": ["open('{canary}', 'w')"]},
    "a module in the working folder": {"_target_": "evil.write", "path": "{canary}"},
    "an import of Lightning's": {
        "_target_": "pytorch_lightning.trainer.trainer.os.system",
        "command": "touch {canary}",
    },
    "Lightning's Trainer with a logger": {
        "_target_": "pytorch_lightning.Trainer",
        "logger": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": "{canary}"},
    },
    "a folder of Lightning's Trainer": {
        "_target_": "pytorch_lightning.Trainer",
        "default_root_dir": "{canary}",
        "profiler": "advanced",
    },
    "nas profile in another's place": {
        "_target_": "nas.latency.command.Profiling",
        "import_csv": "{folder}/times.csv",
        "out": "{canary}",
    },
    "a method of an allowed class": {
        "_target_": "nas.supernet.choice.Relaxing.__init__.__globals__",
        "x": 1,
    },
    "a download to a new folder": {
        "_target_": "nas.data.cifar10",
        "_partial_": True,
        "root": "{canary}/data",
        "download": True,
    },
    "a variable of the environment": {"value": "${oc.env:PATH}"},
    "a resolver": {"value": "${evil:{canary}}"},
    "a name that is made when it is read": {"_target_": "${oc.decode:os.system}", "command": "x"},
    "text in place of a name": {"_target_": ["os", "system"]},
    "another special key": {"_call_": "os.system"},
}

PROFILE = ATTACKS["nas profile in another's place"]

SHAPES: dict[str, Callable[[Any], Any]] = {
    "itself": lambda attack: attack,
    "in a list": lambda attack: [attack],
    "in a mapping": lambda attack: {"inner": attack},
    "in a list of lists": lambda attack: {"inner": [[{"x": attack}]]},
    "below an allowed object": lambda attack: {"_target_": "nas.objective.Plain", "x": attack},
}

# What an arch.json may call its space; Hydra would take it for a path, a value or a list.
SPACES = ["../../RUN/config", "/RUN/config", "{a: b}", "${oc.env:HOME}", "x,y"]

VERBS: dict[str, list[str]] = {
    "search resume=": ["search", "resume=RUN"],
    "finetune resume=": ["finetune", "arch=RUN/arch.json", "resume=RUN"],
    "extract": ["extract", "RUN"],
    "extract front=": ["extract", "RUN", "front=2", "fine_tune=true"],
    "export": ["export", "RUN"],
    "export of its arch.json": ["export", "RUN/arch.json"],
}


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    composed = compose_config(["search=fairnas", "cost=[params,macs]", "guard=skips", "name=x"])
    found = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> Iterator[Path]:
    """A stranger's run in the working folder, which Python imports from."""
    import torch

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = tmp_path / "RUN"
    made.mkdir()
    code = (
        f"from nas import UserError\nopen({str(tmp_path / 'canary')!r}, 'w')\n"
        "def write(path, **sizes):\n    open(path, 'w')\n    raise UserError('no supernet here')\n"
    )
    (tmp_path / "evil.py").write_text(code)
    (made / "hubconf.py").write_text(code + "def m(): pass\n")
    torch.save(_Pickled(tmp_path / "canary"), made / "x.pt")
    (made / "times.csv").write_text("name,seconds\n")
    (made / "arch.json").write_text('{"schema": 1, "space": "chain_tiny", "choices": {}}')
    (made / "last.ckpt").touch()
    (made / "result.json").write_text('{"schema": 1, "status": "finished"}')
    write(made, config)
    yield tmp_path
    sys.modules.pop("evil", None)


class _Pickled:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.canary), "w")


def write(run: Path, config: dict[str, Any]) -> None:
    (run / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != "result.json"}


def filled(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: filled(child, folder) for key, child in value.items()}
    if isinstance(value, list):
        return [filled(child, folder) for child in value]
    if isinstance(value, str):
        there = {"{canary}": folder / "canary", "{folder}": folder / "RUN"}
        for name, path in there.items():
            value = value.replace(name, str(path))
    return value


def test_the_attacks_work_where_they_are_trusted(folder: Path) -> None:
    """Otherwise the tests below would show nothing."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    canary = folder / "canary"
    for name in [*list(ATTACKS)[:2], "a module in the working folder"]:
        with suppress(InstantiationException):  # by what evil.py raises in the end
            instantiate(filled(ATTACKS[name], folder))
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_found_in_every_place(attack: str, config: dict[str, Any]) -> None:
    tried = 0
    for top in TOPS:
        for shape in SHAPES.values():
            node = filled(ATTACKS[attack], Path("/nowhere"))
            places = [{**config, top: shape(node)}]
            if isinstance(config.get(top), dict):
                places.append({**config, top: {**config[top], "more": shape(node)}})
            for place in places:
                if top == "measure" and place[top] == node == filled(PROFILE, Path("/nowhere")):
                    continue  # its own place, which only `nas profile` reads
                assert list(foreign(place)), (top, place[top])
                tried += 1
    assert tried > 100


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_runs_whatever_verb_reads_the_folder(
    verb: str, folder: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In its turn each attack stands at each top-level key, in each shape."""
    # The folder's architecture without its run is another case: its space is what attacks.
    bare = verb == "export of its arch.json"
    before = files(folder)
    tops = [*TOPS, *TOPS]
    # Composing takes long: these two, which read a folder by one function, get a few attacks.
    every = 6 if verb.endswith("resume=") else 1
    for place, (name, attack) in list(enumerate(ATTACKS.items()))[::every]:
        top, shape = tops[place], list(SHAPES.values())[place % len(SHAPES)]
        if bare:
            (folder / "RUN/result.json").unlink(missing_ok=True)
            space = SPACES[place % len(SPACES)]
            text = f'{{"schema": 1, "space": "{space}", "choices": {{}}}}'
            (folder / "RUN/arch.json").write_text(text)
        write(folder / "RUN", {**config, top: shape(filled(attack, folder))})
        assert run(VERBS[verb]) == 2, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("nas: error: "), lines
        assert bare or "trust=true" in lines[0]
        assert not (folder / "canary").exists()
        assert "evil" not in sys.modules
    assert files(folder) == before


def test_a_folder_that_resume_true_comes_across_is_not_resolved(
    folder: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.config.saved import resumed

    def called(*words: str) -> str:
        (folder / "canary").touch()
        return "x"

    OmegaConf.register_new_resolver("evil", called, replace=True)
    try:
        for attack in ATTACKS.values():
            write(folder / "RUN", {**config, "space": filled(attack, folder)})
            wanted = OmegaConf.create({**config, "out": str(folder), "resume": True})
            assert resumed(wanted, folder / "made")[1] == folder / "made"
        (folder / "RUN/config.yaml").write_bytes(b"\xff: [")
        assert resumed(wanted, folder / "made")[1] == folder / "made"
        write(folder / "RUN", {**config, "out": "elsewhere"})
        assert resumed(wanted, folder / "made")[1] == folder / "RUN"
    finally:
        OmegaConf.clear_resolver("evil")
    assert not (folder / "canary").exists()


def modules() -> dict[str, types.ModuleType]:
    """Every module of the packages that were once trusted by the beginning of their names."""
    import pytorch_lightning
    import torch

    for part in pkgutil.walk_packages(nas.__path__, "nas."):
        importlib.import_module(part.name)
    roots = ("nas", torch.optim.__name__, pytorch_lightning.__name__)
    found = dict(sys.modules)
    return {n: m for n, m in found.items() if m and n.startswith(tuple(f"{r}." for r in roots))}


def surface(name: str, module: types.ModuleType, depth: int, seen: dict[int, int]) -> Iterator[str]:
    """The texts that reach something from a module, through the modules that it has imported.

    Args:
        seen: module -> the depth to which it was walked: no order of imports hides a part of it.
    """
    for attribute, value in list(vars(module).items()):
        text = f"{name}.{attribute}"
        yield text
        if isinstance(value, type):
            yield from (f"{text}.{inner}" for inner in vars(value))
        if isinstance(value, types.ModuleType) and seen.get(id(value), 0) < depth:
            seen[id(value)] = depth
            yield from surface(text, value, depth - 1, seen)


def test_of_the_whole_import_surface_only_the_closed_set_is_let_through() -> None:
    texts = {text for found in _shipped().values() for text in found.get("_target_", ())}
    objects = {text: target_of({"_target_": text}, text) for text in texts}
    homes = {f"{o.__module__}.{o.__qualname__}": o for o in objects.values()}
    for home, found in homes.items():
        assert target_of({"_target_": home}, home) is found
    seen: dict[int, int] = {}
    walked = {text for name, module in modules().items() for text in surface(name, module, 2, seen)}
    # A module is walked under the first name that leads to it.
    for end in (".torch.load", ".torch.hub.load", ".os.system", "nas.artifacts.files.write_atomic"):
        assert any(text.endswith(end) for text in walked), end
    walked |= {"torch.optim.adam.torch.load", "nas.artifacts.files.os.system"}
    assert len(walked) > 50_000
    roles = {role for role, found in _shipped().items() if "_target_" in found}
    nested = {role for role in roles if not role.isidentifier()}
    others = sorted(walked - set(objects) - set(homes))
    assert not [text for text in others for role in roles if _is_allowed(text, role)]
    for text in others[::200]:
        node = {"_target_": text}
        # All of the places that take an object, in one configuration.
        places: dict[str, Any] = dict.fromkeys(roles - nested, node)
        places["x"] = {
            role.strip(".*"): {"y": node} if role.endswith("*") else node for role in nested
        }
        assert sum(text in found for found in foreign(places)) == len(roles), text


@settings(max_examples=50)
@given(st.text(max_size=40) | st.from_regex(r"\A(nas|torch\.optim)(\.[a-z_]{1,8}){1,3}\Z"))
def test_no_other_text_is_let_through(text: str) -> None:
    known = {text for found in _shipped().values() for text in found.get("_target_", ())}
    if text not in known:
        assert list(foreign({"objective": {"_target_": text}}))


def test_an_object_may_be_named_by_the_place_that_defines_it(config: dict[str, Any]) -> None:
    optimizer = {**config["finetune"]["optimizer"], "_target_": "torch.optim.sgd.SGD"}
    assert not list(foreign({**config, "finetune": {**config["finetune"], "optimizer": optimizer}}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff\xfe", "utf-8"),
        (b"a: &a [1]\nb: *a\n", "alias"),
        (b"a: " + b"[" * 100_000, "nest"),
        (b"a: " + b"{b: " * 500, "nest"),
        (b"- a\n", "mapping"),
        (b"a: 1\na: 2\n", "duplicate"),
        (b"a: !!python/object/apply:os.system [true]\n", "constructor"),
        (b"a: b\0c\n", "not a run's folder"),
        (b"x" * (1 << 20), "larger than"),
        (b"a: " + b"9" * 5000, "digits"),
        (b"? [a]\n: 1\n", "unhashable"),
    ],
)
def test_a_damaged_configuration_is_refused_in_one_line(
    text: bytes, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "RUN/config.yaml").write_bytes(text)
    for verb in ("search resume=", "extract", "export"):
        assert run(VERBS[verb]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    with pytest.raises(UserError):
        nas.load("RUN")


def test_a_link_in_a_folder_is_not_written_through(folder: Path) -> None:
    for name in ("trials.jsonl", "front", "tensorboard/x"):
        link = folder / "RUN" / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folder / "elsewhere")
        with pytest.raises(UserError, match=f"{name} is a link"):
            saved_config(RunDir(folder / "RUN"))
        link.unlink()
    saved_config(RunDir(folder / "RUN"))


def test_what_is_trusted_is_said_and_run(
    folder: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    space = {"_target_": "evil.write", "_partial_": True, "path": str(folder / "canary")}
    write(folder / "RUN", {**config, "space": space})
    for verb in ("extract", "search resume="):
        (folder / "RUN/result.json").unlink(missing_ok=True)
        assert run([*VERBS[verb], "trust=true"]) == 2
        said = capsys.readouterr()
        assert "trust=true: RUN/config.yaml runs space._target_='evil.write'" in said.out
        assert "no supernet here" in said.err
        (folder / "canary").unlink()
    for verb in VERBS.values():
        assert run([*verb, "trust=maybe"]) == 2
        assert "trust" in capsys.readouterr().err
