"""Windows of tables: what is cut, what a window gets, which part it is in, what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nas.cli import run
from nas.data import windows
from nas.errors import UserError
from nas.tasks.regression import Regression


def table(rows: int = 240, subjects: int = 6) -> pd.DataFrame:
    """Column t counts the rows, so that a window tells where it comes from."""
    t = np.arange(rows)
    subject = t * subjects // rows
    label = np.where(t // 10 % 2, "walk", "run")
    return pd.DataFrame({"t": t, "u": -2.0 * t, "subject": subject, "label": label, "speed": t / 7})


def write(frame: pd.DataFrame, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **{name: frame[name].to_numpy() for name in frame.select_dtypes("number")})
    else:
        getattr(frame, f"to_{path.suffix[1:]}")(path, index=False)
    return path


def read(path: Path, **options: Any) -> Any:
    given = {"length": 4, "channels": ["t", "u"], "target": "label", "batch_size": 2, **options}
    return windows(str(path), **given)


@pytest.mark.parametrize("ending", ["csv", "parquet", "npz"])
def test_windows_are_the_rows_of_the_file(tmp_path: Path, ending: str) -> None:
    file = write(table(), tmp_path / f"a.{ending}")
    arrays = read(file, hop=2, target="speed", group="subject", task=Regression()).arrays
    assert arrays.samples.shape == (6 * 19, 2, 4)
    starts = arrays.samples[:, 0, 0].numpy()
    np.testing.assert_array_equal(
        starts, np.concatenate([np.arange(0, 37, 2) + 40 * s for s in range(6)])
    )
    np.testing.assert_array_equal(arrays.samples[:, 0], starts[:, None] + np.arange(4))
    np.testing.assert_array_equal(arrays.samples[:, 1], -2 * arrays.samples[:, 0])
    np.testing.assert_allclose(arrays.targets[:, 0], (starts + 1.5) / 7, rtol=1e-5)
    assert arrays.groups.unique().numel() == 6
    assert arrays.classes == ("speed",)


@pytest.mark.parametrize(
    ("mixed", "labels"),
    [("majority", "rrrwwrrr"), ("last", "rrwwwrrw"), ("drop", "rrwwrr")],
)
def test_what_a_window_of_several_labels_gets(tmp_path: Path, mixed: Any, labels: str) -> None:
    # Rows 8 to 11 and 28 to 31 are of both classes in equal parts; run is the first in order.
    arrays = read(write(table(32, 1), tmp_path / "a.csv"), mixed=mixed, segment="subject").arrays
    assert "".join(arrays.classes[k][0] for k in arrays.targets) == labels


def test_no_group_file_or_row_is_in_two_parts(tmp_path: Path) -> None:
    one = write(table(), tmp_path / "one.csv")
    for k in range(5):
        write(table(60).assign(t=lambda f, k=k: f.t + 1000 * k), tmp_path / f"many/{k}.csv")
    cases = {
        "subject": (read(one, group="subject"), lambda t: t // 40),
        "file": (read(tmp_path / "many"), lambda t: t // 1000),
        "row": (read(one, hop=1), lambda t: t),
    }
    for data, owner in cases.values():
        own = {
            part: {int(owner(t)) for t in data.arrays.samples[indices, 0].flatten()}
            for part, indices in data.parts.items()
        }
        assert all(own.values())
        assert sum(map(len, own.values())) == len(set.union(*own.values()))


@pytest.mark.parametrize("files", [4, 1])
def test_the_parts_of_a_folder_are_kept(tmp_path: Path, files: int) -> None:
    for part, count in {"train": files, "test": 2}.items():
        for k in range(count):
            write(table(60), tmp_path / part / f"{k}.csv")
    data = read(tmp_path)
    assert len(data.arrays.given["test"]) == len(data.parts["test"]) == 2 * 15


def test_a_horizon_gives_the_steps_behind_the_window(tmp_path: Path) -> None:
    source = read(write(table(), tmp_path / "a.csv"), target="u", horizon=3, hop=1).source
    arrays = source()
    assert (arrays.samples.shape[1:], arrays.targets.shape[1:]) == ((2, 4), (3, 1))
    last = arrays.samples[:, :1, -1]  # the target is the first channel
    np.testing.assert_array_equal(arrays.targets[..., 0], last.numpy() - 2 * np.arange(1, 4))


def test_missing_values_are_filled_on_a_line(tmp_path: Path) -> None:
    frame = table().astype({"t": float})
    frame.loc[[0, 21, 22], "t"] = np.nan
    arrays = read(write(frame, tmp_path / "a.csv"), missing="fill", segment="subject").arrays
    assert arrays.samples[0, 0].tolist() == [1, 1, 2, 3]
    assert arrays.samples[5, 0].tolist() == [20, 21, 22, 23]


HOLE = table().drop(index=7).reindex(range(240))
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no target": (table(), {"target": None}, "data.target is not set"),
    "no column": (table(), {"target": "name"}, "has no column 'name', it has t, u, subject"),
    "no channel": (table(), {"channels": ["t", "ax"]}, "has no column 'ax'"),
    "texts": (table(), {"channels": ["label"], "target": "t"}, "a channel must be"),
    "target as channel": (table(), {"target": "t"}, "data.channels names 't'"),
    "NaN": (HOLE, {"target": "speed"}, "row 7"),
    "NaN in a channel": (HOLE.assign(label=table().label), {}, "row 7: pass data"),
    "infinite": (table().assign(t=np.inf), {}, "'t' is infinite"),
    "too long": (table(), {"length": 500}, "no window of data.length=500 rows"),
    "one subject": (table(subjects=1), {"group": "subject"}, "1 group(s)"),
    "mixed": (table(), {"mixed": "refuse"}, "has several targets"),
    "majority of numbers": (table(), {"target": "speed", "mixed": "majority"}, "mixed=majority"),
    "mean of texts": (table(), {"mixed": "mean"}, "data.mixed=mean is for numbers"),
    "several texts": (table(), {"target": ["label", "speed"]}, "several targets must be numbers"),
    "numbers as classes": (table(), {"target": "speed"}, "task=regression"),
    "empty": (table(0), {}, "has no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    frame, options, said = BAD[case]
    with pytest.raises(UserError) as refused:
        read(write(frame, tmp_path / "a.csv"), **options).setup()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "data.path is not set"),
        (["data.path=none.csv"], "is no file"),
        (["data.path=bad.parquet"], "cannot be read"),
        (["data.path=bad.txt"], "must end in .csv"),
        (["data.path=empty"], "holds no table"),
        (["data.path=both"], "'s' is in train and in test"),
        (["data.path=a.csv", "data.length=0"], "data.length=0 must be at least 1"),
        (["data.path=a.csv", "data.mixed=most"], "data.mixed='most' must be one of auto"),
        (["data.path=a.csv", "data.augment=crop"], "data.augment=crop is for images"),
    ],
)
def test_the_command_refuses_them_with_exit_code_2(
    tmp_path: Path, monkeypatch: Any, capsys: Any, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.parquet").write_bytes(b"PAR1 no table")
    Path("bad.txt").touch()
    Path("empty").mkdir()
    write(table(), Path("a.csv"))
    for part in ("train", "test"):
        write(table().assign(subject="s"), Path(f"both/{part}/a.csv"))
    given = ["data.target=label", "data.length=4", "data.group=subject", "data.batch_size=2"]
    assert run(["search", "data=windows", *given, *words]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert not Path("runs").exists()
