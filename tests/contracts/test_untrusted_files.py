"""Every reader of a file that somebody else may have made: refused in words, or read; never run."""

import csv
import importlib.util
import io
import json
import os
import struct
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from nas.arch import Arch
from nas.artifacts import RunDir, reading
from nas.artifacts.files import cell, csv_table
from nas.data.pixels import decode
from nas.errors import UserError
from nas.export.loading import check_checkpoint, load, load_supernet, load_weights
from nas.export.python import python_source
from nas.latency.exchange import is_times, read_networks
from nas.latency.log import MeasurementLog
from nas.latency.profile import Profile
from nas.report import report
from nas.report.collect import collect
from nas.report.summary import BlockSummary, svg
from nas.report.summary import csv_text as blocks_csv
from nas.search.halving import paused
from nas.search.trials import Trial, TrialLog, table_of

NESTED = "[" * 1_000_000
OBJECTS = '{"a":' * 1_000_000
BAD_JSON = {
    "lists a million deep": NESTED,
    "objects a million deep": OBJECTS,
    "closed, a hundred deep": '{"a":' * 100 + "1" + "}" * 100,
    "a key twice": '{"schema": 1, "schema": 1}',
    "NaN": '{"schema": NaN}',
    "infinity": '{"schema": 1e999}',
    "a number of 5000 digits": '{"schema": ' + "9" * 5000 + "}",
    "half a character": '{"schema": "\\ud800"}',
    "no UTF-8": b'{"schema": "\xff"}',
    "nothing": "",
}
READERS: dict[str, Callable[[Path], object]] = {
    "arch.json": Arch.load,
    "profile": Profile.load,
    "trials.jsonl": TrialLog,
    "measurements": lambda path: MeasurementLog(path, {"device": "x"}),
    "table of networks": lambda path: read_networks(path, "latency"),
    "last.ckpt": lambda path: load_supernet(nn.Linear(1, 1), path),
    "network.pt": lambda path: load_weights(nn.Linear(1, 1), path),
    "finetune.ckpt": lambda path: check_checkpoint(nn.Linear(1, 1), path),
}


def wrote(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", BAD_JSON)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_refused_in_words(reader: str, content: str, tmp_path: Path) -> None:
    if content == "nothing" and reader in ("trials.jsonl", "measurements"):
        return  # a log that begins
    text = BAD_JSON[content]
    end = b"\n" if reader in ("trials.jsonl", "measurements") else b""
    path = wrote(tmp_path / "file", (text if isinstance(text, bytes) else text.encode()) + end)
    with pytest.raises(UserError) as error:
        READERS[reader](path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_pipe_and_a_gigabyte_are_refused_before_they_are_read(
    reader: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)  # takes no room on the disk
    for name in ("pipe", "large"):
        with pytest.raises(UserError):
            READERS[reader](tmp_path / name)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda x:
       st.lists(x) | st.dictionaries(st.text(), x), max_leaves=20))  # fmt: skip
def test_what_is_read_is_what_was_written(value: Any) -> None:
    text = json.dumps(value)
    try:
        read = reading.parse_json(text)
    except ValueError:
        assert any(word in text for word in ("NaN", "Infinity", "\\ud"))
        return
    assert read == value
    json.dumps(read, ensure_ascii=False).encode()


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=60)
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    path = Path(f"/tmp/nas_bytes_{os.getpid()}")
    try:
        for read in READERS.values():
            path.write_bytes(content)
            with suppress(UserError):
                read(path)
    finally:
        path.unlink()


TRIAL = json.loads(Trial(Arch("s", {"a": "x"}), {"val_acc": 0.5}, {"params": 3}).to_json())
ODD = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)


@given(st.sampled_from(sorted(TRIAL)), ODD | st.dictionaries(st.text(max_size=2), ODD, max_size=2))
def test_a_trial_with_any_field_of_another_kind_is_refused_or_a_trial(key: str, odd: Any) -> None:
    try:
        trial = Trial.from_json(json.dumps({**TRIAL, key: odd}))
    except (ValueError, KeyError, TypeError, UserError):
        return
    assert Trial.from_json(trial.to_json()).to_json() == trial.to_json()
    trial.value("params") if "params" in trial.costs else None


class _Run:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("canary",)


def _repacked(path: Path, change: Callable[[zipfile.ZipInfo], None]) -> Path:
    packed = path.with_suffix(".packed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            change(member)
            new.writestr(member, content)
    return packed


def test_weights_are_tensors_and_no_larger_than_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, pickled, old = tmp_path / "good.pt", tmp_path / "pickled.pt", tmp_path / "old.pt"
    state = {"weight": torch.zeros(1000, 1000)}
    torch.save(state, good)
    torch.save({"state_dict": _Run()}, pickled)
    torch.save(state, old, _use_new_zipfile_serialization=False)

    def deflate(member: zipfile.ZipInfo) -> None:
        member.compress_type = zipfile.ZIP_DEFLATED

    bomb = _repacked(good, deflate)
    assert bomb.stat().st_size < good.stat().st_size / 100
    torn = wrote(tmp_path / "torn.pt", good.read_bytes()[:-100])
    assert_close(reading.read_tensors(good), state)
    for path in (pickled, old, bomb, torn, tmp_path):
        with pytest.raises((ValueError, OSError)):
            reading.read_tensors(path)
        for read in (load_supernet, load_weights, check_checkpoint):
            with pytest.raises(UserError):
                read(nn.Linear(1, 1), path)
        assert paused(path, 3) == (0, {})
    assert not (tmp_path / "canary").exists()


def test_a_checkpoint_of_another_training_is_refused_in_words(tmp_path: Path) -> None:
    parts = dict.fromkeys(("epoch", "global_step", "loops", "optimizer_states", "lr_schedulers"))
    good, other = nn.Linear(2, 2), nn.Linear(3, 3)
    torch.save({**parts, "state_dict": good.state_dict()}, tmp_path / "a")
    check_checkpoint(good, tmp_path / "a")
    with pytest.raises(UserError, match="weight is of another size"):
        check_checkpoint(other, tmp_path / "a")
    torch.save({"state_dict": good.state_dict()}, tmp_path / "a")
    with pytest.raises(UserError, match="lacks epoch"):
        check_checkpoint(good, tmp_path / "a")


def png(width: int, height: int) -> bytes:
    """A grey image of one colour: a few kilobytes for any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(min(height, 64)))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    made = chunk(b"IHDR", head) + chunk(b"IDAT", rows + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + made


def test_an_image_that_would_fill_the_memory_is_named_and_nothing_else_is_opened(
    tmp_path: Path,
) -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n"
    contents = {
        "good.png": png(8, 8),
        "warned.png": png(10_000, 12_000),
        "bomb.png": png(60_000, 60_000),
        "postscript.png": postscript,
        "cut.png": png(8, 8)[:40],
    }
    paths = [str(wrote(tmp_path / name, content)) for name, content in contents.items()]
    os.mkfifo(tmp_path / "pipe.png")
    paths.append(str(tmp_path / "pipe.png"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode(paths, 8, 1)
    failures = decoded.failures
    assert sorted(failures) == [1, 2, 3, 4, 5]
    assert "decompression bomb" in failures[1]
    assert "decompression bomb" in failures[2]
    assert "cannot identify" in failures[3]
    assert decoded.pixels.shape == (6, 1, 8, 8)


CELLS = st.text(max_size=6) | st.sampled_from("=+-@\t\r\n").flatmap(
    lambda first: st.text(max_size=5).map(lambda rest: first + rest)
)


@given(st.lists(CELLS | st.floats() | st.integers(), min_size=1, max_size=5))
@example(["=1+1", "+1", "-1e-3", "-1+2", "@a", "\tx", "-", -0.5, "+cmd|'/c calc'!A0", "x\r=1+1"])
def test_no_cell_is_a_formula(row: list[Any]) -> None:
    header = [str(value) for value in row]
    read_back = list(csv.reader(io.StringIO(csv_table(header, [row]), newline="")))
    assert len(read_back) == 2
    for read in read_back:
        for text, value in zip(read, row, strict=True):
            shown = str(value).replace("\r\n", "\n").replace("\r", "\n")
            assert text.removeprefix("'") == shown.removeprefix("'")
            if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
                float(text)
    assert cell(-3) == -3


NAMES = st.text(min_size=1, max_size=12).filter(lambda name: "." not in name) | st.sampled_from(
    [
        *('"); CANARY()', "x'); CANARY() #", "\\", '"""', "a\nCANARY()", "{CANARY()}", "self"),
        *("nn", "torch", "super", "class", "__x", "ﬁ", "a b", "a-b", "0", "float", "getattr"),
        *("=CANARY()", "</script>", "\ud800", "\x00", "é", "None", "Path", "load", "build"),
    ]
)


class _Scaled(nn.Module):
    """A module whose children, parameters and buffers have the names that are drawn."""

    def __init__(self, names: list[str], text: str) -> None:
        super().__init__()
        self.names_, self.text = names, text
        for i, name in enumerate(names):
            if i % 3 == 0:
                self._modules[name] = nn.Linear(3, 3)
            elif i % 3 == 1:
                self._parameters[name] = nn.Parameter(torch.rand(3))
            else:
                self._buffers[name] = torch.rand(3)

    def forward(self, x: Tensor) -> Tensor:
        for i, name in enumerate(self.names_):
            own = (self._modules, self._parameters, self._buffers)[i % 3][name]
            assert own is not None
            x = own(x) if isinstance(own, nn.Module) else x * getattr(self, name)
        return x


class _Chosen(nn.Module):
    """A module under the name of an option."""

    def __init__(self, option: str, module: nn.Module) -> None:
        super().__init__()
        self.option, self.table = option, nn.ModuleDict()
        self.table._modules[option] = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.table[self.option](x)
        return y


@settings(max_examples=60)
@given(
    st.lists(NAMES, min_size=1, max_size=5, unique=True),
    NAMES,
    NAMES,
    st.lists(NAMES, min_size=1, max_size=3),
)
def test_no_name_becomes_code_in_the_exported_file(
    names: list[str], kind: str, option: str, classes: list[str]
) -> None:
    own = {*dir(nn.ModuleDict()), "names_", "text"}  # which torch takes no module for
    names = [name for name in names if name not in own] or ["x"]
    option = option if option not in own else "x"
    title = "".join(c for c in kind if c != "\0").encode(errors="replace").decode() or "X"
    kind_of = type(title, (_Scaled,), {})
    network = nn.Sequential(
        kind_of(names, option), _Chosen(option, kind_of(names[:1], option))
    ).eval()
    example = torch.rand(2, 3)
    try:
        source = python_source(
            network, example, f"about {kind!r} {option}", {"CLASSES": classes}, "network.pt"
        )
    except UserError:
        return
    loaded = _imported(source)
    again = loaded["build"]()
    again.load_state_dict(network.state_dict())
    assert_close(again.eval()(example), network(example))
    assert loaded["CLASSES"] == classes


def _imported(source: str) -> dict[str, Any]:
    """The names of the module, of which nothing may call CANARY."""
    import builtins

    called: list[int] = []
    spec = importlib.util.spec_from_loader("exported", None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = "/nowhere/exported.py"
    builtins.CANARY = lambda: called.append(1)  # type: ignore[attr-defined]
    try:
        exec(compile(source, "exported.py", "exec"), vars(module))
        vars(module)["build"]()
    finally:
        del builtins.CANARY  # type: ignore[attr-defined]
        sys.modules.pop("exported", None)
    assert not called
    return vars(module)


HOSTILE = "</script><script>CANARY()</script>\"'><img src=x onerror=CANARY()>[/red]=1+1"


def hostile_run(folder: Path, name: str, accuracy: float) -> None:
    """A finished run with hostile text in every place that takes text."""
    part = {"name": HOSTILE, "option": HOSTILE, "channels": 3, "size": [3], "layers": 1}
    record = {
        "schema": 1,
        "status": "finished",
        "seed": 0,
        "space": HOSTILE,
        "data": HOSTILE,
        "arch": {HOSTILE: HOSTILE},
        "arch_hash": HOSTILE,
        "overrides": {HOSTILE: HOSTILE, "x": accuracy},
        "metrics": {"test_acc": accuracy, "val_acc": accuracy, HOSTILE: 0.5},
        "costs": {"params": 100 * accuracy, HOSTILE: 3},
        "budgets": {HOSTILE: 3},
        "parts": [{**part, "costs": {"params": 3, HOSTILE: 4}}],
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "result.json").write_text(json.dumps(record))


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "<img src=x onerror=CANARY()>,[red]=1"
    hostile_run(folder, "<b>a", 0.5)
    hostile_run(folder, "=b", 0.6)
    return folder


def test_a_report_of_hostile_runs_shows_their_text_as_text(hostile: Path) -> None:
    secret = wrote(hostile.parent / "secret", b"\x89PNG\r\n the user's own")
    (hostile / "=b/latency.png").symlink_to(secret)
    files = report(hostile)
    page = files.html.read_text()
    assert page.count("<script>") == 1  # its own, which is the last one
    assert "<img" not in page
    assert page.count("\\u003csvg") == 1  # of both runs, which have one architecture
    assert b"user's own".hex() not in page
    assert "the user" not in page
    for row in csv.reader(io.StringIO(files.csv.read_text())):
        assert not any(text.startswith(("=", "+", "@", "-")) for text in row)


def test_a_report_replaces_nothing_behind_a_link(hostile: Path) -> None:
    board = hostile.parent / "board"
    board.mkdir()
    kept = wrote(board / "events.out.tfevents.1", b"x")
    (hostile / "tensorboard_report").symlink_to(board)
    with pytest.raises(UserError, match="is a link"):
        report(hostile)
    assert kept.exists()


def test_a_folder_that_the_board_would_read_otherwise_is_refused(hostile: Path) -> None:
    from nas.report.tensorboard import serve

    with pytest.raises(UserError, match="rename"):
        serve([hostile], hostile / "report.html", wait=False)


@given(st.text(max_size=8))
def test_a_drawing_is_xml_and_a_table_whatever_the_names(text: str) -> None:
    from xml.etree import ElementTree

    block = BlockSummary(text, text, 1, (1,), costs={text: 1})
    root = ElementTree.fromstring(svg([block], [text], title=text, alone=True).encode())
    allowed = {"svg", "style", "rect", "text", "path", "title"}
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= allowed
    assert len(list(csv.reader(io.StringIO(blocks_csv([block]), newline="")))) == 2


@pytest.mark.parametrize("name", ["input", "arch", "metrics", "parts", "costs", "seed", "schema"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {}, [[]], {"shape": "x"}, {"a": []}, True])
def test_a_result_of_another_form_is_named(name: str, value: Any, tmp_path: Path) -> None:
    hostile_run(tmp_path, "a", 0.5)
    path = tmp_path / "a/result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    collect(tmp_path)
    with pytest.raises(UserError):
        load(tmp_path / "a")


def test_the_table_of_trials_has_no_formula() -> None:
    trial = Trial(Arch("s", {"=a": "=1+1", "b": "-x"}), {"val_acc": 0.5}, {"params": 3.0})
    read = list(csv.reader(io.StringIO(table_of([trial], ["val_acc", "params"]))))
    assert "'=a" in read[0]
    assert "'=1+1" in read[1]
    assert "'-x" in read[1]


def test_is_times_reads_within_bounds(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        is_times(wrote(tmp_path / "a.csv", "x" * 200_000))
    assert RunDir(tmp_path).read_result() is None
