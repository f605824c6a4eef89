"""Temporary files of the dead are removed, nobody else's; a folder has one process at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.artifacts import RunDir
from nas.artifacts.files import claimed, copy_atomic, own_prefix, remove_leftovers, write_atomic
from nas.errors import FolderTakenError, is_full, refusal

WRITER = """
import os, signal, sys
import nas.artifacts.files
from pathlib import Path

def die(_):
    os.kill(os.getpid(), signal.SIGKILL)

nas.artifacts.files.os.fsync = die
nas.artifacts.files.write_atomic(Path("result.json"), "x" * 1000)
"""


HOLDER = """
import time
from pathlib import Path
from nas.artifacts.files import claimed

with claimed(Path({!r}), "runs/a"):
    print("inside", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_write_left_is_removed_by_the_next_run_of_the_folder(tmp_path):
    killed = subprocess.run([sys.executable, "-c", WRITER], cwd=tmp_path, check=False)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".result.json.nas-")
    RunDir(tmp_path).create()
    assert not list(tmp_path.iterdir())


def test_what_is_not_a_dead_process_of_ours_stays(tmp_path):
    mine, dead = own_prefix("a"), own_prefix("a").replace(f"-{os.getpid()}-", "-999999999-")
    other = dead.replace(".nas-", ".nas-00000000-", 1).replace("00000000-" + dead[7:15], "00000000")
    kept = [f"{mine}x", f"{other}x", ".a.nas-file", "a.nas-1-1", ".nas-x", f"{dead}x y"[1:]]
    for name in kept:
        (tmp_path / name).write_text("")
    (tmp_path / "outside").mkdir()
    (tmp_path / f"{dead}file").write_text("")
    (tmp_path / f"{dead}link").symlink_to(tmp_path / "outside")
    (tmp_path / f"{dead}folder").mkdir()
    (tmp_path / f"{dead}folder" / "file").write_text("")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "outside"])


def test_a_second_process_is_told_who_is_there_or_waits(tmp_path):
    lock = tmp_path / ".lock"
    with claimed(lock, "runs/a"):
        with pytest.raises(FolderTakenError, match=f"process {os.getpid()}"):
            claimed(lock, "runs/a").__enter__()
        assert lock.exists()
    assert not lock.exists()
    code = HOLDER.format(str(lock))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderTakenError, match=f"process {other.pid}"):
            claimed(lock, "runs/a").__enter__()
        other.kill()
        other.wait()
    with claimed(lock, "runs/a", wait=True):  # the dead hold nothing
        pass


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nas.artifacts.files.os.fsync", full)
    with pytest.raises(OSError, match=r"a\.json") as caught:
        write_atomic(tmp_path / "a.json", "x")
    assert is_full(caught.value)
    assert "disk is full" in refusal(caught.value)
    assert not list(Path(tmp_path).iterdir())
    error = RuntimeError("failed")
    error.__cause__ = caught.value
    assert is_full(error)
    assert not is_full(PermissionError(13, "Permission denied"))


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_is_a_file_of_its_own_once_either_is_written(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "no links here")

    if not links:
        monkeypatch.setattr("os.link", refused)
    source, target = tmp_path / "a", tmp_path / "b"
    write_atomic(source, "1")
    write_atomic(target, "0")
    for _ in range(2):  # the second finds one file already
        copy_atomic(source, target)
        assert target.read_text() == "1"
        assert source.samefile(target) == links
    write_atomic(source, "2")
    assert target.read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [source, target]
