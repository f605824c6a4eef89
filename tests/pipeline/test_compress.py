"""A network of the user's own made smaller: from Python, by the command, refused, gone on with."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nas
from nas.artifacts import RunDir
from nas.cli import run
from nas.compress.convert import converted, searchable
from nas.compress.operations import Operations, searched_operations
from nas.config.compose import compose_config, with_budgets
from nas.config.model import with_model
from nas.config.saved import how_to_go_on
from nas.errors import InterruptedRunError, UserError
from nas.latency.models import UnitTime
from nas.latency.profile import About, Profile
from nas.latency.units import Unit, features, units_of
from nas.problem import SearchProblem, fitting
from nas.search.compress import original, original_in_words
from nas.search.trial_search import TrialSearch
from nas.verbs import components_of

SOURCE = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.head(x.mean((2, 3)))


def net(width=8):
    return Small(width)


def nothing():
    return 3


def breaks():
    raise RuntimeError("no such file")


def scripted():
    return torch.jit.script(Small())


def fixed():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def frozen():
    return Small().requires_grad_(False)


def double():
    return Small().double()


def other():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(288, 3))
"""
QUICK = {
    "search__trials": 4,
    "search__evaluate__calibration": 64,
    "finetune__epochs": 1,
    "data__limit": 300,
    "data__batch_size": 32,
    "threads": 1,
    "onnx": False,
    "trainer__enable_progress_bar": False,
}
WORDS = [
    "search.trials=4", "search.evaluate.calibration=64",
    "finetune.epochs=1", "data.limit=300", "data.batch_size=32", "threads=1", "onnx=false",
    "trainer.enable_progress_bar=false",
]  # fmt: skip
BUDGET = {"macs": "50%", "params": "60%", "peak_memory": "90%", "latency": "70%"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a module of the user's own, and weights trained for a few steps."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "their_nets.py").write_text(SOURCE, encoding="utf-8")
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def network(place: Path) -> nn.Module:
    """Trained on the digits, as the data serve them."""
    import their_nets  # type: ignore[import-not-found]

    torch.manual_seed(0)
    made: nn.Module = their_nets.net()
    data = components_of(compose_config(["data.batch_size=32", "data.limit=300", "name=x"]))["data"]
    data.setup()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    for _ in range(4):
        for x, y in data.weight_loader():
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(x), y).backward()
            optimizer.step()
    torch.save(made.state_dict(), place / "net.pt")
    torch.save(made, place / "whole.pt")
    torch.save({"state_dict": made.state_dict(), "epoch": 4}, place / "checkpoint.pt")
    return made.eval()


def seconds(unit: Unit) -> float:
    return 1e-9 * sum(features(unit.layers).values())


@pytest.fixture(scope="module")
def device(place: Path, network: nn.Module) -> Path:
    """A profile of a device that takes a nanosecond for each number that a layer reads or makes."""
    units = units_of(searchable(network, (1, 8, 8)), (1, 8, 8)).to_measure
    times = {key: UnitTime(seconds(unit), features(unit.layers)) for key, unit in units.items()}
    about = About("Small", ((1, 1, 8, 8),), "board", "", "torch", "cpu", 1, "float32", 1, {}, "")
    Profile(about, times).save(place / "board.json")
    return place / "board.json"


@pytest.fixture(scope="module")
def found(place: Path, network: nn.Module, device: Path) -> Any:
    given = {"budget": BUDGET, "profile": str(device), **QUICK}
    return nas.compress(network, "digits", out=place, name="python", **given)


def test_what_is_found_is_a_smaller_network_of_the_users_class(
    found: Any, network: nn.Module, place: Path
) -> None:
    made = found.best.network
    assert type(made) is type(network)
    whole = nas.cost_of(network, (1, 8, 8))
    costs = found.best.costs
    assert costs["macs"] <= 0.5 * whole.macs
    assert costs["params"] <= 0.6 * whole.params
    assert costs["peak_memory"] <= 0.9 * whole.peak_memory
    assert costs["peak_memory"] == nas.cost_of(made, (1, 8, 8)).peak_memory
    full, own = (
        sum(map(seconds, units_of(one, (1, 8, 8)).to_measure.values())) for one in (network, made)
    )
    assert costs["latency"] == pytest.approx(own)
    assert own <= 0.7 * full
    assert sum(p.numel() for p in made.parameters()) == found.best.costs["params"]
    assert made.state_dict().keys() == network.state_dict().keys()
    again = nas.load(place / "python", model=network)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again(x), made(x))
    with pytest.raises(nas.UserError, match=r"open_run\(FOLDER, model="):
        nas.load(place / "python")


def test_an_exported_network_needs_only_torch(found: Any, place: Path) -> None:
    (source, *_) = found.best.export("python", latency=False)
    assert "import nas" not in source.read_text()
    assert "their_nets" not in source.read_text()
    spec = importlib.util.spec_from_file_location("exported", source)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(module.load()(x), found.best.network(x))


def test_the_command_gives_the_same_and_other_networks_come_out_of_it(
    found: Any, place: Path, device: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = [f"budget.{name}={bound}" for name, bound in BUDGET.items()]
    budgets += [f"profile={device}"]
    model = ["model=their_nets:net", f"model.weights={place / 'checkpoint.pt'}"]
    assert run(["search", *model, *WORDS, *budgets, f"out={place}", "name=command"]) == 0
    said = capsys.readouterr().out
    assert "network given: val accuracy" in said
    assert "not trained" not in said
    assert "model=your_network" in said  # in the words that load it
    assert f"nas export {place / 'command'} trust=true" in said
    assert how_to_go_on(RunDir(place / "command")).endswith(f"{place / 'command'} trust=true")
    mine, theirs = (RunDir(place / name).read_result() or {} for name in ("python", "command"))
    assert mine["arch"] == theirs["arch"]
    assert mine["metrics"] == theirs["metrics"]
    assert run(["extract", str(place / "command"), "budget.macs=30%"]) == 2
    assert "trust=true" in capsys.readouterr().err
    words = ["budget.macs=30%", "budget.params=null", "trust=true", f"out={place / 'taken'}"]
    assert run(["extract", str(place / "command"), *words]) == 0
    (result,) = (place / "taken").glob("*/result.json")
    smaller = RunDir(result.parent).read_result() or {}
    assert smaller["costs"]["macs"] <= 0.3 * mine["costs"]["macs"] / 0.2
    words = ["front=2", "trust=true"]
    assert run(["extract", str(place / "command"), *words, f"out={place / 'front'}"]) == 0
    # Their scores are exact for what is not trained: no model tells of others.
    lines = (place / "command" / "trials.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    best = min(rows, key=lambda row: float(row["val_loss"]))["hash"]
    taken = {path.parent.name for path in (place / "front").glob("*/result.json")}
    assert best in taken <= {row["hash"] for row in rows if row["front"] == "1"}


def test_a_run_that_was_interrupted_ends_as_an_unbroken_one(
    found: Any,
    place: Path,
    network: nn.Module,
    device: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any) -> None:
        raise InterruptedRunError("interrupted")

    given = {"budget": BUDGET, "profile": str(device), "out": place, "name": "broken", **QUICK}
    with monkeypatch.context() as patched:
        patched.setattr(TrialSearch, "chosen", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"nas\.compress\(\.\.\., resume="):
            nas.compress(network, "digits", **given)
    again = nas.compress(network, "digits", **given)
    assert again.best.arch == found.best.arch
    assert again.best.metrics == found.best.metrics
    other = type(network)()  # of the same shapes
    with pytest.raises(UserError, match=r"broken"):
        nas.compress(other, "digits", **given)


def problem(*words: str) -> SearchProblem:
    return SearchProblem(
        **components_of(compose_config(with_budgets(with_model([*WORDS, *words, "name=x"]))))
    )


@pytest.mark.parametrize("rules", [[], ["space.rules.operations=true", "space.rules.kernels=true"]])
def test_percentages_are_of_the_network_given(
    network: nn.Module, place: Path, rules: list[str]
) -> None:
    words = [*rules, f"model.weights={place / 'net.pt'}"]
    made = problem("model=their_nets:net", *words, "budget.macs=50%", "budget.peak_memory=75%")
    whole = nas.cost_of(network, (1, 8, 8))
    assert made.budgets == {"macs": whole.macs / 2, "peak_memory": whole.peak_memory * 0.75}
    found = original(made)
    assert found is not None
    assert found.is_trained
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(found.network(x), network(x))


def test_operations_are_fitted_on_training_data(network: nn.Module, place: Path) -> None:
    words = ["model=their_nets:net", f"model.weights={place / 'net.pt'}"]
    made = problem(*words, "space.rules.operations={candidates: [low_rank_2]}", "data.augment=crop")
    batches = list(fitting(made.data))
    assert sum(map(len, batches)) == 192  # full batches of the train part
    known = searched_operations(network, batches, Operations(candidates=["low_rank_2"]))
    assert made.supernet.second.errors == pytest.approx(known.second.errors)
    alone = searched_operations(network, None, Operations(candidates=["low_rank_2"]))
    assert made.supernet.second.errors["low_rank_2"] < 0.8 * alone.second.errors["low_rank_2"]


def test_a_network_is_made_and_converted_once(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import their_nets

    calls: list[str] = []

    def counted(name: str, function: Any) -> Any:
        return lambda *given, **keys: (calls.append(name), function(*given, **keys))[1]

    monkeypatch.setattr(their_nets, "net", counted("made", their_nets.net))
    monkeypatch.setattr(nas.compress.space, "converted", counted("converted", converted))
    assert run(["describe", "model=their_nets:net", *WORDS]) == 0
    assert "first, norm" in capsys.readouterr().out
    assert calls == ["made", "converted"]


def test_an_untrained_network_is_said_to_be_one(place: Path) -> None:
    made = problem("model=their_nets:net", "model.args.width=4")
    assert "taken as not trained" in str(original_in_words(made))


def test_describe_shows_what_is_searched_and_what_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=their_nets:net", "space.rules.exclude=[second]", "trial=false", "threads=1"]
    assert run(["describe", *words, "space.rules.kernels={include: [second]}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "│ first, norm │ 8 channels │ 1, 2, 3, 4, 5, 6, 7, 8 │" in said
    assert "│ second │ kernel │ 1, 3 │" in said
    assert "second is in exclude" in said
    assert "the outputs are fixed" in said


REFUSED = {
    "model=their_nets": "MODULE:FACTORY",
    "model=": "MODULE:FACTORY",
    "model=no_such_module:net": "no_such_module",
    "model=their_nets:none": "their_nets.none",
    "model=their_nets:nothing": "gives 3, a int",
    "model=their_nets:breaks": "fails: RuntimeError: no such file",
    "model=their_nets:scripted": "scripted",
    "model=their_nets:fixed": "no channels of Sequential can be searched",
    "model=their_nets:frozen": "all weights of the network given are frozen",
    "model=their_nets:double": "has weights of float64, and the data are float32: give network.fl",
    "model=their_nets:other": "for 2 images and 10 classes",
    "model=their_nets:net model.args.size=3": "space.model.size",
    "model=their_nets:net model.args.width=x": "fails",
    "model=their_nets:net model.depth=3": "model.depth",
    "model=their_nets:net space=chain_tiny": "leave one of them out",
    "model.weights=PLACE/net.pt": "needs the network",
    "model.args.width=8": "for a factory",
    "model=their_nets:net model.weights=PLACE/none.pt": "No such file",
    "model=their_nets:net model.weights=PLACE/their_nets.py": "no file of torch.save",
    "model=their_nets:net model.weights=PLACE/whole.pt": "more than tensors; write one by",
    "model=their_nets:net model.args.width=4 model.weights=PLACE/net.pt": "first.weight",
    "model=their_nets:net budget.macs=1%": "no network of this space has less than",
    "model=their_nets:net budget.macs=0%": "above 0",
    "model=their_nets:net budget.latency=50%": "profile",
    "model=their_nets:net space.rules.channels.divisor=0": "divisor=0 must be at least 1",
    "model=their_nets:net space.rules.channels.least=2": "least=2",
    "model=their_nets:net space.rules.include=[none]": "is called 'none'",
    "model=their_nets:net space.rules.exclude=head": "must be a list of texts",
    "space=given": "model=MODULE:FACTORY",
    "search=compress": "model=MODULE:FACTORY",
    "finetune.teacher=given search=spos": "model=MODULE:FACTORY",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_refused_in_one_line(
    words: str, network: nn.Module, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words.replace("PLACE", str(place)).split()
    quick = [word for word in WORDS if word.startswith(("data", "threads"))]
    assert run(["search", *given, *quick, f"out={place}", "name=refused"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("nas: error: ")
    assert REFUSED[words] in said
    assert not (place / "refused").exists()


def test_bad_input_from_python_is_refused(network: nn.Module) -> None:
    with pytest.raises(nas.UserError, match="must be a network"):
        nas.compress([network], "digits")  # type: ignore[arg-type]
    with pytest.raises(nas.UserError, match="leave one of them out"):
        nas.compress(network, "digits", space=lambda *_: network)
    with pytest.raises(nas.UserError, match="scripted"):
        nas.compress(torch.jit.script(network), "digits", onnx=False)
    exported = torch.export.export(network, (torch.zeros(1, 1, 8, 8),))
    with pytest.raises(nas.UserError, match=r"ExportedProgram comes from torch\.export"):
        nas.compress(exported, "digits", onnx=False)  # type: ignore[arg-type]
