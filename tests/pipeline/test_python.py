"""`nas.search` from Python: the same as the command, in a process that goes on."""

import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.config.compose import compose_config, parse_overrides, value_of
from nas.config.given import Given
from nas.finished import _called
from nas.process import undisturbed
from nas.result import TensorBoard
from nas.verbs import values_by_key

SMALL: dict[str, Any] = {
    "search": "spos",
    "search__epochs": 1,
    "search__ranking": {"trials": 3},
    "finetune__epochs": 1,
    "data__limit": 300,
    "data__batch_size": 32,
    "threads": 1,
    "onnx": False,
    "trainer__enable_progress_bar": False,
}


def state() -> dict[str, Any]:
    """What a call may not change in the process that it is made in."""
    loggers = ("", "nas", "pytorch_lightning", "pytorch_lightning.utilities.rank_zero")
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "flags": (
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(),
            torch.backends.cudnn.benchmark,
        ),
        "signals": [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "levels": [logging.getLogger(name).level for name in loggers],
        "handlers": list(logging.getLogger().handlers),
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "arguments": list(sys.argv),
        "hook": threading.excepthook,
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small run with two networks, and the state of the process before and after it."""
    folder = tmp_path_factory.mktemp("python")
    torch.set_num_threads(1)
    before = state()
    made = nas.search(
        "chain_tiny", "digits", front=2, space__width=0.25, out=folder, name="a", **SMALL
    )
    return made, before, state()


def test_the_process_is_as_it_was(found: Any) -> None:
    _, before, after = found
    assert [name for name in before if before[name] != after[name]] == []


def test_what_a_library_sets_is_set_back() -> None:
    before = state()
    with undisturbed():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ["NAS_TEST"] = "1"
        sys.argv.append("more")
        warnings.simplefilter("ignore")
        random.random()
    after = state()
    assert [name for name in before if before[name] != after[name]] == []


def test_the_command_gives_the_same(found: Any, tmp_path: Path) -> None:
    made = found[0]
    words = Given()
    for key, value in {**SMALL, "space__width": 0.25, "front": 2}.items():
        words.add(key, value)
    assert run(["search", *words.words, "space=chain_tiny", f"out={tmp_path}", "name=b"]) == 0
    theirs = nas.open_run(tmp_path / "b")
    one, other = (RunDir(r.folder).read_result() for r in (made, theirs))
    assert one is not None
    assert other is not None
    assert one["metrics"] == other["metrics"]
    assert one["search"] == other["search"] == "spos"
    for mine, its in zip(made.front, theirs.front, strict=True):
        assert [(mine.folder / f).read_bytes() for f in ("arch.json", "network.pt")] == [
            (its.folder / f).read_bytes() for f in ("arch.json", "network.pt")
        ]
        assert mine.metrics == its.metrics
    again = nas.search(
        space="chain_tiny", front=2, space__width=0.25, out=tmp_path, name="b", **SMALL
    )
    assert again.folder == theirs.folder  # finished already: it is read


def test_the_front_is_a_table(found: Any) -> None:
    made = found[0]
    front, result = made.front, RunDir(made.folder).read_result()
    assert result is not None
    assert len(front) == 2
    assert made.best.arch.hash == front.best.arch.hash == result["arch_hash"]
    assert made.best.metrics["val_acc"] == max(one.metrics["val_acc"] for one in front)
    lines = repr(front).splitlines()
    assert 4 <= len(lines) <= 6  # where the folder is long, what it says before wraps
    assert max(map(len, lines)) <= 80
    assert [" *" in line for line in lines[-2:]] == [one.arch == made.best.arch for one in front]
    html = made._repr_html_()
    assert html.count("<tr>") == 3
    assert "<svg" in html
    assert front.figure("macs")._repr_svg_() != front.figure()
    table = front.to_pandas()
    assert list(table.params) == [one.costs["params"] for one in front]


def test_a_network_of_the_front_is_a_module_with_files(found: Any) -> None:
    best = found[0].best
    assert not best.network.training
    assert best.costs["params"] == sum(p.numel() for p in best.network.parameters())
    assert best.network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert "Files" not in str(best.card)
    files = best.export("python", latency=False)
    assert all(file.is_file() for file in files)
    assert best.card["formats"].keys() == {"python"}
    assert "## Files" in best.card._repr_markdown_()
    with pytest.raises(nas.UserError, match="overwrite"):
        best.export("python", latency=False)


def test_other_networks_are_taken_out(found: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made, limit = found[0], found[0].front[0].costs["params"]
    taken = made.extract(budget={"params": limit + 1}, out=str(made.folder / "taken"))
    assert [one.costs["params"] <= limit + 1 for one in taken] == [True]
    assert "validation" not in capsys.readouterr().out  # what is returned is not printed too
    assert len(made.front) == 2  # those that are not trained are no part of it


class Mine(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.choice = nas.ChoiceBlock(
            {name: nas.build_op(name, 1, 4) for name in ("conv_k3", "sep_k3")}
        )
        self.last = nn.Linear(4, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.choice(x).mean((2, 3)))
        return out


class Launches:
    name, unit = "launches", "calls"

    def __call__(self, layer: Any) -> int:
        return int(layer.is_call)


def test_a_supernet_and_a_cost_of_ones_own(tmp_path: Path) -> None:
    supernet = Mine((1, 8, 8), 10)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    given = {"cost": {"launches": Launches()}, "budget": {"launches": 4}}
    made = nas.search(supernet, "digits", out=tmp_path, name="a", **given, **SMALL)
    assert made.best.costs["launches"] <= 4
    assert all(torch.equal(before[name], value) for name, value in supernet.state_dict().items())
    assert made.best.network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)

    alone = nas.open_run(made.folder)
    for ask in (lambda: alone.best.network, lambda: nas.load(made.folder), alone.extract):
        with pytest.raises(nas.UserError, match="given from Python") as refused:
            ask()
        assert "\n" not in str(refused.value)
    assert run(["extract", str(made.folder)]) == 2
    again = nas.open_run(made.folder, space=Mine, cost={"launches": Launches()})
    assert nas.arch_of(again.best.network).choices == {}
    assert len(again.extract(front=2)) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"space": "chain_tinny"}, "chain_tiny"),
        ({"space": 3}, "must be a name, a table of stages"),
        ({"space": {"stages": []}}, "stages"),
        ({"seach": "spos"}, "Did you mean 'search'"),
        ({"search": "fairnas", "search__epoch": 3}, "epochs"),
        ({"search": "fairnas", "search__ranking": {"trils": 3}}, "mean 'trials'"),
        ({"space__quantize": {"weights": 3}}, r"quantize\.weights: bits=3 is not one of"),
        ({"search": "spso"}, "spos"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"finetune": 3.5}, "choose one of"),
        ({"budget": {"parms": 3}}, "params"),
        ({"finetune": nn.Linear(1, 1), "search": object()}, "is called by the run"),
        ({"front": "many"}, "front"),
        ({"out": "", "name": "x"}, "out= is empty"),
        ({"config_dir": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nas.UserError, match=said) as refused:
        nas.search(**arguments)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.rglob("*"))


KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=4) | st.sampled_from(
    [
        "[hH]ead.*",
        "l1.c[12]",
        "l3.c2",
        "ü",
        "",
        "it's",
        'a"b',
        "8",
        "0.10",
        "null",
        "a__b",
        "{",
        "a b",
    ]
)
MAPPINGS = st.dictionaries(KEYS, st.integers(2, 8), max_size=2)


@pytest.mark.parametrize(
    "value",
    [
        *("50k", "3", "true", "null", "", "a,b", "[x]", "it's", "a\\'b", "C:\\", "choice(1,2)"),
        *("ü", "${seed}", "a b", "1e3", 3, 0.1, 1e-20, True, None, [1, "2", None], ["a,b"]),
        *({"a": 1, "b": "x y"}, np.float64(0.1), np.int64(3)),
    ],
    ids=repr,
)
def test_values_are_written_so_that_they_read_as_themselves(value: Any) -> None:
    given = Given()
    given.add("key__inner", [value] if isinstance(value, dict) else value)
    (override,) = parse_overrides(given.words)
    assert override.key_or_group == "key.inner"
    assert value_of(override) == ([value] if isinstance(value, dict) else value)
    assert type(value_of(override)) in (type(value), list, float, int)


def test_a_mapping_sets_a_key_that_is_null() -> None:
    given = Given()
    given.add("space__quantize", {"weights": [2, 4], "layers": {"blocks.*": "float"}})
    given.add("search", {"ranking": {"trials": 3}})
    config = compose_config(["search=fairnas", *given.words])
    assert config.space.quantize == {"weights": [2, 4], "layers": {"blocks.*": "float"}}
    assert config.search.ranking.trials == 3
    assert len(config.search.ranking) > 1


@settings(max_examples=20, deadline=None)
@given(st.dictionaries(KEYS, st.sampled_from([8, 2.5, "float", None, [2, 4]]) | MAPPINGS))
def test_a_mapping_arrives_as_it_was_given_whatever_its_keys(layers: dict[str, Any]) -> None:
    asked = Given()
    asked.add("space__quantize", {"weights": [2, 4], "layers": layers})
    config = compose_config(asked.words)
    asked.complete(config)
    assert config.space.quantize == {"weights": [2, 4], "layers": layers}
    saved = OmegaConf.create(OmegaConf.to_yaml(config.space.quantize))
    assert saved == {"weights": [2, 4], "layers": layers}
    if asked.nodes:
        shown = values_by_key(asked.asked)["space.quantize"]
        assert shown == json.loads(json.dumps(OmegaConf.to_container(saved)))


def test_a_mapping_that_no_override_holds_keeps_what_else_is_there() -> None:
    asked = Given()
    asked.add("search__ranking", {"trials": 3, "it's": 1})
    config = compose_config(["search=fairnas"])
    before = dict(config.search.ranking)
    asked.complete(config)
    assert config.search.ranking == {**before, "trials": 3, "it's": 1}


def test_a_verb_on_a_run_refuses_a_mapping_that_it_would_lose(tmp_path: Path) -> None:
    for key, value in (("finetune", {"_target_": "a.B"}), ("space__quantize", {"it's": 8})):
        with (
            pytest.raises(nas.UserError, match="takes no such mapping"),
            _called("extract", tmp_path, {key: value}, {}),
        ):
            pass


def test_two_underscores_in_the_key_of_a_setting_are_a_dot() -> None:
    asked = Given()
    asked.add("space__rules", {"channels__choices": 3})
    asked.add("space__quantize", {"layers": {"block__1": 8}})
    config = compose_config(["space=given", *asked.words])
    assert config.space.rules.channels.choices == 3
    assert config.space.quantize.layers == {"block__1": 8}


def test_inside_an_application_of_hydra(
    found: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose configuration, folder, overrides and version are its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py", "hydra/job_logging=none"])
    (tmp_path / "app.yaml").write_text("seed: 7\n")
    ended = []

    @hydra.main(config_path=str(tmp_path), config_name="app", version_base="1.2")
    def main(config: Any) -> None:
        before = GlobalHydra.instance().hydra, HydraConfig.get().job.name, version.getbase()
        folder = found[0].folder
        given = {**SMALL, "space__width": 0.25, "front": 2}
        again = nas.search("chain_tiny", "digits", out=folder.parent, name=folder.name, **given)
        assert again.folder == folder  # of the same settings: the seed is not the application's
        after = GlobalHydra.instance().hydra, HydraConfig.get().job.name, version.getbase()
        assert after == before
        ended.append(again)

    main()
    assert ended


class Memory(Logger):
    """What a run tells a logger that it does not know, which has no `experiment`."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []
        self.params: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self.params |= params


class Stop(pl.Callback):
    """Presses Ctrl-C in the last of the trainings, before its end."""

    pressed = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        type(self).pressed += 1
        if type(self).pressed == 3:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_search_without_an_objective_names_none_beside_its_networks(tmp_path: Path) -> None:
    memory = Memory()
    made: dict[str, Any] = {"search": "zero_cost", "front": 1, "finetune__epochs": 1}
    nas.search(data="digits", data__limit=200, out=tmp_path, logger=memory, **made)
    assert memory.params["space"] == "chain_tiny"
    assert not memory.params.keys() & {"objective", "strength"}


def test_a_run_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """With callbacks of one's own and loggers; bit for bit as a run that was not interrupted."""
    made: dict[str, Any] = {"data": "digits", "out": tmp_path, "search": "bilevel"}
    made |= {key: one for key, one in SMALL.items() if not key.startswith("search")}
    made |= {"search__epochs": 2, "search__warmup_epochs": 1, "finetune__epochs": 2}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    handler, memory = signal.getsignal(signal.SIGINT), Memory()
    given = {"logger": {"tensorboard": TensorBoard, "mine": memory}, "callbacks": [Stop]}
    with pytest.raises(KeyboardInterrupt, match=r"Go on with: nas.search\(..., resume="):
        nas.search(name="a", **given, **made)
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "a/result.json").exists()
    assert (tmp_path / "a/last.ckpt").exists()
    assert "search/entropy" in {name for row in memory.rows for name in row}
    assert memory.params["space"] == "chain_tiny"
    assert "objective" in memory.params

    resumed = nas.search(resume=True, logger=memory, callbacks=[Stop], **made)
    whole = nas.search(name="b", logger="csv", callbacks=[Stop()], **made)
    assert resumed.folder == tmp_path / "a"
    assert resumed.best.metrics == whole.best.metrics
    assert Stop.pressed == 3 + 2 + 4  # the epoch that was broken off is done again
    assert "final/test_acc" in memory.rows[-1]
    table = (whole.folder / "csv/version_0/metrics.csv").read_text()
    assert "search/entropy" in table
    assert "finetune/loss_train" in table
    assert not list(whole.folder.rglob("events.*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"logger": "wandb"}, r"pip install 'dnas\[wandb\]'"),
        ({"logger": "wnadb"}, "wandb"),
        ({"logger": object()}, "no logger of Lightning"),
        ({"callbacks": [object]}, "no callback of Lightning"),
        ({"callbacks": 3}, "callbacks=3 must be a list"),
        ({"trainer": {"precision": "8-exact"}}, "precision"),
        ({"**": 1}, r"\*\*"),
    ],
)
def test_wrong_loggers_and_callbacks(
    arguments: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(nas.UserError, match=said):
        nas.search(**{**SMALL, **arguments})


def test_data_of_ones_own(tmp_path: Path) -> None:
    """Tensors; the folder does not hold them, and an export asks for them."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(300, 1, 8, 8, generator=generator), torch.arange(300) % 3
    table = {"name": "mine", "stages": [{"ops": ["conv_k3", "sep_k3"], "channels": 4}]}
    given = {**SMALL, "search": "random", "data__augment": "none"}
    given = {k: v for k, v in given.items() if not k.startswith("search__")}
    made = nas.search(table, (x, y), out=tmp_path, name="a", seed=3, **given)
    assert made.best.network(x[:2]).shape == (2, 3)
    assert made.best.arch.space == "mine"
    alone = nas.open_run(made.folder)
    assert nas.arch_of(alone.best.network).choices == {}  # the folder holds what the space is
    with pytest.raises(nas.UserError, match="data was given from Python") as refused:
        alone.best.export("python", latency=False)
    assert "\n" not in str(refused.value)
    assert nas.open_run(made.folder, data=(x, y)).best.export("python", latency=False)
    others = nas.search(table, (x[:200], y[:200]), out=tmp_path, resume=True, seed=3, **given)
    assert others.folder != made.folder  # of other sizes, so another run
