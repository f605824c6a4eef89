"""Boards that are reached: a host of ssh and a serial port, both of the test's own."""

import os
import re
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from nas.cli import run
from nas.errors import UserError
from nas.latency import remote as subject
from nas.latency.models import fit_units
from nas.latency.profile import Profile
from nas.latency.remote import Board, remote
from nas.latency.units import Conditions

HOST = "pi@board"
INPUTS = (torch.randn(1, 2, 6, 6),)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).eval()


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that knows one host, which is this machine with folders of its own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "rooms").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(
        "#!/bin/sh\n"
        'test "$1 $2 $3" = "-o BatchMode=yes --" || exit 9\n'
        f'test "$4" = {HOST} || {{ echo "no route to $4" >&2; exit 255; }}\n'
        f'cd / && TMPDIR={tmp_path}/rooms exec /bin/sh -c "$5"\n'
    )
    python = ssh.parent / "python3"  # one that has onnxruntime
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in (ssh, python):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    return tmp_path / "rooms"


def board(name="ssh", address=HOST, command=None, file=None, calls=30, **changed):
    return remote(name, address, command, file, calls, "cpu", Conditions(**changed))


def test_a_host_times_each_call_with_its_own_onnxruntime(host):
    ready = board()
    times = ready.elsewhere(network(), INPUTS, True, 0.0)
    assert len(times) == 20  # at least, whatever the time
    assert all(100 < ns < 1e9 for ns in times)
    assert "Linux" in ready.machine
    assert not list(host.glob("tmp.*"))


def test_a_command_is_filled_in_and_reads_the_file_that_was_sent(host):
    command = 'echo took 9 ms; wc -c < {file}; echo "{calls}.5 us"; echo 2e3ns; echo {threads} s'
    ready = board(command=command, file="onnx", calls=7, threads=3)
    assert ready.elsewhere(network(), INPUTS, True, 60.0) == [7500, 2000, 3 * 10**9]
    assert not list(host.glob("tmp.*"))


def test_a_c_file_goes_with_the_firmware_of_the_guide(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "budgets.md").read_text(encoding="utf-8")
    (tmp_path / "main.c").write_text(page.partition("```c main.c\n")[2].partition("```")[0])
    main = f"cc -std=c99 -Wall -Wextra -Werror -I. -c {tmp_path}/main.c"
    command = f"cc -O1 -I. -c {{file}} && {main} && ls *.o >&2 && echo 5 ms"
    assert board(command=command, file="c").elsewhere(network(), INPUTS, False, 1.0) == [5_000_000]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"address": None}, "address=pi@raspberrypi"),
        ({"address": "pi@elsewhere"}, r"pi@elsewhere fails \(exit 255\): no route to pi@elsewhere"),
        ({"address": "-oProxyCommand=true"}, "exit 255"),
        ({"file": "pte"}, "needs the command that times a pte file"),
        ({"name": "serial", "address": "/dev/ttyACM0"}, "builds and flashes a c file"),
        ({"name": "serial", "address": "/nowhere", "command": "x"}, "cannot open .* /nowhere"),
        ({"name": "serial", "command": "x", "file": "onnx"}, "takes file=c"),
        ({"file": "c", "command": "x", "batch": 2}, "one sample in int8, not b2"),
    ],
)
def test_what_cannot_measure_is_refused_before_it_starts(given, said):
    with pytest.raises(UserError, match=said):
        board(**given)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo 12", "a line like .* last line is '12'"),
        ("echo oh >&2; exit 3", r"\(exit 3\): oh"),
        ("echo 1e999 s", "pi@board prints '1e999 s': the time of a call must be finite"),
        ("echo 5 ms; echo 1e300 s", "prints '1e300 s'"),
        ("echo 5 ms; echo inf us", "prints 'inf us'"),
        ("echo -nan ms", "prints '-nan ms'"),
        ("echo -3ns", "prints '-3ns'"),
        ("echo 5 ms; echo 0.0 us", "prints '0.0 us'.* a finer unit"),
    ],
)
def test_a_command_that_tells_no_time_is_shown(command, said, host):
    with pytest.raises(UserError, match=said):
        board(command=command).elsewhere(network(), INPUTS, True, 1.0)
    assert not list(host.glob("tmp.*"))


class Firmware(threading.Thread):
    """What runs on a board: prints times with the name of the network that was flashed last."""

    def __init__(self, port: int, flash: Path) -> None:
        super().__init__(daemon=True)
        self.port, self.flash, self.on, self.number = port, flash, True, 0

    def run(self) -> None:
        while self.on:
            name = re.findall('"(.*)"', self.flash.read_text())[0] if self.flash.exists() else "old"
            self.number += 1
            # A board that is reset stops in the middle of a line.
            line = f"{name} {self.number} us\r\nhello\r\n{name} 77"
            os.write(self.port, line.encode() + b"\xff\x00\r\n")
            time.sleep(0.002)


def test_a_serial_port_gives_the_times_of_the_network_that_was_flashed(tmp_path):
    own, given = os.openpty()
    firmware = Firmware(own, tmp_path / "flash")
    firmware.start()
    try:
        command = f"test -s {{file}} && sleep .1 && cp network_id.h {tmp_path}/new && "
        command += f"mv {tmp_path}/new {tmp_path}/flash"
        ready = board("serial", os.ttyname(given), command, calls=5)
        for _ in range(2):
            before = firmware.number
            first, *others = ready.elsewhere(network(), INPUTS, True, 60.0)
            assert first > 1000 * before
            assert others == [first + 1000 * n for n in range(1, 5)]
    finally:
        firmware.on = False
        firmware.join()
        os.close(own)
        os.close(given)


def test_a_silent_board_and_one_with_another_network_are_no_times(monkeypatch, tmp_path):
    monkeypatch.setattr(subject, "_WAIT", 0.3)
    own, given = os.openpty()
    (tmp_path / "flash").write_text('"another"')
    firmware = Firmware(own, tmp_path / "flash")
    firmware.start()
    try:
        with pytest.raises(UserError, match=r"prints no line like '\w{12} 812 us'"):
            board("serial", os.ttyname(given), "true").elsewhere(network(), INPUTS, True, 1.0)
    finally:
        firmware.on = False
        firmware.join()
        os.close(own)
        os.close(given)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("name 5 us\n", "port was closed .*no more bytes.*: it was unplugged or reset"),
        ("name 5 us\nname 1e999 s\n", "port prints 'name 1e999 s': .* finite and more than 0"),
        ("name nan us\n", "prints 'name nan us'"),
        ("name 0 us\n", "prints 'name 0 us'.* a finer unit"),
    ],
)
def test_a_serial_port_that_ends_or_tells_impossible_times_is_an_error(lines, said, monkeypatch):
    monkeypatch.setattr(subject, "_WAIT", 0.3)
    ours, theirs = os.pipe()
    os.write(theirs, lines.encode())
    os.close(theirs)
    serial = Board("serial", "/dev/port", "true", "c", 5, Conditions())
    try:
        with pytest.raises(UserError, match=said):
            subject._read(ours, serial, "name", 0.3)
    finally:
        os.close(ours)


def test_a_profile_is_measured_twice_and_goes_on(tmp_path, capsys, monkeypatch):
    linear = partial(fit_units, kinds=("linear",))  # another kind takes seconds to fit
    monkeypatch.setattr("nas.latency.profile.fit_units", linear)
    space = ["space.width=0.25", "space.stages=[{ops:[conv_k3,sep_k3],channels:8}]"]
    command = "command=wc -c < {file} | sed 's/$/us/' >> all; cat ${PWD}/all"
    words = ["profile", *space, "input=[1,8,8]", "runtime=ssh", f"address={HOST}", "file=c"]
    words += [command, "networks=2", "calibrate=0", f"hydra.run.dir={tmp_path}/m"]
    words += [f"out={tmp_path}/pi.json"]
    assert run([*words, "command=false {file}"]) == 2  # which keeps the right one from nothing
    assert run(words) == 0
    assert "measured twice, figures agree to 0.0%" in capsys.readouterr().out
    profile = Profile.load(tmp_path / "pi.json")
    assert profile.about.machine.startswith(HOST)
    assert all(1e-3 < n.seconds < 1 for n in profile.networks)
    (log,) = tmp_path.glob("*.jsonl")
    lines = log.read_text().splitlines()
    assert len(lines) == 1 + 2 * (len(profile.units) + len(profile.networks))
    log.write_text("\n".join(lines[:-2]) + "\n")
    assert run(words) == 0
    assert log.read_text().splitlines() == lines


def test_an_address_is_for_boards_alone(tmp_path, capsys):
    words = ["profile", "input=[1,8,8]", f"address={HOST}", f"hydra.run.dir={tmp_path}"]
    assert run(words) == 2
    assert "for runtime=ssh or serial, not for runtime=torch" in capsys.readouterr().err
