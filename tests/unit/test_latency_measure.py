"""The measuring protocol: interleaved, within the budget, and nothing lost by an interruption."""

import json
import time
from itertools import pairwise

import pytest
import torch

from nas.errors import UserError
from nas.latency.log import MeasurementLog, Row, measurement_quality
from nas.latency.measure import Schedule, measure, timing, timings
from nas.latency.runtimes import machine_name

ABOUT = {"space": "small", "runtime": "torch", "date": "today"}


def test_a_timing_is_the_20th_percentile_and_counts_what_stands_out():
    found = timing([1000] * 10 + [1100] * 80 + [5000] * 10)
    assert found.seconds == pytest.approx(1.1e-6)
    assert found.median == pytest.approx(1.1e-6)
    assert found.minimum == pytest.approx(1e-6)
    assert (found.calls, found.outliers, found.stable) == (100, 10, True)
    assert not timing([1000, 1400, 1400]).stable


class Device:
    """Calls that take no time; tells in which order they came, and may be interrupted."""

    def __init__(self, names, interrupt_after=None):
        self.order, self.prepared, self.left = [], [], interrupt_after
        self.jobs = {name: lambda name=name: self.prepare(name) for name in names}

    def prepare(self, name):
        self.prepared.append(name)
        return lambda: self.call(name)

    def call(self, name):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        self.order.append(name)


def run(device, log, most=20, seconds=60.0, at_once=8, schedule=None):
    told = []
    schedule = schedule or Schedule(most=most, least=5, together=5, warm_ups=1, again=0, repeats=0)
    measure(device.jobs, log, seconds, schedule, lambda a, b: told.append(a / b), at_once)
    return told


def test_every_round_has_every_thing_and_progress_ends_at_all(tmp_path):
    log = MeasurementLog(tmp_path / "log", ABOUT)
    device = Device("abc")
    told = run(device, log)
    assert told == sorted(told)
    assert told[-1] == 1
    assert {len(log.calls(name)) for name in "abc"} == {20}
    after_warm_up = device.order[3:]
    rounds = [after_warm_up[i : i + 15] for i in range(0, 60, 15)]
    assert all(sorted(found) == sorted("abc" * 5) for found in rounds)
    assert len({tuple(dict.fromkeys(found)) for found in rounds}) > 1  # not always in one order
    assert len(log.references) == 4 * 3 * 4  # two before and two after each row


@pytest.mark.parametrize("after", [0, 5, 30, 70, 95, 120])
def test_an_interruption_loses_no_round_and_repeats_none(tmp_path, after):
    log = MeasurementLog(tmp_path / "log", ABOUT)
    with pytest.raises(KeyboardInterrupt):
        run(Device("abcdef", interrupt_after=after), log, at_once=3)
    before = (tmp_path / "log").read_text().splitlines()[1:]
    finished = [name for name in "abcdef" if log.done(name)]

    log = MeasurementLog(tmp_path / "log", {**ABOUT, "date": "tomorrow"})
    device = Device("abcdef")
    run(device, log, at_once=3)
    assert (tmp_path / "log").read_text().splitlines()[1:][: len(before)] == before
    assert not set(device.prepared) & set(finished)
    assert all(log.done(name) for name in "abcdef")
    assert not Device("abcdef").order
    again = Device("abcdef")
    run(again, log)
    assert not again.prepared


def test_a_half_written_last_line_is_dropped(tmp_path):
    path = tmp_path / "log"
    log = MeasurementLog(path, ABOUT)
    log.add([Row("a", 4, [1, 2, 3, 4], [])])
    whole = path.read_text()
    path.write_text(whole + '{"name": "b", "of": 4, "ns": [1, ')
    log = MeasurementLog(path, ABOUT)
    assert log.done("a")
    assert not log.calls("b")
    log.add([Row("b", 1, [7], [9])])
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()[1:]] == ["a", "b"]


def test_a_log_without_a_measurement_is_begun_anew(tmp_path):
    path = tmp_path / "log"
    MeasurementLog(path, {**ABOUT, "runtime": "onnxruntime"})
    MeasurementLog(path, ABOUT).add([Row("a", 1, [1], [])])
    assert MeasurementLog(path, ABOUT).done("a")
    assert json.loads(path.read_text().splitlines()[0]) == {"schema": 1, **ABOUT}


def test_a_log_of_other_measurements_is_refused(tmp_path):
    path = tmp_path / "log"
    MeasurementLog(path, ABOUT).add([Row("a", 1, [1], [])])
    with pytest.raises(UserError, match="runtime='torch', and now it is 'onnxruntime'"):
        MeasurementLog(path, {**ABOUT, "runtime": "onnxruntime"})
    path.write_text("no log\n")
    with pytest.raises(UserError, match="out=FILE"):
        MeasurementLog(path, ABOUT)
    path.write_text('{"of": "something else"}\n')
    with pytest.raises(UserError, match="=None, and now it is"):
        MeasurementLog(path, ABOUT)
    path.write_text(json.dumps({"schema": 1, **ABOUT}) + "\n{}\n")
    with pytest.raises(UserError, match="damaged"):
        MeasurementLog(path, ABOUT)


def test_without_time_each_thing_is_called_the_least_number_of_times(tmp_path):
    log = MeasurementLog(tmp_path / "log", ABOUT)
    run(Device("ab"), log, seconds=0.0)
    assert {len(log.calls(name)) for name in "ab"} == {5}


def test_what_is_unstable_is_measured_again(tmp_path):
    log = MeasurementLog(tmp_path / "log", ABOUT)
    device = Device("ab")
    ticks = iter(range(10**6))

    def shaky():
        end = time.perf_counter_ns() + (2_000_000 if next(ticks) % 3 else 1_000_000)
        while time.perf_counter_ns() < end:
            pass

    device.jobs["a"] = lambda: shaky
    device.jobs["b"] = lambda: lambda: time.sleep(1e-3)
    run(device, log, schedule=Schedule(8, 8, 4, 1, 0, 2))
    assert len(log.calls("a")) == 8 + 2 * 4
    assert log.done("a")


@pytest.mark.parametrize(
    ("references", "load", "repeats", "said"),
    [
        ([10, 10, 11] * 10, 0.1, [1.0, 1.01, 0.98], ""),
        ([10] * 27 + [14] * 3, 0.1, [1.0], ""),  # it has another pace, and figures repeat
        ([10] * 30, 0.8, [], "80% of the cores"),
        ([10] * 30, None, [1.05, 0.95, 1.0], "measured twice, figures differ by 5.0%"),
        ([], None, [], ""),
    ],
)
def test_figures_of_a_busy_machine_are_not_trusted_and_the_reason_is_said(
    references, load, repeats, said
):
    verdict = measurement_quality(references, load, repeats)
    assert verdict["trusted"] == (not said)
    assert said in "; ".join(verdict["reasons"])


def test_the_machine_has_a_name():
    assert machine_name()


def test_a_slow_moment_is_told_by_the_reference(tmp_path):
    log = MeasurementLog(tmp_path / "log.jsonl", {})
    log.add([Row("a", 6, [100, 110], [10, 10, 19, 12]), Row("b", 2, [40], [10, 11, 12, 12])])
    log.add([Row("a", 6, [200, 220], [20, 20, 24, 38]), Row("b", 2, [80], [20, 20, 20, 20])])
    log.add([Row("c", 1, [7], [10] * 8)])
    log.add([Row("a", 6, [100, 110], [])])  # nothing is known
    for read in (log, MeasurementLog(tmp_path / "log.jsonl", {})):
        assert read.normalized_times("a") == pytest.approx([100, 110] * 3)
        assert read.normalized_times("b") == [40, 40]
        assert read.normalized_times("a", slice(1, None, 2)) == pytest.approx([100, 110])
        assert read.calls("a") == [100, 110, 200, 220, 100, 110]


def test_making_ready_takes_no_time_from_the_measuring(tmp_path):
    log = MeasurementLog(tmp_path / "log", ABOUT)
    device = Device("ab")
    prepare = device.jobs["a"]
    device.jobs["a"] = lambda: time.sleep(0.3) or prepare()
    schedule = Schedule(most=20, least=5, together=5, warm_ups=1, again=0, repeats=0)
    left = measure(device.jobs, log, 0.25, schedule, lambda *_: None, 8)
    assert 0 < left < 0.25
    assert len(log.calls("a")) == 20


def busy(milliseconds: float, called: list[str], name: str):
    def call() -> None:
        called.append(name)
        end = time.perf_counter_ns() + milliseconds * 1e6
        while time.perf_counter_ns() < end:
            pass

    return call


def test_they_take_turns_and_their_ratio_is_right():
    called: list[str] = []
    models = {"one": busy(0.5, called, "one"), "two": busy(1.5, called, "two")}
    found = timings(models, seconds=0.5)
    assert list(found) == ["one", "two"]
    assert found["two"].seconds / found["one"].seconds == pytest.approx(3, rel=0.25)
    assert found["one"].calls >= 20
    turns = sum(a != b for a, b in pairwise(called))
    assert turns > 5


def test_one_thread_and_no_gradients_while_it_measures():
    seen = set()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        timings(
            {"a": lambda: seen.add((torch.get_num_threads(), torch.is_inference_mode_enabled()))},
            seconds=0.05,
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert seen == {(1, True)}
