"""Every mistake that a user is known to make: one clear line, exit code 2, nothing trained."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from nas.cli import run
from nas.config.check import check
from nas.config.saved import change
from nas.errors import UserError

from . import bad_own
from .bad_inputs import NUMBERED, OF_RUN, OTHERS, SEARCH, configurations, wrong_numbers

Numbers = dict[str, tuple[DictConfig, list[str]]]
QUICK = [
    "search=bilevel",
    "search.epochs=1",
    "search.warmup_epochs=0",
    "finetune.epochs=1",
    "onnx=false",
]


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(list(arguments))
    captured = capsys.readouterr()
    assert code == 2, captured
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("nas: error: ")
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


def image_folder(root: Path, classes: int, images: int) -> Path:
    for c in range(classes):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (10, 9), (20 * i % 256, 60 * c, 9)).save(root / f"class{c}/{i}.png")
    return root


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serach"], ["unknown verb 'serach'. Did you mean 'search'?", "finetune"]),
        (
            ["search", "data=digit"],
            ["data=digit is none of arrays, cifar10, digits, fashion_mnist, ", "mean 'digits'?"],
        ),
        (["search", "sede=3"], ["'sede'", "'seed'"]),
        (["search", "search=fairnas", "search.epoch=3"], ["epoch", "epochs"]),
        (["search", "seed=abc"], ["abc", "seed"]),
        (["search", "search=fairnas", "search.epochs=many"], ["search.epochs", "'many'", "int"]),
        (["search", "finetune.optimizer.lr=fast"], ["finetune.optimizer.lr", "'fast'"]),
        (["search", "weights=random"], ["random", "inherited", "fresh"]),
        (["search", "space.width=-1"], ["width", "-1"]),
        (["search", "data.batch_size=4096"], ["data.batch_size=4096", "train split"]),
        (
            ["search", "search=bilevel", "objective.strength=-0.1"],
            ["objective.strength=-0.1", "at least 0"],
        ),
        (["search", "relax.function=softmin"], ["softmin", "softmax"]),
        (
            ["search", "search=bilevel", "search.warmup_epochs=99"],
            ["search.warmup_epochs=99", "below"],
        ),
        (["search", "stable_epochs=0"], ["0"]),
        (["search", "seed=-1"], ["seed=-1"]),
        (["search", "data=image_folder"], ["data.root"]),
        (["search", "data=image_folder", "data.root=/no/such/folder"], ["/no/such/folder"]),
        (
            ["search", "data=fashion_mnist", "data.root=/no/such", "data.download=false"],
            ["/no/such", "data.root"],
        ),
        (["search", "cost=[roofline]"], ["cost=roofline", "device=cortex_m7", "--config-dir"]),
        (["search", "cost=[energy]", "device=this_machine"], ["energy_pj_per_mac", "add `energy"]),
        (["search", "device=cortex_m8"], ["device=cortex_m8 is none of", "cortex_m7"]),
        (
            ["search", "cost=[roofline]", "device=cortex_m7", "cost.roofline.dtype=float16"],
            ["Cortex-M7", "peak_ops_per_s", "'float16'", "['float32', 'int8']"],
        ),
        (
            ["search", "cost=[roofline]", "device=gap9", "device.on_chip_bytes=-1"],
            ["GAP9", "on_chip_bytes=-1", "above 0"],
        ),
        (["search", "cost=[size]", "cost.size.dtype=int1"], ["size.dtype='int1'", "int8"]),
        (["finetune"], ["arch=FILE"]),
        (["finetune", "arch=a.json", "finetune.teacher=largest"], ["checkpoint=FILE"]),
        (["search", "search=random", "finetune.teacher=largest"], ["this search leaves none"]),
        (["search", "finetune.teacher=/no/such"], ["finetune.teacher=/no/such", "finished run"]),
        (
            ["search", "finetune.teacher={_target_: torch.nn.Flatten}"],
            ["finetune.teacher", "(2, 64)", "(2, 10)"],
        ),
        (["search", "finetune.temperature=0"], ["finetune.temperature=0", "above 0"]),
        (["finetune", "arch=/no/such/arch.json"], ["/no/such/arch.json"]),
        (["search", "arch=x.json"], ["nas finetune"]),
        (["search", "resume=/no/such/run"], ["/no/such/run"]),
        (["report", "/no/such/folder"], ["/no/such/folder"]),
        (["export", "/no/such/run"], ["/no/such/run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_one_line_and_exit_code_2(
    arguments: list[str],
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = complaint(capsys, *arguments)
    for words in said:
        assert words in line
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    small = ["search=random", "space.width=0.25", "data.limit=400", "finetune.epochs=1"]
    assert run(["search", *small, "onnx=false", "threads=1", f"out={out}", "name=run"]) == 0
    return out / "run"


def _of_bilevel(words: str) -> list[str]:
    """The words of a search, of bilevel where they are of its keys and name no search."""
    named = "search=" in words or " search." not in f" {words}"
    return [*([] if named else ["search=bilevel"]), *words.split(" ")]


def nothing_is_left(folder: Path) -> None:
    assert not [str(path) for path in folder.rglob("*")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *((["search", *_of_bilevel(words)], said) for words, said in SEARCH.items()),
        *((words.split(" "), said) for words, said in OTHERS.items()),
        (["search", ""], "empty"),
        (["search", "search.epochs={{{{"], "{{"),
    ],
)
def test_one_line_nothing_trained_nothing_left(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in complaint(capsys, *arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    if said != "too long":  # of such a path the system makes the beginning
        nothing_is_left(tmp_path)


@pytest.mark.parametrize("case", bad_own.DATA)
def test_one_line_of_bad_data_of_ones_own(
    case: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    _, words, said = bad_own.DATA[case]
    source = f"data.source={{_target_: {bad_own.__name__}.own, case: {case!r}}}"
    assert said in complaint(capsys, "search", "data=own", source, *words.split())
    nothing_is_left(tmp_path)


@pytest.mark.parametrize("words", bad_own.TASK)
def test_one_line_of_a_loss_or_metric_of_ones_own(
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = re.split(r" (?=task)", words)
    assert bad_own.TASK[words] in complaint(capsys, "search", *given)
    nothing_is_left(tmp_path)


@pytest.mark.parametrize("words", OF_RUN)
def test_one_line_of_what_is_asked_of_a_finished_run(
    words: str,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(finished.rglob("*"))
    verb, *rest = words.format(run=finished).split(" ", 2)
    fitting = rest if "{{" in words else [w for word in rest for w in word.split(" ")]
    assert OF_RUN[words].format(run=finished) in complaint(capsys, verb, *fitting)
    assert sorted(finished.rglob("*")) == before
    nothing_is_left(tmp_path)


@pytest.fixture(scope="module")
def numbers() -> Numbers:
    """Key -> where it is and its wrong values, once: many options of a group have the same keys."""
    found: Numbers = {}
    for chosen, config in configurations().items():
        for key, value in wrong_numbers(config, chosen.partition("=")[0]):
            values = found.setdefault(key, (config, []))[1]
            if value not in values:
                values.append(value)
    return found


@pytest.mark.parametrize("group", NUMBERED)
def test_every_number_of_every_group_is_checked(group: str, numbers: Numbers) -> None:
    keys = [key for key in numbers if key.startswith(f"{group}.")]
    assert keys
    for key in keys:
        given, values = numbers[key]
        for value in values:
            config = deepcopy(given)
            with pytest.raises(UserError, match=re.escape(key.rpartition(".")[2])):  # noqa: PT012
                change(config, [f"{key}={value}"])
                check(config)
                pytest.fail(f"{key}={value} is not refused")


@pytest.mark.parametrize("group", NUMBERED)
def test_a_wrong_number_for_a_saved_run_is_one_line(
    group: str,
    numbers: Numbers,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    key = next(key for key in numbers if key.startswith(f"{group}."))
    config, values = numbers[key]
    Path("run").mkdir()
    Path("run/config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    for value in values:
        assert key.rpartition(".")[2] in complaint(capsys, "extract", "run", f"{key}={value}")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "config.yaml"]


def test_there_are_at_least_three_hundred(numbers: Numbers) -> None:
    of_groups = sum(len(values) for _, values in numbers.values())
    assert len(SEARCH) + len(OF_RUN) + len(OTHERS) + of_groups >= 300


def test_empty_image_folder_and_a_single_class(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    line = complaint(capsys, "search", "data=image_folder", "data.root=empty")
    assert "empty" in line
    image_folder(tmp_path / "one", classes=1, images=6)
    line = complaint(capsys, "search", "data=image_folder", "data.root=one")
    assert "class0" in line


def test_arch_that_is_no_json_or_of_another_space(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{not json", encoding="utf-8")
    assert "bad.json" in complaint(capsys, "finetune", "arch=bad.json")
    other = {"schema": 1, "space": "elsewhere", "choices": {"blocks.s0b0": "conv_k3"}}
    Path("other.json").write_text(json.dumps(other), encoding="utf-8")
    line = complaint(capsys, "finetune", "arch=other.json")
    assert "'elsewhere'" in line
    assert "'chain_tiny'" in line


def test_checkpoint_of_another_space(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["space.width=0.25", "data.limit=400", "threads=1", "name=narrow"]
    assert run(["search", *QUICK, *small]) == 0
    capsys.readouterr()
    line = complaint(
        capsys,
        "finetune",
        "arch=runs/narrow/arch.json",
        "checkpoint=runs/narrow/last.ckpt",
        "data.limit=400",
        "threads=1",
        "name=second",
    )
    assert "runs/narrow/last.ckpt" in line
    assert "another space" in line
    assert not Path("runs/second").exists()


def test_candidates_of_different_shapes_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_bad.py").write_text(
        "from torch import nn\n"
        "from nas import ChoiceBlock\n"
        "def net(input_shape, num_outputs):\n"
        "    c = input_shape[0]\n"
        "    block = ChoiceBlock({'a': nn.Conv2d(c, 8, 3), 'b': nn.Conv2d(c, 8, 1)})\n"
        "    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_outputs)]\n"
        "    return nn.Sequential(nn.Identity(), block, *tail)\n",
        encoding="utf-8",
    )
    configs = tmp_path / "confs" / "space"
    configs.mkdir(parents=True)
    (configs / "mine_bad.yaml").write_text("_target_: mine_bad.net\n_partial_: true\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = complaint(capsys, "search", f"--config-dir={tmp_path / 'confs'}", "space=mine_bad")
    assert "'b'" in line
    assert "(1, 8, 8, 8)" in line
    assert "1:" in line  # the block's name in the model


def test_unwritable_output_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file, not a folder", encoding="utf-8")
    line = complaint(capsys, "search", *QUICK, "out=taken")
    assert "taken" in line
    assert "out=FOLDER" in line


OWN = """
import torch
from nas.data import DataModule, digits
def net(channels): ...
class Lacking:
    def __init__(self, seed): self.setup = lambda: None
class Shapes(DataModule):
    def __init__(self, seed): super().__init__(digits(seed=seed).source)
    @property
    def input_shape(self): return (3, 9, 9)
def shapes(seed): return Shapes(seed)
"""


@pytest.mark.parametrize(
    ("group", "target", "said"),
    [
        ("space", "net", "input_shape"),
        ("data", "Lacking", "Lacking is none of"),
        ("data", "shapes", "(3, 9, 9)"),
    ],
)
def test_code_of_ones_own_that_does_not_fit(
    group: str,
    target: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_code_c.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "confs" / group
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"_target_: own_code_c.{target}\n_partial_: true\n")
    line = complaint(capsys, "search", f"--config-dir={tmp_path / 'confs'}", f"{group}=mine")
    assert said in line
    assert not Path("runs").exists()
