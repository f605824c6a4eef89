"""The progress of a run: one line on a terminal of any width, plain lines elsewhere."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest

from nas.progress import Part, Progress, current, shown
from nas.quantities import duration

RUN = """
import logging, sys, time
from nas.progress import Part, current, shown
logging.basicConfig(format="nas: %(message)s", stream=sys.stdout)
with shown({"supernet": Part(1, 900.0), "ranking": Part(4, 25.0), "network": Part(2, 100.0)}):
    for part in current().parts.values():
        part.seconds = 5.0
    current().begin("supernet", "training supernet")
    for epoch in (1, 2):
        current().step = f"epoch {epoch} of 2"
        current().reach(epoch / 2)
        time.sleep(0.3)
        current().tell({"train_loss": 0.98765, "val_acc": 0.25, "train_acc": 0.5, "val_loss": 2.0})
    for number in (1, 2):
        current().place = number, 2
        current().network("training")
        current().step = "epoch 10 of 15"
        current().tell({"val_acc": 0.75, "train_acc": 0.5, "val_loss": 2.0, "train_loss": 2.0})
        current().reach(1.0)
        time.sleep(0.3)
        print(f"network {number} of 2: said above the bar")
        logging.warning("a warning")
print("the end")
"""


def on_terminal(columns: int) -> str:
    """What a process writes to a terminal of so many columns."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    command = [sys.executable, "-c", RUN]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env={**environment, "TERM": "xterm"}
    )
    os.close(child)
    written = b""
    try:
        while block := os.read(parent, 65536):
            written += block
    except OSError:  # the other end is closed
        pass
    os.close(parent)
    assert process.wait() == 0, written.decode()
    return written.decode()


@pytest.mark.parametrize(("columns", "metrics"), [(80, 1), (120, 4)])
def test_one_line_on_a_terminal(columns: int, metrics: int) -> None:
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(columns))
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert max(map(len, lines)) <= columns
    bars = [line for line in lines if "━" in line]
    assert len([line for line in bars if line.startswith("training supernet, epoch 1 of 2")]) >= 1
    second = [line for line in bars if line.startswith("training network 2 of 2, epoch 10 of 15")]
    assert re.search(r" \d+% \d+ s left val_acc 0\.75", second[0])
    assert len(re.findall(r"(?:train|val)_(?:acc|loss)", second[0])) == metrics
    # Whatever else is printed has a line of its own, and nothing is left of the bar.
    assert lines.count("network 1 of 2: said above the bar") == 1
    assert lines.count("nas: a warning") == 2
    assert lines[-1] == "the end"


def test_plain_lines_where_the_output_is_redirected() -> None:
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "training supernet, epoch 1 of 2; val_acc 0.25, train_acc 0.5, val_loss 2, train_loss 0.98"
    )
    assert [line.split(";")[0] for line in lines if line.startswith("training")] == [
        "training supernet, epoch 1 of 2",
        "training supernet, epoch 2 of 2",
        "training network 1 of 2, epoch 10 of 15",
        "training network 2 of 2, epoch 10 of 15",
    ]
    assert "\x1b" not in done.stdout
    assert lines[-1] == "the end"


def test_what_is_left_is_measured_else_by_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("nas.progress.time.monotonic", lambda: now[0])
    made = Progress({"supernet": Part(1, 100.0), "network": Part(4, 50.0)})
    assert made.remaining() is None
    made.begin("supernet", "training supernet")
    now[0] = 10.0
    made.reach(0.5)
    assert made.remaining() == pytest.approx(10 + 4 * 10)  # 5 units of work a second
    now[0] = 20.0
    made.network("training")
    now[0] = 50.0
    made.reach(1.0)
    assert made.remaining() == pytest.approx(3 * 30)  # now they are measured


def test_what_an_earlier_session_has_done_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("nas.progress.time.monotonic", lambda: now[0])
    made = Progress({"supernet": Part(1, 100.0), "network": Part(4, 50.0)})
    made.place = 3, 4  # the search and two networks are there
    made.network("training")
    made.reach(0.5, before=True)
    now[0] = 10.0
    made.reach(1.0)
    assert made.remaining() == pytest.approx(20)


def test_larger_networks_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("nas.progress.time.monotonic", lambda: now[0])
    sizes = [0.5, 1.0, 1.5, 2.0]  # the smallest network is trained first
    made = Progress({"ranking": Part(10, 10.0), "network": Part(4, 100.0)})
    made.begin("ranking", "ranking", 10.0)
    now[0] = 20.0
    made.reach(1.0)
    assert made.remaining() == pytest.approx(4 * 20)  # which they will be is not known yet
    made.expect(sizes[:3], 4)
    assert made.sizes == [0.5, 1.0, 1.5, 1.0]
    made.expect(sizes, 4)
    left = []
    for number, size in enumerate(sizes, 1):
        made.place = number, len(sizes)
        made.network("training")
        left.append(made.remaining())
        for _ in range(4):
            now[0] += 10 * size
            made.reach((now[0] - 20 - 40 * sum(sizes[: number - 1])) / (40 * size))
    assert left == pytest.approx([5 * 20, 4.5 * 40, 3.5 * 40, 2 * 40])
    assert made.remaining() == 0


def test_inside_a_run_that_is_shown_the_same_is_told() -> None:
    assert current() is not current()  # nobody sees it
    with shown({"network": Part(2)}) as outer, shown({}) as inner:
        assert inner is outer is current()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"),
     (36000, "10 h"), (36000 * 200, "2,000 h")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_notebook_shows_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, str]] = []
    handle = SimpleNamespace(update=lambda bundle, raw: drawn.append(bundle))
    made = SimpleNamespace(display=lambda bundle, raw, display_id: handle)
    shell = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None))
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", made)
    monkeypatch.setattr("nas.progress.OFTEN", 0.0)
    with shown({"network": Part(1)}) as progress:
        progress.begin("network", "training <network> 1 of 1")
        progress.step = "epoch 1 of 2"
        progress.tell({"val_acc": 0.5})
    assert "training <network> 1 of 1, epoch 1 of 2, 0%, val_acc 0.5" in [
        one["text/plain"] for one in drawn
    ]
    assert "&lt;network&gt;" in drawn[-2]["text/html"]
    assert drawn[-1] == {"text/plain": "0 s in all"}
